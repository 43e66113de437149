"""CHAIR and POPE on files, against the rules of the official scripts, and the errors of hostile
files.
"""

import json
import random

import pytest

from lab.field import coco, score
from lab.metrics import chair, pope

OFFICIAL = chair.convention("official")


def write(path, rows, style="lines"):
    indent = 2 if style == "pretty" else None
    path.write_text(
        json.dumps(rows)
        if style == "array"
        else "\n".join(json.dumps(row, indent=indent) for row in rows)
    )
    return str(path)


@pytest.mark.parametrize(
    "caption, objects",
    [
        ("Two men riding motor bikes.", ["person", "motorcycle"]),
        ("A baby elephant and an adult bird", ["elephant", "bird"]),  # "baby" is no person here
        ("a passenger jet over a train track", ["airplane"]),
        ("the seat of the toilet", ["toilet"]),
        ("a chair, a seat", ["chair", "chair"]),
        ("three wine glasses", ["wine glass"]),  # pattern's "glas"
        ("a hot, dog", ["dog"]),  # the comma stands between: no hot dog
        ("A man's tie. The tie is red", ["person", "tie", "tie"]),
        (
            "mice, sheep, scissors, people, knives, sandwiches",
            ["mouse", "sheep", "scissors", "person", "knife", "sandwich"],
        ),
        ("a carpet in a fog", []),
        (
            "dining tables and desks",
            ["dining table", "dining table"],
        ),  # fires as "table": the official list has no such double word
    ],
)
def test_official_mentions(caption, objects):
    """Fails if a rule of the official script is lost: singular, double words, qualifiers, toilet
    seats, repeats.
    """
    assert OFFICIAL.mentions(caption) == objects


def test_conventions_differ_where_they_should():
    """Fails if EFUF's count of repeats or its added synonyms are lost."""
    efuf = chair.convention("efuf")
    assert OFFICIAL.mentions("a dog and a dog") == ["dog", "dog"] and efuf.mentions(
        "a dog and a dog"
    ) == ["dog"]
    assert OFFICIAL.mentions("a pedestrian") == [] and efuf.mentions("a pedestrian") == ["person"]
    with pytest.raises(
        ValueError, match="--convention other: the conventions are official and efuf"
    ):
        chair.convention("other")


@pytest.fixture
def files(tmp_path):
    instances = {
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cup"}],
        "images": [{"id": 7}, {"id": 8}],
        "annotations": [{"image_id": 7, "category_id": 1}],
    }
    human = {
        "annotations": [
            {"image_id": 7, "caption": "a man with his dog"},
            {"image_id": 8, "caption": "an empty room"},
        ]
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "human.json").write_text(json.dumps(human))
    return tmp_path


def test_chair_on_files_by_hand(files, capsys):
    """Fails if the truth is not instances together with human captions, or the numbers are not
    pooled.
    """
    captions = write(
        files / "c.jsonl",
        [
            {"image_id": 7, "caption": "a man, a dog and a cup"},
            {"image_id": 8, "caption": "a room"},
        ],
    )
    command = [
        "chair",
        "--captions",
        captions,
        "--instances",
        str(files / "instances.json"),
        "--human",
        str(files / "human.json"),
        "--convention",
        "official",
        "--per-caption",
        str(files / "out.jsonl"),
    ]
    assert score.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["chair_s"], found["chair_i"], found["recall"], found["n"]) == (0.5, 1 / 3, 1.0, 2)
    lines = [json.loads(line) for line in (files / "out.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "image_id": 7,
        "mentions": ["person", "dog", "cup"],
        "hallucinated": ["cup"],
    }


def test_nothing_mentioned_is_defined(files):
    captions = write(files / "c.jsonl", [{"image_id": 8, "caption": "a room"}])
    found = score.score_chair(
        captions, [files / "instances.json"], [files / "human.json"], name="efuf"
    )
    assert found["chair_s"] == 0 and found["chair_i"] is None


@pytest.mark.parametrize(
    "answer, is_no",
    [
        ("No", True),
        ("no, there is none", True),
        ("There is not", True),
        ("Yes. There is no doubt", False),
        ("", False),
        ("NO", False),
        ("no\n", False),
        ("No!", False),
        ("Yes, not really", True),
    ],
)
def test_official_pope_parser(answer, is_no):
    """Fails on the released parser's own oddities, which published numbers contain."""
    assert pope.says_no(answer) == is_no


def test_strict_pope_parser():
    assert pope.says_no("NO!", "strict") and not pope.says_no(" yes, there is not", "strict")
    with pytest.raises(ValueError, match="begins with neither yes nor no"):
        pope.says_no("maybe", "strict")


@pytest.mark.parametrize("style", ["lines", "array", "pretty"])
def test_pope_on_files_equals_the_rules(tmp_path, style, capsys):
    """Fails if answers are joined by order, a variant of the file is not read, or a count is off:
    brute force is the reference.
    """
    rng = random.Random(0)
    questions = [
        {
            "question_id": i,
            "text": "Is there a cup in the image?",
            "label": rng.choice(["yes", "no"]),
        }
        for i in range(1, 301)
    ]
    said = {
        q["question_id"]: rng.choice(
            ["Yes", "No", "yes, a cup.", "There is not. Yes", "no way", ""]
        )
        for q in questions
    }
    answers = [{"question_id": i, "answer": text} for i, text in said.items()]
    rng.shuffle(answers)
    assert (
        score.main(
            [
                "pope",
                "--questions",
                write(tmp_path / "q", questions, style),
                "--answers",
                write(tmp_path / "a", answers),
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    yes = {
        i: not any(w in ("No", "no", "not") for w in text.split(".")[0].replace(",", "").split(" "))
        for i, text in said.items()
    }
    table = [(yes[q["question_id"]], q["label"] == "yes") for q in questions]
    tp, fp, fn = table.count((True, True)), table.count((True, False)), table.count((False, True))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    expected = {
        "accuracy": (tp + table.count((False, False))) / 300,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": sum(yes.values()) / 300,
        "n": 300,
    }
    assert {k: found[k] for k in expected} == pytest.approx(expected)


def test_never_yes_is_defined(tmp_path):
    """Fails if no predicted yes divides by zero, as in the released script."""
    questions = write(tmp_path / "q", [{"question_id": 1, "text": "?", "label": "yes"}])
    found = score.score_pope(questions, write(tmp_path / "a", [{"question_id": 1, "answer": "no"}]))
    assert found["precision"] is None and found["recall"] == 0 and found["f1"] == 0


QUESTION = {"question_id": 1, "text": "?", "label": "yes"}


@pytest.mark.parametrize(
    "answers, says",
    [
        ([], "a: the file has no rows"),
        (
            [{"question_id": 1, "answer": "no"}] * 2,
            "a, row 2: question_id 1 stands already in row 1",
        ),
        (
            [{"question_id": 1, "answer": "no"}, {"question_id": 5, "answer": "no"}],
            "a, row 2: question_id 5 is not among the 1 questions",
        ),
        ([{"answer": "no"}], "a, row 1: the field 'question_id' is missing"),
        (
            [{"question_id": "q1", "answer": "no"}],
            "a, row 1: 'question_id' must be int, found 'q1'",
        ),
        ([{"question_id": 1, "answer": None}], "a, row 1: 'answer' must be str"),
        ([[1]], "row 1: expected an object"),
    ],
)
def test_bad_answers_are_named(tmp_path, answers, says, capsys):
    """Fails if a bad row passes, or the error does not name file and row; the command prints one
    line and exits with 1.
    """
    rows = write(tmp_path / "a", answers, "array" if answers == [[1]] else "lines")
    if answers == [[1]]:
        (tmp_path / "a").write_text("[1]")
    assert (
        score.main(["pope", "--questions", write(tmp_path / "q", [QUESTION]), "--answers", rows])
        == 1
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error


def test_a_missing_answer_is_named(tmp_path):
    questions = write(tmp_path / "q", [QUESTION, QUESTION | {"question_id": 2}])
    with pytest.raises(
        ValueError, match="1 of 2 questions have no answer; the first is question_id 2"
    ):
        score.score_pope(questions, write(tmp_path / "a", [{"question_id": 1, "answer": "no"}]))


@pytest.mark.parametrize(
    "content, says",
    [
        (
            b'{"question_id": 1, "answer": "no"}\n{"question_id": 2, "ans',
            "row 2 \\(line 2\\): broken JSON",
        ),
        (b"\x00\x01", "zero bytes"),
        (b"\xff\xfe\xfa", "could not be read as text"),
        (None, "could not be read"),
    ],
)
def test_broken_files_are_named(tmp_path, content, says):
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'a'}.*{says}"):
        coco.read_answers(tmp_path / "a", [QUESTION])


def test_broken_coco_files_are_named(files):
    (files / "cut.json").write_text((files / "instances.json").read_text()[:-20])
    with pytest.raises(ValueError, match="cut.json, annotations row 1: broken JSON .*line 1"):
        coco.read_instances([files / "cut.json"])
    (files / "odd.json").write_text(
        json.dumps({"categories": [], "annotations": [{"image_id": 1, "category_id": 9}]})
    )
    with pytest.raises(
        ValueError, match="odd.json, annotations row 1: category_id 9 is not in 'categories'"
    ):
        coco.read_instances([files / "odd.json"])
    captions = write(files / "c.jsonl", [{"image_id": 99, "caption": "a dog"}])
    with pytest.raises(ValueError, match="c.jsonl, row 1: image_id 99 is in none of"):
        score.score_chair(captions, [files / "instances.json"], [files / "human.json"])


def test_unlike_cards_are_not_compared(tmp_path, capsys):
    """Fails if scores of other questions, parsers or prompts are subtracted."""
    questions, answers = (
        write(tmp_path / "q", [QUESTION]),
        write(tmp_path / "a", [{"question_id": 1, "answer": "yes"}]),
    )
    made = write(tmp_path / "made", [{"decoding": "greedy"}])
    for name, parser in (("one", "official"), ("same", "official"), ("other", "strict")):
        found = score.score_pope(questions, answers, parser, made)
        (tmp_path / name).write_text(json.dumps(found))
    assert score.main(["compare", str(tmp_path / "one"), str(tmp_path / "same")]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 0
    assert score.main(["compare", str(tmp_path / "one"), str(tmp_path / "other")]) == 1
    assert "parser: 'official' against 'strict'" in capsys.readouterr().err

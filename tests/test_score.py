"""CHAIR and POPE on files, against the rules of the official scripts, and the errors of hostile
files.
"""

import json
import os
import random
import subprocess
import sys

import pytest

from lab.field import coco, score
from lab.files import CHAPTERS
from lab.metrics import chair, pope
from lab.tools import cli

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


@pytest.mark.parametrize(
    "more, says",
    [
        ({"image": "a.jpg"}, None),
        ({"image": "val2014/a.jpg"}, None),
        ({"image_path": "C:\\data\\val2014\\a.jpg", "file_name": "a"}, None),
        ({"image": "b.jpg"}, "image 'b.jpg' is not that of question_id 1, 'val2014/a.jpg'"),
        ({"image": "train2014/a.jpg"}, "image 'train2014/a.jpg' is not"),
        ({"image": "a.png"}, "image 'a.png' is not"),
        ({"image": None, "prompt": None, "label": None}, None),  # a null says nothing
        ({"image": ["a.jpg"]}, r"image \['a.jpg'\] is not"),
        ({"prompt": "<image>\nIs there a  cup?\nAnswer yes or no."}, None),
        ({"question": "USER: <image>\nIs there a cup? ASSISTANT:"}, None),
        ({"prompt": "Is there a cup?", "text": "no"}, None),  # LLaVA's: text is the answer
        ({"text": "Is there a cup?"}, None),
        ({"prompt": "Is there a cupboard?"}, "prompt 'Is there a cupboard.' is not that of"),
        ({"prompt": "This there a cup?"}, "prompt .* is not that of"),
        ({"question": "Is there a car?"}, "question .* is not that of question_id 1, 'Is there a"),
        ({"text": "Is there a car?"}, "text .* is not that of"),
        ({"prompt": ""}, "prompt '' is not that of"),
        ({"prompt": 5}, "prompt 5 is not that of"),
        ({"label": "no"}, None),
        ({"label": "No "}, None),
        ({"label": "yes"}, "label 'yes' is not that of question_id 1, 'no'"),
        ({"label": ["no"]}, "label .* is not that of"),
        ({"image_id": "7", "split": 2.0}, None),
        ({"image_id": 8}, "image_id 8 is not that of question_id 1, 7"),
        ({"split": "train"}, "split 'train' is not that of"),
        ({"model": "llava", "metadata": {}, "id": 99}, None),
    ],
)
def test_answers_agree_with_the_questions_that_they_join(tmp_path, more, says):
    """Fails if the answers to another split's or data set's questions are scored by their ids, or
    a row that only spells things otherwise is refused.
    """
    question = {"question_id": 1, "text": "Is there a cup?", "image": "val2014/a.jpg"}
    question |= {"label": "no", "image_id": 7, "split": 2}
    first = question | {"question_id": 0, "text": "Is there a dog?"}
    questions = coco.read_questions(write(tmp_path / "q", [first, question]))
    row = {"question_id": 1, "answer": "no"} | more
    answers = write(tmp_path / "a", [{"question_id": 0, "answer": "Yes"}, row])
    if says is None:
        assert coco.read_answers(answers, questions) == ["Yes", "no"]
    else:
        with pytest.raises(ValueError, match=f"^{answers}, row 2: {says}"):
            coco.read_answers(answers, questions)


@pytest.mark.parametrize("more", [{"prompt": "Is there a car?"}, {"file_name": "b.jpg"}])
def test_a_question_agrees_with_itself(tmp_path, more):
    """Fails if a question asks two things, or about two images."""
    question = QUESTION | {"text": "Is there a cup?", "image": "a.jpg"}
    with pytest.raises(ValueError, match="q, row 2: .* is not that of question_id 2"):
        coco.read_questions(write(tmp_path / "q", [question, question | {"question_id": 2} | more]))


def coco_files(folder, instances=(), human=(), said=()):
    """Files of images (id, file name or None), which show a dog, and of captions (id, name)."""
    rows = [{"id": i} | ({"file_name": name} if name else {}) for i, name in [*instances, *human]]
    shown, told = rows[: len(instances)], rows[len(instances) :]
    documents = {
        "instances": {
            "images": shown,
            "annotations": [{"image_id": row["id"], "category_id": 1} for row in shown[1:]],
            "categories": [{"id": 1, "name": "dog"}],
        },
        "human": {
            "images": told,
            "annotations": [{"image_id": row["id"], "caption": "a room"} for row in told],
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    captions = [{"image_id": i, "caption": "a dog"} | more for i, more in said]
    return write(folder / "said", captions), [folder / "instances"], [folder / "human"]


A, B = (7, "val/a.jpg"), (8, "b.jpg")


@pytest.mark.parametrize(
    "instances, human, said, says",
    [
        ([A, B], [A, B], [(7, {}), (8, {}), (7, {})], None),  # 7 shows nothing, and is there
        ([A], [A, B], [(7, {}), (8, {})], "said, row 2: image_id 8 is in none of the instances"),
        ([A, B], [A], [(7, {}), (8, {})], "said, row 2: image_id 8 is in none of the human capt"),
        ([A], [A], [(9, {})], "said, row 1: .* in none of the instances or human captions files"),
        ([A, B], [A, B], [(8, {"file_name": "b"}), (7, {"image": "a.jpg"})], None),
        (
            [A, B],
            [A, B],
            [(7, {"image": "b.jpg"})],
            "said, row 1: image 'b.jpg' is not 'val/a.jpg'",
        ),
        ([A, B], [A, B], [(7, {"image": "train/a.jpg"})], "said, row 1: image .* is not 'val/a"),
        ([A, B], [A, (8, "c.jpg")], [(8, {})], "said, row 1: file_name of .*instances.* is not 'c"),
        ([(7, None)], [(7, None)], [(7, {"image": "any.jpg"})], None),  # no list to check it by
    ],
)
def test_a_captioned_image_is_in_both_halves_of_the_truth(tmp_path, instances, human, said, says):
    """Fails if half of the truth scores: what is there becomes a hallucination, or the reverse; or
    two data sets are joined because they number their images alike.
    """
    files = coco_files(tmp_path, instances, human, said)
    if says is None:
        assert score.score_chair(*files)["n"] == len(said)
    else:
        with pytest.raises(ValueError, match=f"^{tmp_path}/{says}"):
            score.score_chair(*files)


def test_a_listed_image_without_a_caption_lacks_human_captions(tmp_path):
    """Fails if an image that nobody described counts as described by nothing."""
    said, shown, told = coco_files(tmp_path, [A, B], [A, B], [(8, {})])
    document = json.loads(told[0].read_text())
    told[0].write_text(json.dumps(document | {"annotations": document["annotations"][:1]}))
    with pytest.raises(ValueError, match="row 1: image_id 8 is in none of the human captions"):
        score.score_chair(said, shown, told)


def test_two_files_describe_no_image_twice(tmp_path):
    """Fails if the truths of two files are mixed, or files of two splits are refused."""
    (tmp_path / "more").mkdir()
    said, *one = coco_files(tmp_path, [A], [A], [(7, {})])
    _, *other = coco_files(tmp_path / "more", [B], [B])
    assert score.score_chair(said, one[0] + other[0], one[1] + other[1])["n"] == 1
    for shown, told in ((one[0] * 2, one[1]), (one[0], one[1] + other[1] + one[1])):
        with pytest.raises(ValueError, match="image_id 7 is described in .* already"):
            score.score_chair(said, shown, told)


@pytest.mark.parametrize("name, part", [("instances", "images"), ("human", "images")])
def test_an_annotation_of_an_unlisted_image_is_named(tmp_path, name, part):
    """Fails if annotations of other images than the listed ones count; a file may list none."""
    said, shown, told = coco_files(tmp_path, [A, B], [A, B], [(8, {})])
    document = json.loads((tmp_path / name).read_text())
    for images in (document[part][:1], []):
        (tmp_path / name).write_text(json.dumps(document | {part: images}))
        with pytest.raises(
            ValueError, match=f"{name}, annotations row .: image_id . is not in 'im"
        ):
            score.score_chair(said, shown, told)
    del document[part]
    (tmp_path / name).write_text(json.dumps(document))
    assert score.score_chair(said, shown, told)["n"] == 1


@pytest.mark.parametrize("one", [8, "8", "000000000008", 8.0])
@pytest.mark.parametrize("other", [8, "8", 8.0])
def test_an_id_is_a_whole_number_however_it_is_written(tmp_path, one, other):
    """Fails if an image or a question is another one for the quotes around its id."""
    said, shown, told = coco_files(tmp_path, [A, (one, "b.jpg")], [(other, "b.jpg")], [(one, {})])
    assert score.score_chair(said, shown, told)["chair_s"] == 0
    questions = coco.read_questions(write(tmp_path / "q", [QUESTION | {"question_id": one}]))
    answers = write(tmp_path / "a", [{"question_id": other, "answer": "yes"}])
    assert coco.read_answers(answers, questions) == ["yes"]
    (tmp_path / "instances").write_text(
        json.dumps({"images": [{"id": one}, {"id": other}], "categories": [], "annotations": []})
    )
    with pytest.raises(ValueError, match="instances, images row 2: id 8 stands there already"):
        coco.read_instances(shown)


@pytest.mark.parametrize(
    "wrong",
    [True, None, -1, 8.5, 2**63, 1e300, "8.0", " 8", "-8", "٨", "", "8" * 20, [8], {"8": 8}],
)
def test_what_is_no_id_is_named(tmp_path, wrong):
    """Fails if anything else is taken for an id, in any file."""
    for rows, read in (
        ([{"image_id": wrong, "caption": ""}], coco.read_captions),
        ([QUESTION | {"question_id": wrong}], coco.read_questions),
        ([{"question_id": wrong, "answer": ""}], lambda path: coco.read_answers(path, [QUESTION])),
    ):
        good = [{**rows[0], **{k: 1 for k in rows[0] if k.endswith("_id")}}]
        with pytest.raises(ValueError, match="file, row 2: '.*_id' must be int, found .* digits"):
            read(write(tmp_path / "file", good + rows))


GREEDY = {"do_sample": False, "num_beams": 1, "stop": ["###", {"max": 2}], "how": {"top_p": 0.9}}


def scored(folder, name, made, parser="official"):
    """The path of a saved score whose text was made so."""
    questions, answers = (
        write(folder / "q", [QUESTION]),
        write(folder / "a", [{"question_id": 1, "answer": "yes"}]),
    )
    path = None if made is None else write(folder / f"{name}.made", [made])
    (folder / name).write_text(json.dumps(score.score_pope(questions, answers, parser, path)))
    return str(folder / name)


@pytest.mark.parametrize(
    "made, differs, unknown",
    [
        (GREEDY, None, []),
        (GREEDY | {"num_beams": 1.0}, None, []),
        (GREEDY | {"num_beams": 5}, "generation.num_beams: 1 against 5", []),
        (GREEDY | {"num_beams": True}, "generation.num_beams: 1 against True", []),
        (GREEDY | {"stop": ["###", {"max": 3}]}, "generation.stop: .*", []),
        (GREEDY | {"how": {"top_p": 1}}, "generation.how.top_p: 0.9 against 1", []),
        (GREEDY | {"how": 0.9}, "generation.how: {'top_p': 0.9} against 0.9", []),
        (GREEDY | {"seed": 1}, None, ["generation.seed"]),
        (GREEDY | {"kind": "chair", "n": 7, "images": "x"}, None, "images kind n"),
        (GREEDY | {"num_beams": None}, None, ["generation.num_beams"]),
        (GREEDY | {"how": {"top_k": 5}}, None, ["generation.how.top_k", "generation.how.top_p"]),
        (None, None, ["generation"]),
    ],
)
def test_what_cards_do_not_both_say_is_not_compared(tmp_path, made, differs, unknown):
    """Fails if a setting that differs, or that one of two does not know, is left out of sight."""
    if isinstance(unknown, str):
        unknown = [f"generation.{name}" for name in unknown.split()]
    for pair in ((GREEDY, made), (made, GREEDY)):
        files = [scored(tmp_path, name, how) for name, how in zip(("one", "other"), pair)]
        for allow in (False, True):
            says = None if allow and not differs else differs and "they differ in generation"
            says = "do not both say " + ", ".join(unknown) if unknown and not allow else says
            if says is None:
                found = score.compare(*files, allow)
                assert found["accuracy"] == 0 and found.get("unknown", []) == unknown
            else:
                with pytest.raises(ValueError, match=says):
                    score.compare(*files, allow)
    if differs:
        with pytest.raises(ValueError, match=differs):
            score.compare(*[scored(tmp_path, n, h) for n, h in (("one", GREEDY), ("two", made))])


def test_scores_without_generation_or_of_two_kinds_are_not_compared(tmp_path, capsys):
    """Fails if null equals null, an older card passes, or CHAIR is subtracted from POPE."""
    bare = scored(tmp_path, "bare", None)
    old = json.loads((tmp_path / "bare").read_text())
    del old["card"]["generation"]
    old["card"] |= {"prompt": None, "decoding": None, "max_new_tokens": None}
    (tmp_path / "old").write_text(json.dumps(old))
    for path in (bare, str(tmp_path / "old")):
        assert score.main(["compare", path, path]) == 1
        assert "do not both say generation" in capsys.readouterr().err
        assert score.main(["compare", path, path, "--allow-unknown"]) == 0
        assert json.loads(capsys.readouterr().out)["unknown"] == ["generation"]
    files = coco_files(tmp_path, [A], [A], [(7, {})])
    made = write(tmp_path / "made", [GREEDY])
    found = score.score_chair(*files, generation=made)
    assert found["card"]["generation"] == GREEDY  # all of it
    (tmp_path / "chair").write_text(json.dumps(found))
    pope = scored(tmp_path, "pope", GREEDY)
    with pytest.raises(ValueError, match="differ in convention: .*kind: 'chair' against 'pope'"):
        score.compare(str(tmp_path / "chair"), pope, allow_unknown=True)


@pytest.mark.parametrize(
    "content, says",
    [
        ('{"a": 1} {"b": 2}', "expected one object, found 2"),
        ('[{"a": 1}]', "expected one object, found a list"),
        ("5", "expected an object"),
        ("{}", "says nothing of how the text was made"),
        ('{"a": NaN}', "holds nan, which cannot be kept"),
        ('{"a": 1e999}', "holds inf"),
        (r'{"\ud800": 1}', r"holds '\\ud800'"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nest no deeper than 32"),
        ('{"a": 1, "a": 2}', r"broken JSON \(the key 'a' stands twice in one object"),
        ("", "expected one object, found 0"),
    ],
)
def test_a_generation_file_that_is_none_is_named(tmp_path, content, says):
    """Fails if the first of several objects is the card's, or what cannot be written again is."""
    (tmp_path / "made").write_text(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/made.*{says}"):
        score.score_pope(
            write(tmp_path / "q", [QUESTION]),
            write(tmp_path / "a", [{"question_id": 1, "answer": "yes"}]),
            generation=tmp_path / "made",
        )


def test_scores_of_other_truths_or_images_are_not_compared(tmp_path):
    """Fails if two truths of the same image ids, or questions about other images, look alike; the
    order of the rows does not matter.
    """
    made = write(tmp_path / "made", [GREEDY])
    said, shown, told = coco_files(tmp_path, [A, B], [A, B], [(7, {}), (8, {})])
    one = score.score_chair(said, shown, told, generation=made)["card"]
    said = coco_files(tmp_path, [A, B], [A, B], [(8, {}), (7, {})])[0]
    assert score.score_chair(said, shown, told, generation=made)["card"] == one
    coco_files(tmp_path, [B, A], [A, B], [(7, {}), (8, {})])  # the dog is in the other image
    assert score.score_chair(said, shown, told, generation=made)["card"]["truth"] != one["truth"]
    cards = []
    for image in ("a", "b"):
        questions = write(tmp_path / "q", [QUESTION | {"image": image}])
        answers = write(tmp_path / "a", [{"question_id": 1, "answer": "yes"}])
        cards.append(score.score_pope(questions, answers)["card"]["images"])
    assert cards[0] != cards[1]


def test_answers_that_say_neither_are_counted(tmp_path):
    """Fails if an answer without yes, no or not is not counted, or one with them is."""
    said = [
        "No.",
        "YES!",
        "There is not",
        "no",
        "Indeed. Yes",
        "maybe",
        "",
        "nothing",
        "There isn't",
    ]
    rows = [{"question_id": i, "answer": text} for i, text in enumerate(said)]
    questions = [QUESTION | {"question_id": i} for i in range(len(said))]
    found = score.score_pope(write(tmp_path / "q", questions), write(tmp_path / "a", rows))
    assert found["neither"] == 4 / 9
    found = score.score_pope(
        write(tmp_path / "q", questions[:2]), write(tmp_path / "a", rows[:2]), "strict"
    )
    assert found["neither"] == 0


def test_readers_of_files_load_no_torch(tmp_path):
    """Fails if scoring files that were made elsewhere needs torch, or seconds to import it."""
    loaded = "print({'torch', 'transformers'} & {*sys.modules})"
    code = f"import sys, lab.field.coco, lab.field.images; {loaded}"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert found.stdout == "set()\n"


def test_the_command_scores_as_the_module_does(tmp_path, capsys):
    """Fails if `sare-min score` and `python -m lab.score` part ways, or a typo passes."""
    questions, answers = tmp_path / "q", tmp_path / "a"
    questions.write_text(json.dumps(QUESTION))
    answers.write_text(json.dumps({"question_id": 1, "answer": "yes"}))
    given = ["pope", "--questions", str(questions), "--answers", str(answers)]
    assert score.main(given) == 0
    by_module = capsys.readouterr().out
    assert cli.main(["score", *given]) == 0
    assert capsys.readouterr().out == by_module
    done = subprocess.run(
        [sys.executable, "-m", "lab.score", *given], cwd=CHAPTERS, capture_output=True
    )
    assert done.stdout.decode() == by_module
    (tmp_path / "one").write_text(by_module)
    given = ["compare", str(tmp_path / "one"), str(tmp_path / "one"), "--allow-unknown"]
    assert cli.main(given) == score.main(given) == 0
    assert cli.main(["scores"]) == 2 and cli.main(["--help"]) == 0
    assert "no such command: scores" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["c", ".", "nowhere/out.jsonl"])
def test_per_caption_overwrites_nothing(files, capsys, place):
    """Fails if the file of captions is written over, or a bad place ends in a traceback."""
    captions = write(files / "c", [{"image_id": 8, "caption": "a room"}])
    before = (files / "c").read_text()
    command = ["chair", "--captions", captions, "--instances", str(files / "instances.json")]
    command += ["--human", str(files / "human.json"), "--convention", "efuf"]
    assert score.main([*command, "--per-caption", str(files / place)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --per-caption") and error.count("\n") == 1
    assert (files / "c").read_text() == before


def test_a_null_hides_no_contradiction(tmp_path):
    """Fails if a null where a picture's name may stand switches the check of the others off."""
    asked = QUESTION | {"image": None, "file_name": "a.jpg"}
    said = {"question_id": 1, "answer": "no", "file_name": "b.jpg"}
    questions, answers = write(tmp_path / "q", [asked]), write(tmp_path / "a", [said])
    with pytest.raises(ValueError, match="a, row 1: file_name 'b.jpg' is not"):
        score.score_pope(questions, answers)

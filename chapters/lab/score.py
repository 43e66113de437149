"""Score answers and captions that were generated elsewhere, as the field does: CHAIR in two
conventions, POPE with two parsers.

From chapters/, each prints one JSON object:
    python -m lab.score pope --questions FILE --answers FILE [--parser official|strict]
    python -m lab.score chair --captions FILE --instances FILE... --human FILE...
        [--synonyms FILE] --convention official|efuf
    python -m lab.score compare A B
The scores carry a *card*: what was scored and how. `compare` refuses scores whose cards differ, and
names what differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from . import coco
from .chair import SYNONYMS, chair, convention


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _card(kind: str, rows: Sequence[object], generation: str | None, **how: object) -> dict:
    """What makes two scores comparable. generation: a JSON file that says how the text was made
    (prompt, decoding, max_new_tokens).
    """
    made = coco.read_rows(generation, {})[0] if generation else {}
    known = {name: made.get(name) for name in ("prompt", "decoding", "max_new_tokens")}
    versions = {package: version(package) for package in ("nltk", "textblob", "pluralizer")}
    return {
        "kind": kind,
        "n": len(rows),
        "images": _hash(rows),
        **how,
        **known,
        "versions": versions,
    }


def score_chair(
    captions: str,
    instances: Sequence[str],
    human: Sequence[str],
    synonyms: str | Path = SYNONYMS,
    name: str = "official",
    per_caption: str | None = None,
    generation: str | None = None,
) -> dict:
    """{"chair_s", "chair_i" (None if nothing is mentioned), "recall", "n", "card"}; per_caption: a
    JSON Lines file to write.

    Truth: the image's instance categories together with what its human captions mention. Raises
    ValueError naming file and row.
    """
    rules, rows = convention(name, synonyms), coco.read_captions(captions)
    shown, told = coco.read_instances(instances), coco.read_human_captions(human)
    truths = []
    for row, found in enumerate(rows, 1):
        image = found["image_id"]
        if image not in shown and image not in told:
            raise ValueError(
                f"{captions}, row {row}: image_id {image} is in none of the instances or human"
                " captions: add its files."
            )
        truths.append(rules.truth(shown.get(image, ()), told.get(image, ())))
    said = [rules.mentions(found["caption"]) for found in rows]
    if per_caption:
        lines = [
            {
                "image_id": found["image_id"],
                "mentions": names,
                "hallucinated": [n for n in names if n not in truth],
            }
            for found, names, truth in zip(rows, said, truths, strict=True)
        ]
        Path(per_caption).write_text("".join(json.dumps(line) + "\n" for line in lines))
    score = {key: None if value != value else value for key, value in chair(said, truths).items()}
    images = [found["image_id"] for found in rows]
    return score | {
        "card": _card(
            "chair", images, generation, convention=name, synonyms=_hash(coco.read_text(synonyms))
        )
    }


def says_no(answer: str, parser: str = "official") -> bool:
    """Is the answer a no? official: RUCAIBox/POPE evaluate.py, word by word, else yes. strict: the
    first word must be yes or no.

    Raises ValueError for another parser, and under "strict" for an answer that begins with neither.
    """
    if parser == "official":
        words = answer.split(".")[0].replace(",", "").split(" ")
        return any(word in ("No", "not", "no") for word in words)
    if parser != "strict":
        raise ValueError(f"--parser {parser}: the parsers are official and strict.")
    first = re.match(r"\W*(\w+)", answer)
    if not first or first.group(1).lower() not in ("yes", "no"):
        raise ValueError(
            f"the answer {answer!r:.80} begins with neither yes nor no: use --parser official, or"
            " ask for one word."
        )
    return first.group(1).lower() == "no"


def score_pope(
    questions: str, answers: str, parser: str = "official", generation: str | None = None
) -> dict:
    """{"accuracy", "precision", "recall", "f1", "yes_ratio", "n", "card"} with yes as positive; a
    ratio without a base is None.
    """
    asked = coco.read_questions(questions)
    said, predicted = coco.read_answers(answers, asked), []
    for question, answer in zip(asked, said, strict=True):
        try:
            predicted.append(not says_no(answer, parser))
        except ValueError as error:
            raise ValueError(
                f"{answers}, question_id {question['question_id']}: {error}"
            ) from error
    truth = [question["label"] == "yes" for question in asked]
    hits = sum(p and t for p, t in zip(predicted, truth, strict=True))
    ratio = {
        "precision": (hits, sum(predicted)),
        "recall": (hits, sum(truth)),
        "f1": (2 * hits, sum(predicted) + sum(truth)),
    }
    share = {name: part / whole if whole else None for name, (part, whole) in ratio.items()}
    n = len(asked)
    card = _card("pope", [[q["question_id"], q["text"]] for q in asked], generation, parser=parser)
    accuracy = sum(p == t for p, t in zip(predicted, truth, strict=True)) / n
    return {"accuracy": accuracy, **share, "yes_ratio": sum(predicted) / n, "n": n, "card": card}


def compare(one: str, other: str) -> dict:
    """{metric: other - one} of two saved scores; raises ValueError naming what differs if their
    cards do.
    """
    a, b = (coco.read_rows(path, {"card": dict})[0] for path in (one, other))
    pairs = {key: (a["card"].get(key), b["card"].get(key)) for key in sorted(a["card"] | b["card"])}
    differ = [f"{key}: {x!r} against {y!r}" for key, (x, y) in pairs.items() if x != y]
    if differ:
        raise ValueError(
            f"{one} and {other} cannot be compared; they differ in {'; '.join(differ)}."
        )
    return {
        key: b[key] - a[key]
        for key in a
        if isinstance(a[key], float) and isinstance(b.get(key), float)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (1 with one line on stderr for bad input)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pope = commands.add_parser("pope")
    pope.add_argument("--questions", required=True)
    pope.add_argument("--answers", required=True)
    pope.add_argument("--parser", default="official", choices=("official", "strict"))
    captions = commands.add_parser("chair")
    captions.add_argument("--captions", required=True)
    captions.add_argument("--instances", required=True, nargs="+")
    captions.add_argument("--human", required=True, nargs="+")
    captions.add_argument("--synonyms", default=SYNONYMS)
    captions.add_argument("--convention", required=True, choices=("official", "efuf"))
    captions.add_argument("--per-caption")
    for command in (pope, captions):
        command.add_argument(
            "--generation", help="JSON with prompt, decoding and max_new_tokens, for the card"
        )
    pair = commands.add_parser("compare")
    pair.add_argument("one")
    pair.add_argument("other")
    given = parser.parse_args(arguments)
    try:
        if given.command == "pope":
            result = score_pope(given.questions, given.answers, given.parser, given.generation)
        elif given.command == "chair":
            result = score_chair(
                given.captions,
                given.instances,
                given.human,
                given.synonyms,
                given.convention,
                given.per_caption,
                given.generation,
            )
        else:
            result = compare(given.one, given.other)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

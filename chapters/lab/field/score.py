"""Score answers and captions that were generated elsewhere, as the field does: CHAIR in two
conventions, POPE with two parsers.

From chapters/, each prints one JSON object:
    python -m lab.score pope --questions FILE --answers FILE [--parser official|strict]
    python -m lab.score chair --captions FILE --instances FILE... --human FILE...
        [--synonyms FILE] --convention official|efuf [--on-bad skip]
    python -m lab.score compare A B [--allow-unknown]
The scores carry a *card*: what was scored and how, and all that --generation FILE says of how the
text was made. `compare` refuses scores whose cards differ or do not say, and names what.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from ..files import read_text, write_text
from ..metrics.chair import SYNONYMS, chair, convention
from ..metrics.pope import pope, says_neither, says_no
from . import coco


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _card(kind: str, n: int, images: object, generation: str | None, **how: object) -> dict:
    """What makes two scores comparable. generation: a JSON file with one object that says how the
    text was made (prompt, decoding, max_new_tokens, ...); all of it is kept, apart from the rest.
    """
    made = coco.read_object(generation, {}) if generation else None
    if generation and not made:
        raise ValueError(f"{generation}: says nothing of how the text was made: fill it in.")
    versions = {package: version(package) for package in ("nltk", "textblob", "pluralizer")}
    return {
        "kind": kind,
        "n": n,
        "images": _hash(images),
        **how,
        "generation": made,
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
    on_bad: str = "error",
) -> dict:
    """{"chair_s", "chair_i" (None if nothing is mentioned), "recall", "n", "card"}; per_caption: a
    JSON Lines file to write.

    Truth: the image's instance categories together with what its human captions mention; every
    image must be in both. on_bad: "skip" leaves out captions that are bad or cannot be joined; the
    result then has "skipped", an error each, and its card how many: scores of other captions do not
    compare. Raises ValueError naming file and row.
    """
    rules = convention(name, synonyms)
    rows, shown, told = coco.read_chair(captions, instances, human, on_bad)
    truths = []
    for found in rows:
        image = found["image_id"]
        try:
            truths.append(rules.truth(shown[image], told[image]))
        except ValueError as error:
            files = ", ".join(map(str, instances))
            raise ValueError(f"{files}, image_id {image}: {error}") from error
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
        _write(per_caption, "".join(json.dumps(line) + "\n" for line in lines), captions)
    score = {key: None if value != value else value for key, value in chair(said, truths).items()}
    seen = sorted([found["image_id"], sorted(truth)] for found, truth in zip(rows, truths))
    left_out = {"n_skipped": len(rows.skipped)} if on_bad == "skip" else {}
    score |= {"skipped": rows.skipped} if left_out else {}
    return score | {
        "card": _card(
            "chair",
            len(rows),
            [image for image, _ in seen],
            generation,
            truth=_hash(seen),
            convention=name,
            synonyms=_hash(read_text(synonyms)),
            **left_out,
        )
    }


def _write(path: str | Path, text: str, source: str | Path) -> None:
    """Write --per-caption's file whole or not at all; raises ValueError if it cannot be, or would
    be on the source.
    """
    if Path(path).resolve() == Path(source).resolve():
        raise ValueError(f"--per-caption {path}: that is the file of captions: name another one.")
    try:
        write_text(path, text)
    except OSError as error:
        raise ValueError(f"--per-caption {error}") from error


def score_pope(
    questions: str, answers: str, parser: str = "official", generation: str | None = None
) -> dict:
    """{"accuracy", "precision", "recall", "f1", "yes_ratio", "neither", "n", "card"} with yes as
    positive; a ratio without a base is None.

    neither: the share of answers that `says_neither`, or were cut before they did; where it is
    high, the other numbers speak of a model that does not answer. Raises ValueError naming file and
    row of what cannot be read or joined, and under "strict" the answer that begins with neither.
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
    images = sorted([q["question_id"], str(q.get("image")), q["text"], q["label"]] for q in asked)
    card = _card("pope", len(asked), images, generation, parser=parser)
    neither = sum(map(says_neither, said)) / len(asked)
    return pope(predicted, truth) | {"neither": neither, "n": len(asked), "card": card}


CARD = {  # what a card must say, by its kind, to be compared
    "pope": ("n", "images", "parser", "versions"),
    "chair": ("n", "images", "convention", "synonyms", "versions"),
}


def compare(one: str, other: str, allow_unknown: bool = False) -> dict:
    """{metric: other - one, or None where one of them has none} of two saved scores.

    Raises ValueError naming what differs if their cards do, or what only one of them, or none, says
    about the generation. With allow_unknown such keys do not matter, and the result names them as
    "unknown".
    """
    a, b = _saved(one), _saved(other)
    differ, unknown = _differences(a["card"], b["card"])
    if differ:
        raise ValueError(
            f"{one} and {other} cannot be compared; they differ in {'; '.join(differ)}."
        )
    if unknown and not allow_unknown:
        raise ValueError(
            f"{one} and {other} cannot be compared; they do not both say {', '.join(unknown)}:"
            " score them with --generation, or give --allow-unknown."
        )
    found = {
        key: None if a.get(key) is None or b.get(key) is None else b[key] - a[key]
        for key in a | b
        if key not in ("n", "card", "skipped")
    }
    return found | ({"unknown": unknown} if unknown else {})


def _saved(path: str) -> dict:
    """A saved score; raises ValueError naming the file if it is none."""
    found = coco.read_object(path, {"card": coco.OBJECT})
    card = found["card"]
    known = CARD.get(card["kind"]) if isinstance(card.get("kind"), str) else None
    if known is None or (lost := [key for key in known if card.get(key) is None]):
        what = "kind, pope or chair" if known is None else lost[0]
        raise ValueError(f"{path}: no score of lab.score: its card has no {what}. Score it anew.")
    if not isinstance(card.get("generation", {}), (dict, type(None))):
        raise ValueError(f"{path}: the card's 'generation' must be an object. Score it anew.")
    for key, value in found.items():
        if key not in ("card", "skipped") and value is not None and coco.NUMBER.read(value) is None:
            raise ValueError(f"{path}: {key[:60]!r} must be a number or null. Score it anew.")
    return found


def _differences(a: dict, b: dict) -> tuple[list[str], list[str]]:
    """(what differs between two cards, what the two do not both say of the generation)."""
    differ, unknown = [], []
    for key in sorted((a.keys() | b.keys()) - {"generation"}):
        if not _same(a.get(key), b.get(key)):
            differ.append(f"{key}: {a.get(key)!r} against {b.get(key)!r}")
    made = a.get("generation") or None, b.get("generation") or None
    for name, x, y in _settings(*made, "generation"):
        if x is None or y is None:  # a null says nothing
            unknown.append(name)
        elif not _same(x, y):
            differ.append(f"{name}: {x!r} against {y!r}")
    return differ, unknown


def _settings(a: object, b: object, name: str) -> Iterator[tuple[str, object, object]]:
    """(dotted name, one's value, the other's) through objects that both have."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        yield name, a, b
        return
    for key in sorted(a.keys() | b.keys()):
        yield from _settings(a.get(key), b.get(key), f"{name}.{key}")


def _same(a: object, b: object) -> bool:
    """Equal as JSON is: 1 is 1.0, but true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def main(arguments: Sequence[str] | None = None, name: str | None = None) -> int:
    """The command line; returns the exit code (1 with one line on stderr for bad input)."""
    parser = argparse.ArgumentParser(
        prog=name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    captions.add_argument(
        "--on-bad", default="error", choices=("error", "skip"), help="skip: count and list bad rows"
    )
    for command in (pope, captions):
        command.add_argument(
            "--generation", help="JSON with prompt, decoding, max_new_tokens, ... for the card"
        )
    pair = commands.add_parser("compare")
    pair.add_argument("one")
    pair.add_argument("other")
    pair.add_argument("--allow-unknown", action="store_true", help="where a card does not say")
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
                given.on_bad,
            )
        else:
            result = compare(given.one, given.other, given.allow_unknown)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

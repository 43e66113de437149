"""Score answers and captions that were generated elsewhere, as the field does: CHAIR in two
conventions, POPE with two parsers.

From chapters/, each prints one JSON object:
    python -m lab.score pope --questions FILE --answers FILE [--parser official|strict]
    python -m lab.score chair --captions FILE --instances FILE... --human FILE...
        [--synonyms FILE] --convention official|efuf
    python -m lab.score compare A B [--allow-unknown]
The scores carry a *card*: what was scored and how, and all that --generation FILE says of how the
text was made. `compare` refuses scores whose cards differ or do not say, and names what.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from nltk.tokenize import NLTKWordTokenizer
from pluralizer import Pluralizer
from textblob.en.inflect import singularize

from sare_min.metrics import chair

from . import coco

# The 80 categories and their plain synonyms; the official list is read by --synonyms.
SYNONYMS = Path(__file__).parent / "coco_nouns.txt"
DOUBLE_WORDS = (
    "motor bike, motor cycle, air plane, traffic light, street light, traffic signal, "
    "stop light, fire hydrant, stop sign, parking meter, suit case, sports ball, baseball "
    "bat, baseball glove, tennis racket, wine glass, hot dog, cell phone, mobile phone, "
    "teddy bear, hair drier, potted plant, bow tie, laptop computer, home plate, train "
    "track"
).split(", ")
ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub".split()
EFUF_SYNONYMS = {
    "brother": "person",
    "pedestrian": "person",
    "coffee table": "dining table",
    "remote control": "remote",
}


@dataclass(frozen=True)
class Convention:
    """How a caption becomes objects. Source: LisaAnne/Hallucination utils/chair.py; starreeze/efuf
    evaluate/eval_auto.py.
    """

    name: str
    node: dict[str, str]  # word or phrase -> the object that it names
    double: dict[str, str] = field(repr=False)  # two words -> what they are read as
    repeats: bool = True  # count a word that stands twice in a caption twice

    def singular(self, word: str) -> str:
        """The official script's pattern.en (textblob carries its rules), or a noun lemma (EFUF's is
        WordNet's, here pluralizer's).
        """
        return _pattern_singular(word) if self.name == "official" else PLURALIZER.singular(word)

    def mentions(self, caption: str) -> list[str]:
        """The objects that a caption names, in order."""
        words = [self.singular(word) for word in _tokens(caption.lower())]
        merged, at = [], 0
        while at < len(words):  # greedily, from the left
            pair = " ".join(words[at : at + 2])
            merged.append(self.double.get(pair, words[at]))
            at += 2 if pair in self.double else 1
        if "toilet" in merged and "seat" in merged:  # "the seat of the toilet" is no chair
            merged = [word for word in merged if word != "seat"]
        found = [word for word in merged if word in self.node]
        return [self.node[word] for word in (found if self.repeats else dict.fromkeys(found))]


TOKENIZER, PLURALIZER = NLTKWordTokenizer(), Pluralizer()


def _tokens(text: str) -> list[str]:
    """nltk.word_tokenize without its downloaded sentence model: sentences end at . ? ! before a
    space, words by its own tokenizer.
    """
    sentences = re.split(r"(?<=[.?!])[\"')\]]*\s+", text)
    return [word for sentence in sentences for word in TOKENIZER.tokenize(sentence)]


def _pattern_singular(word: str) -> str:
    """pattern.en's singular, with its quirks ("glass" -> "glas"); textblob's copy differs in words
    on -ie and in compounds of bus.
    """
    found = singularize(word)
    if found.endswith("ie") and word.endswith("ies"):
        return word
    return word[:-2] if word.endswith("buses") and found == "bus" else found


def read_synonyms(path: str | Path = SYNONYMS) -> dict[str, str]:
    """Word -> object, from lines of "object, synonym, synonym" split at ", " exactly as the
    official script splits them.
    """
    node = {}
    for row, line in enumerate(coco.read_text(path).splitlines(), 1):
        names = line.strip().split(", ")
        if not names[0]:
            raise ValueError(
                f"{path}, row {row}: empty. Each line holds an object, then its synonyms, separated"
                " by ', '."
            )
        node |= dict.fromkeys(names, names[0])
    return node


def convention(name: str, synonyms: str | Path = SYNONYMS) -> Convention:
    """The "official" or the "efuf" convention; raises ValueError for another name."""
    node = read_synonyms(synonyms)
    if name == "official":
        double = {pair: pair for pair in DOUBLE_WORDS} | {
            f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS
        }
        double |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
        return Convention(
            name,
            node,
            double | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"},
        )
    if name == "efuf":
        node |= {word: node.get(noun, noun) for word, noun in EFUF_SYNONYMS.items()}
        double = {word: word for word in node if word.count(" ") == 1} | {
            "bow tie": "tie",
            "toilet seat": "toilet",
        }
        return Convention(name, node, double, repeats=False)
    raise ValueError(f"--convention {name}: the conventions are official and efuf.")


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
) -> dict:
    """{"chair_s", "chair_i" (None if nothing is mentioned), "recall", "n", "card"}; per_caption: a
    JSON Lines file to write.

    Truth: the image's instance categories together with what its human captions mention; every
    image must be in both. Raises ValueError naming file and row.
    """
    rules = convention(name, synonyms)
    rows, shown, told = coco.read_chair(captions, instances, human)
    truths = []
    for found in rows:
        image = found["image_id"]
        told_of = {noun for text in told[image] for noun in rules.mentions(text)}
        try:
            truths.append({_category(noun, rules) for noun in shown[image]} | told_of)
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
        Path(per_caption).write_text("".join(json.dumps(line) + "\n" for line in lines))
    score = {key: None if value != value else value for key, value in chair(said, truths).items()}
    seen = sorted([found["image_id"], sorted(truth)] for found, truth in zip(rows, truths))
    return score | {
        "card": _card(
            "chair",
            len(rows),
            [image for image, _ in seen],
            generation,
            truth=_hash(seen),
            convention=name,
            synonyms=_hash(coco.read_text(synonyms)),
        )
    }


def _category(noun: str, rules: Convention) -> str:
    """The official script passes a category through the synonyms; EFUF's takes it as it is."""
    if rules.name == "official" and noun not in rules.node:
        raise ValueError(
            f"the category {noun!r} is not in the synonyms: add a line for it, or give the official"
            " list by --synonyms."
        )
    return rules.node[noun] if rules.name == "official" else noun


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


def says_neither(answer: str) -> bool:
    """Has the answer none of the words yes, no and not, in any case? POPE's official parser takes
    it for a yes.
    """
    return not {"yes", "no", "not"} & set(re.findall(r"\w+", answer.lower()))


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
    hits = sum(p and t for p, t in zip(predicted, truth, strict=True))
    ratio = {
        "precision": (hits, sum(predicted)),
        "recall": (hits, sum(truth)),
        "f1": (2 * hits, sum(predicted) + sum(truth)),
    }
    share = {name: part / whole if whole else None for name, (part, whole) in ratio.items()}
    n = len(asked)
    neither = sum(map(says_neither, said)) / n
    images = sorted([q["question_id"], str(q.get("image")), q["text"], q["label"]] for q in asked)
    card = _card("pope", n, images, generation, parser=parser)
    accuracy = sum(p == t for p, t in zip(predicted, truth, strict=True)) / n
    yes = {"yes_ratio": sum(predicted) / n, "neither": neither}
    return {"accuracy": accuracy, **share, **yes, "n": n, "card": card}


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
        if key not in ("n", "card")
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
        if key != "card" and value is not None and coco.NUMBER.read(value) is None:
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

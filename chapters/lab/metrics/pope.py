"""POPE's arithmetic (arXiv 2305.10355): answers read as yes or no, and the counts of them."""

from __future__ import annotations

import re
from collections.abc import Sequence


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


def pope(said_yes: Sequence[bool], is_yes: Sequence[bool]) -> dict[str, float | None]:
    """{"accuracy", "precision", "recall", "f1", "yes_ratio"} with yes as positive; a ratio without
    a base is None.

    said_yes: what each answer says. is_yes: what is true. Raises ValueError if their lengths differ
    or there is none. Source: RUCAIBox/POPE evaluate.py.
    """
    n = len(is_yes)
    if len(said_yes) != n or not n:
        raise ValueError(f"pope: {len(said_yes)} answers to {n} questions: give one each.")
    hits = sum(said and true for said, true in zip(said_yes, is_yes))
    ratio = {
        "precision": (hits, sum(said_yes)),
        "recall": (hits, sum(is_yes)),
        "f1": (2 * hits, sum(said_yes) + sum(is_yes)),
    }
    accuracy = sum(said == true for said, true in zip(said_yes, is_yes)) / n
    shares = {name: part / whole if whole else None for name, (part, whole) in ratio.items()}
    return {"accuracy": accuracy, **shares, "yes_ratio": sum(said_yes) / n}

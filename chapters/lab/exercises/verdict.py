"""How an exercise answers: "right: ..." with what it teaches, or "not yet: ..." with a hint."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import wraps


class NotYet(AssertionError):
    """A hint at a mistake. It names what went wrong, and does not give the answer away."""


def exercise(check: Callable[..., str]) -> Callable[..., None]:
    """Print what a check has to say, also when the reader's code raises.

    check(*answers): returns what the exercise teaches, or raises NotYet with a hint.
    """

    @wraps(check)
    def told(*answers) -> None:
        try:
            print(f"right: {check(*answers)}")
        except NotYet as hint:
            print(f"not yet: {hint}")
        except Exception as error:  # the reader's: a traceback through our files would bury it
            print(f"not yet: {_in_one_line(error)}")

    return told


def _in_one_line(error: Exception) -> str:
    """The error and the reader's own line, which a cell or a script runs in __main__."""
    first = str(error).strip().split("\n")[0].split(". ")[0]  # torch's go on for a paragraph
    says = f"{type(error).__name__}: {first}"
    frames = traceback.walk_tb(error.__traceback__)
    own = [(frame, at) for frame, at in frames if frame.f_globals.get("__name__") == "__main__"]
    if not own:
        return f"your answer raised {says}"
    frame, at = own[-1]
    line = linecache.getline(frame.f_code.co_filename, at, frame.f_globals).strip()
    return f"your line {at}, `{line}`, raised {says}"


def filled(**answers: object) -> None:
    """Raise NotYet naming the first answer that is still None."""
    for name, answer in answers.items():
        if answer is None:
            raise NotYet(f"put your answer in place of None in {name}.")


def number(name: str, answer: object) -> float:
    """The answer as a float: a number, or a tensor that holds one. Raises NotYet for all else."""
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"{name} is to be a number, not {answer!r:.40}.") from None


def compare(
    name: str,
    answer: object,
    right: float,
    mistakes: Mapping[str, float],
    otherwise: str,
    within: float = 0.005,
) -> None:
    """Return if the answer is the right number, up to `within`.

    mistakes: {hint: the number that this mistake gives}. Raises NotYet with the hint whose number
    the answer is, or with `otherwise`.
    """
    given = number(name, answer)
    if abs(given - right) <= within:
        return
    for hint, value in mistakes.items():
        if abs(given - value) <= within:
            raise NotYet(hint)
    raise NotYet(otherwise)


def listed(name: str, answer: object, n: int | None = None) -> Sequence:
    """The answer as a list, of n entries if n is given. Raises NotYet for all else."""
    if isinstance(answer, str) or not hasattr(answer, "__iter__"):
        raise NotYet(f"{name} is to be a list, not {answer!r:.40}.")
    found = list(answer)
    if n is not None and len(found) != n:
        raise NotYet(f"{name} has {len(found)} entries, and is to have {n}.")
    return found

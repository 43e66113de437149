"""Chapter 05: EFUF's file, POPE's parser, thresholds from a share, one step on two processes."""

from __future__ import annotations

from collections.abc import Sequence

from ..field.photos import EFUF
from ..metrics.pope import says_neither, says_no
from .verdict import NotYet, exercise, filled, listed, number

ENTRY = {"sentence": "a kitchen with a cup, a fork", "position": 21}
ANSWERS = ("Yes, there is.", "No.", "bottle bottle bottle", "I do not see one.")
SCORES = (17.0, 31.0, 14.0, 26.0, 22.0, 28.0, 12.0, 25.0, 20.0, 30.0)  # of ten mentions
SHARE = 0.2  # of the mentions are wrong
RHO, MINE, OTHERS = 0.1, (3.0, 0.0), (0.0, 4.0)  # two processes' gradients of L_neg


@exercise
def efuf_target(my_target: str | None) -> str:
    """The text of ENTRY that is forgotten if its score is low, as EFUF cuts it."""
    filled(my_target=my_target)
    sentence, at = ENTRY["sentence"], ENTRY["position"]
    hints = {
        sentence[at - 1 :]: "that is how this book cuts it: EFUF's position is *after* the comma.",
        sentence[at:].strip(): "the position counts every character, and a space is one.",
        sentence[:at]: "that is the text *before* the position, which is read and not scored.",
        sentence[:at].rstrip(","): "that is the text before the position; what follows it counts.",
        sentence: "that is the whole sentence; its last sub-sentence starts at the position.",
    }
    if my_target == sentence[at:]:
        return "the separator stays out of EFUF's target, so the decision to go on is not erased."
    raise NotYet(hints.get(str(my_target), "sentence[position:] is what Python would say."))


@exercise
def pope_reading(my_yes: Sequence[bool | None] | None) -> str:
    """Which of ANSWERS POPE's official parser takes for a yes."""
    filled(my_yes=my_yes)
    given = listed("my_yes", my_yes, len(ANSWERS))
    if None in given:
        raise NotYet(f"put True or False in place of None in my_yes[{given.index(None)}].")
    for answer, says_yes in zip(ANSWERS, given, strict=True):
        if bool(says_yes) == (not says_no(answer)):
            continue
        if says_neither(answer):
            raise NotYet(f"{answer!r}: the parser looks for a no. What is all the rest?")
        if "not" in answer:
            raise NotYet(f"{answer!r}: 'not' is one of the words that make a no.")
        raise NotYet(f"{answer!r}: this one is read as it is meant.")
    return "a model that has stopped answering says yes to POPE, so count what is neither."


@exercise
def threshold(my_threshold: float | None) -> str:
    """A threshold below which the share SHARE of SCORES lies."""
    filled(my_threshold=my_threshold)
    limit = number("my_threshold", my_threshold)
    n, wanted = sum(score < limit for score in SCORES), round(SHARE * len(SCORES))
    if n == wanted:
        return "a share travels from CLIP to CLIP, a threshold does not."
    if limit == EFUF.forget_below:
        raise NotYet(f"that is EFUF's own, of another CLIP: here it forgets {n} mentions of ten.")
    if limit == SHARE:
        raise NotYet("that is the share itself; a threshold is a score.")
    if n == len(SCORES) - wanted:
        raise NotYet(f"it forgets {n} of ten: that is the share to keep. Forget the lowest.")
    raise NotYet(f"it forgets {n} of ten mentions; one in five is wrong.")


@exercise
def shared_step(my_eps: Sequence[float | None] | None) -> str:
    """eps* of the whole batch, from the gradients that two processes found on their parts."""
    filled(my_eps=my_eps)
    given = listed("my_eps", my_eps, 2)
    if None in given:
        raise NotYet("put your two numbers in place of None in my_eps.")
    eps = [number("an entry of my_eps", x) for x in given]

    def is_near(x: float, y: float) -> bool:
        return max(abs(eps[0] - x), abs(eps[1] - y)) < 1e-3

    hints = {
        (0.1, 0.0): "that is the step of the first process alone. Both must take the same one.",
        (0.0, 0.1): "that is the step of the second process alone. Both must take the same one.",
        (0.1, 0.1): "each part is normalised by itself, then added: its length is not rho.",
        (0.05, 0.05): "each part is normalised by itself, then averaged: that is m-SAM's way.",
        (0.3, 0.4): "the sum is right, but not normalised: the step's length is rho.",
        (-0.06, -0.08): "the sign is turned round: eps points *up* the gradient of L_neg.",
        (3.0, 4.0): "that is the summed gradient. The step has its direction and the length rho.",
        (0.15, 0.2): "that is the mean gradient times rho. The step's length is rho itself.",
    }
    total = [mine + other for mine, other in zip(MINE, OTHERS, strict=True)]
    scale = RHO / sum(x**2 for x in total) ** 0.5
    if is_near(*(scale * x for x in total)):
        return "gradients are summed first and normalised once, so eps is the whole batch's."
    for mistake, hint in hints.items():
        if is_near(*mistake):
            raise NotYet(hint)
    raise NotYet("add the two gradients, then give the sum the length rho.")

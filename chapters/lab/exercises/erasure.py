"""Chapter 02: sub-sentences, what is forgotten, and the sign of the forget loss."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..metrics.chair import exact
from ..world.curate import Thresholds, curate, sub_sentences
from ..world.scenes import OBJECTS
from .verdict import NotYet, compare, exercise, filled, listed

TEXT = "a street with a car; a bus, a truck!"
CAPTION = "an office with a laptop and a mouse, a book, a clock."
SCORES = {"laptop": 30.0, "mouse": 8.0, "book": 22.0, "clock": 15.0}
LIMITS = Thresholds(forget_below=10, retain_above=20, sentence_above=25)


@exercise
def cut(my_sub_sentences: Sequence[str] | None) -> str:
    """TEXT as a list of sub-sentences."""
    filled(my_sub_sentences=my_sub_sentences)
    found = listed("my_sub_sentences", my_sub_sentences)
    right = [TEXT[start:end] for start, end in sub_sentences(TEXT)]
    if found == right:
        return "each sub-sentence opens with its own separator; the last one may be no more."
    if found == re.findall(r"[^,.;!?:]+[,.;!?:]", TEXT):
        raise NotYet(
            "your separators belong to the sub-sentence *before* them. Then the comma would be"
            " kept, and only what follows it be forgotten: the model opens and stalls."
        )
    if "".join(map(str, found)) != TEXT:
        is_bare = not any(mark in "".join(map(str, found)) for mark in ",;!")
        what = "the separators are gone" if is_bare else "some character is lost or added"
        raise NotYet(f"{what}: put one after another, the sub-sentences must give the text again.")
    if found == [*right[:-2], right[-2] + right[-1]]:
        raise NotYet("the last mark opens a sub-sentence as well, however short.")
    raise NotYet("cut before each of the marks , . ; ! ? : and nowhere else.")


@exercise
def marks(my_forget: Sequence[str] | None, my_retain: Sequence[str] | None) -> str:
    """The objects of CAPTION whose sub-sentences are forgotten, and those that are retained."""
    filled(my_forget=my_forget, my_retain=my_retain)
    found = exact(OBJECTS).find(CAPTION)
    spans = curate([CAPTION], [SCORES], exact(OBJECTS).find, LIMITS)[0]
    right = {
        kind: {noun for noun, (at, _) in found if any(a <= at < b for a, b in spans[kind])}
        for kind in ("forget", "retain")
    }
    given = {
        "forget": set(listed("my_forget", my_forget)),
        "retain": set(listed("my_retain", my_retain)),
    }
    if given == right:
        return "one low score marks the whole sub-sentence, and what lies between is left alone."
    if strange := sorted(map(str, (given["forget"] | given["retain"]) - set(SCORES))):
        raise NotYet(f"{strange[0]!r} is no object of this caption: name the objects alone.")
    if given["forget"] == {"mouse"}:
        raise NotYet("a sub-sentence is forgotten as a whole, and the mouse is not alone in its.")
    if "clock" in given["forget"] | given["retain"]:
        raise NotYet("15 lies between the thresholds: neither below 10 nor above 20.")
    if "laptop" in given["retain"]:
        raise NotYet("one sub-sentence cannot be retained and forgotten: look at its lowest score.")
    kind = "forget" if given["forget"] != right["forget"] else "retain"
    raise NotYet(f"my_{kind} is not complete, or holds too much: go through the scores once more.")


@exercise
def loss_by_hand(my_loss: float | None) -> str:
    """EFUF's loss of one batch: CE 2.0 to forget, 0.3 to retain, 0.4 of sentences."""
    filled(my_loss=my_loss)
    mistakes = {
        "you add the cross-entropy of what is to be *forgotten*. Minimised, that would teach the"
        " model to say it.": 0.1 * 2.0 + 0.3 + 0.4,
        "the sign is right. lambda_neg weighs the forget part.": -2.0 + 0.3 + 0.4,
        "the signs of all three are turned round: grounded text is to stay *likely*.": (
            0.1 * 2.0 - 0.3 - 0.4
        ),
        "that is the forget part alone.": -0.1 * 2.0,
        "lambda_neg weighs the forget part only.": 0.1 * (-2.0 + 0.3 + 0.4),
        "all three are turned round, or grounded text is forgotten with the rest.": (
            -0.1 * 2.0 - 0.3 - 0.4
        ),
    }
    otherwise = "one part has a minus and a weight of 0.1, the other two are as they are."
    compare("my_loss", my_loss, -0.1 * 2.0 + 0.3 + 0.4, mistakes, otherwise)
    return "only the forget part is turned round; as it has no lowest value, somebody must stop it."

"""What is measured on a seed's held-out scenes: CHAIR and recall, NLLs, answers, the curation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sare_min.metrics import span_nll

from ..llava.speech import generate
from ..metrics.chair import chair
from . import encoded
from .bases import MAX_NEW_TOKENS, base_model
from .kit import Kit, get_kit, named
from .models import World
from .scenes import OBJECTS, PLACES, Scene, absent, question

SAID = ("chair_s", "chair_i", "recall", "n")  # what held_out says of greedy captions
NLL = ("nll_forget", "nll_retain")  # and of the spans


def noise_control(job: tuple[int, float]) -> dict[str, float]:
    """held_out and yes_rates of a base model of (seed, noise) whose training captions carry another
    share of noise.
    """
    seed, noise = job
    model, _ = base_model(seed, World(noise=noise))
    return held_out(get_kit(seed), model) | yes_rates(get_kit(seed), model)


def marked(kit: Kit, row: int, text: str) -> dict:
    """A held-out scene with what was said of it, as figures.fig_scenes draws it: each object
    named and whether it is invented.
    """
    scene = kit.test_scenes[row]
    return {
        "place": scene.place,
        "objects": scene.objects,
        "cells": scene.cells,
        "says": [[noun, noun not in scene.objects] for noun in named(text)],
    }


def describe(kit: Kit, model, **how) -> list[str]:
    """Greedy captions of the held-out scenes; how: generate's question or prefix."""
    return generate(model, kit.processor, kit.test_features, max_new_tokens=MAX_NEW_TOKENS, **how)


def said_chair(
    kit: Kit, captions: Sequence[str], places: Sequence[str] = tuple(PLACES)
) -> dict[str, float]:
    """CHAIR and recall of captions of the held-out scenes, all or those in some places."""
    chosen = [
        (scene, text)
        for scene, text in zip(kit.test_scenes, captions, strict=True)
        if scene.place in places
    ]
    return chair([named(text) for _, text in chosen], [scene.objects for scene, _ in chosen])


def sampled_chair(kit: Kit) -> dict[str, float]:
    """CHAIR and recall of the base model's captions of held-out scenes, sampled at temperature
    1.
    """
    return chair(
        [named(text) for text in kit.said["test"]],
        [scene.objects for scene in kit.scenes["test"]],
    )


def held_out(kit: Kit, model, apart: str = "", with_nll: bool = True) -> dict[str, float]:
    """Held-out scenes: CHAIR and recall of greedy captions (shares), NLL of spans of the base
    model's captions (nats a token).

    apart: a place; CHAIR and recall of all others are added, as "chair_s elsewhere" and so on.
    with_nll: False saves the time for it.
    """
    said = describe(kit, model)
    others = said_chair(kit, said, [place for place in PLACES if place != apart]) if apart else {}
    return (
        said_chair(kit, said)
        | (nll(kit, model) if with_nll else {})
        | {f"{key} elsewhere": value for key, value in others.items() if key != "n"}
    )


def nll(kit: Kit, model) -> dict[str, float]:
    """The NLL half of `held_out`."""
    spans = span_nll(model, encoded.test(kit))
    return {key: spans[key.removeprefix("nll_")] for key in NLL}


def yes_rates(kit: Kit, model) -> dict[str, float]:
    """Share of "yes" to "Is there a ...?": about an object that is shown, one usual here but
    absent, one from another place.
    """
    rng, rates = random.Random(kit.seed), {}
    kinds: dict[str, Callable[[Scene], Sequence[str]]] = {
        "shown": lambda s: s.objects,
        "usual": absent,
        "foreign": lambda s: [o for o in OBJECTS if o not in PLACES[s.place]],
    }
    for kind, choices in kinds.items():
        asked = [question(rng.choice(choices(scene))) for scene in kit.test_scenes]
        answers = generate(model, kit.processor, kit.test_features, asked, max_new_tokens=2)
        rates[kind] = sum(answer == "yes" for answer in answers) / len(answers)
    return rates


def judge_curation(kit: Kit) -> dict:
    """The CLIP scores of all mentions, split by the truth, and how well the thresholds sort them
    (shares).

    {"present", "absent": scores; "forget_below", "retain_above"; "precision", "recall" of forget;
    "retain_precision", "retain_recall"}.
    """
    captions = zip(kit.said["erase"], kit.scores, kit.scenes["erase"], strict=True)
    scored = [
        (score[noun], noun in scene.objects)
        for text, score, scene in captions
        for noun in named(text)
    ]
    limits = kit.thresholds
    present, absent_ = ([s for s, is_shown in scored if is_shown == kind] for kind in (True, False))
    forgotten = [is_shown for s, is_shown in scored if s < limits.forget_below]
    retained = [is_shown for s, is_shown in scored if s > limits.retain_above]
    return {
        "present": present,
        "absent": absent_,
        "forget_below": limits.forget_below,
        "retain_above": limits.retain_above,
        "precision": 1 - sum(forgotten) / len(forgotten),
        "recall": (len(forgotten) - sum(forgotten)) / len(absent_),
        "retain_precision": sum(retained) / len(retained),
        "retain_recall": sum(retained) / len(present),
    }

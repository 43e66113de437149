"""What a model says of a few scenes while it is attacked, word by word, and how sure it is of each
word: the data of the strip (04_strip) and of the slider.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from sare_min.attack import relearn
from sare_min.captions import encode, token_nll

from .. import files, jobs
from ..world import encoded, measured
from ..world.kit import RULES, Kit, get_kit
from ..world.scenes import PLACES
from .attacks import ATTACK_SOURCES
from .erasures import Run, erased

SOURCES = (*ATTACK_SOURCES, "chapters/lab/experiments/told")
jobs.remember(SOURCES)
PER_PLACE = 3  # scenes shown of each place
Word = tuple[str, float, str]  # the text with its leading space, its probability, its kind


@dataclass(frozen=True)
class Told:
    """What to listen to: an erasure under the book's relearning attack, after each of `at`
    samples.
    """

    run: Run
    at: tuple[int, ...]


def shown(kit: Kit) -> list[int]:
    """The rows of the first PER_PLACE held-out scenes of each place: no choice by what is said."""
    rows = {place: [] for place in PLACES}
    for row, scene in enumerate(kit.test_scenes):
        rows[scene.place].append(row)
    return [row for place in PLACES for row in rows[place][:PER_PLACE]]


def listen(spec: Told) -> dict:
    """{"chair_s": [of all held-out scenes, one at each of `at`], "says": [one at each: a list of
    Words for each scene of `shown`]}; cached.
    """
    path = jobs.folder("told", spec, SOURCES, partial(_listen, spec))
    return json.loads((path / "told.json").read_text())


def _listen(spec: Told, path: Path) -> None:
    kit, model = get_kit(spec.run.seed), erased(spec.run)
    found = {"chair_s": [], "says": []}
    for _ in relearn(model, encoded.attack(kit), spec.at, seed=kit.seed, progress=False):
        said = measured.describe(kit, model)
        found["chair_s"].append(measured.said_chair(kit, said)["chair_s"])
        found["says"].append(words(kit, model, said, shown(kit)))
    files.write_json(path / "told.json", found)


@torch.no_grad()
def words(kit: Kit, model: nn.Module, said: Sequence[str], rows: Sequence[int]) -> list[list[Word]]:
    """The captions of some held-out scenes as words; a word's probability is given all before it.

    said: captions of all held-out scenes, in order. An object's name is "true" or "invented", every
    other word is "plain".
    """
    captions = [said[row] for row in rows]
    data = encode(kit.processor, kit.test_features, captions, image=rows)
    likely = torch.exp(-token_nll(model, data))
    found = []
    for i, (row, text) in enumerate(zip(rows, captions, strict=True)):
        is_shown = set(kit.test_scenes[row].objects)
        kinds = {
            end: "true" if noun in is_shown else "invented" for noun, (_, end) in RULES.find(text)
        }
        split = kit.processor.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True
        )["offset_mapping"]
        ends = [0, *(end for _, end in split)]
        sure = likely[i][data.sentence[i]].tolist()[: len(split)]  # without the EOS
        found.append(
            [
                (text[start:end], p, kinds.get(end, "plain"))
                for (start, end), p in zip(pairwise(ends), sure, strict=True)
            ]
        )
    return found


def strip(seed: int, told: dict[str, dict], at: Sequence[int]) -> dict:
    """What figures.fig_strip and the slider take. told: {method: of `listen`}; the base model's may
    be shorter than the others', for nobody attacks it.
    """
    kit = get_kit(seed)
    scenes = [kit.test_scenes[row] for row in shown(kit)]
    return {
        "seed": seed,
        "at": list(at),
        "scenes": [{"place": s.place, "objects": s.objects, "cells": s.cells} for s in scenes],
        "chair_s": {name: found["chair_s"] for name, found in told.items()},
        "says": {name: found["says"] for name, found in told.items()},
    }

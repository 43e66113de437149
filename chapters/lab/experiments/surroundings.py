"""The loss around a base model, from which nothing was erased yet: where the steepest way to forget
leads, the opposite way, and a random one.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from sare_min.llava import trainable

from .. import files, jobs
from ..world import encoded, measured
from ..world.kit import get_kit
from .landscape import SOURCES as LANDSCAPE_SOURCES
from .landscape import along, random_direction, relapse_direction

SOURCES = (*LANDSCAPE_SOURCES, "chapters/lab/experiments/surroundings")
jobs.remember(SOURCES)
DISTANCES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
DIRECTIONS = ("forget", "remember", "random")


def around(seed: int) -> dict[str, list[dict[str, float]]]:
    """{direction: [measured.nll at each of DISTANCES]} around a seed's base model; cached.

    "remember" is grad L_neg, the way in which hallucinated sub-sentences get likelier fastest, and
    "forget" its opposite; both of the erasure's captions, with the truth's masks. Distances are L2,
    over all trained weights.
    """
    path = jobs.folder("around", (seed, DISTANCES), SOURCES, partial(_measure, seed))
    return json.loads((path / "around.json").read_text())


def _measure(seed: int, path: Path) -> None:
    kit = get_kit(seed)
    model = kit.fresh()
    up = relapse_direction(model, encoded.masked(kit, "erase", "oracle"))
    ways = {"forget": [-g for g in up], "remember": up, "random": random_direction(model, seed)}
    measure = partial(measured.nll, kit, model)
    found = {way: along(trainable(model), v, DISTANCES, measure) for way, v in ways.items()}
    files.write_json(path / "around.json", found)

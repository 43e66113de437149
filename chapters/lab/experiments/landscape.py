"""The loss around erased weights: along the relapse direction, along the path an attacker takes,
and along random directions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sare_min.attack import relearn
from sare_min.captions import Captions
from sare_min.llava import trainable
from sare_min.losses import counts, method_losses
from sare_min.unlearn import METHODS

from .. import files, jobs
from ..llava.borrowed import borrowed
from ..world import encoded, measured
from ..world.kit import get_kit
from ..world.measured import NLL, SAID
from .erasures import RUN_SOURCES, Run, erased, run

SOURCES = (
    *RUN_SOURCES,
    "sare_min/attack",
    "chapters/lab/llava/borrowed",
    "chapters/lab/experiments/landscape",
)
jobs.remember(SOURCES)
DISTANCES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.0)
DIRECTIONS = ("relapse", "attack", "random")


@dataclass(frozen=True)
class Slices:
    """What to measure: a run's erased weights, at distances along DIRECTIONS."""

    run: Run
    distances: tuple[float, ...] = DISTANCES
    attack_samples: int = (
        256  # the attack's path is the straight line to where this many samples lead
    )
    chair: bool = True  # CHAIR, too, and not the NLL alone, which takes half the time


@torch.no_grad()
def along(
    params: Sequence[Tensor],
    direction: Sequence[Tensor],
    distances: Sequence[float],
    measure: Callable[[], float],
) -> list[float]:
    """measure() at theta + d * v / ||v|| for each distance d (L2, weight units); the weights come
    back bit for bit.
    """
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in direction]))
    values = []
    with borrowed(params) as theta:
        for distance in distances:
            for parameter, start, v in zip(params, theta, direction, strict=True):
                parameter.copy_(start + distance / norm * v)
            values.append(measure())
    return values


def slices(spec: Slices) -> dict[str, list[dict[str, float]]]:
    """{direction: [what `measured` finds at each distance]}, {"attack_distance":
    how far the attack went (L2)}; cached.

    Raises ValueError if the distances do not begin with 0.
    """
    path = jobs.folder("slices", spec, SOURCES, lambda path: _measure_slices(path, spec))
    return json.loads((path / "slices.json").read_text())


def _measure_slices(path: Path, spec: Slices) -> None:
    if spec.distances[0] != 0:
        raise ValueError(
            f"slices: distances {spec.distances}: begin with 0, the erased weights themselves."
        )
    world, model, known = get_kit(spec.run.seed), erased(spec.run), run(spec.run)["erased"]
    found: dict = {}
    vectors = {
        "relapse": relapse_direction(model, encoded.masked(world, "erase", spec.run.masks)),
        "attack": attack_path(spec.run, spec.attack_samples),
        "random": random_direction(model, spec.run.seed),
    }
    for name, vector in vectors.items():
        # Its run has measured that
        found[name] = [{key: known[key] for key in (*(SAID if spec.chair else ()), *NLL)}]
        found[name] += along(
            trainable(model),
            vector,
            spec.distances[1:],
            partial(measured.held_out if spec.chair else measured.nll, world, model),
        )
    found["attack_distance"] = float(
        torch.linalg.vector_norm(torch.cat([v.reshape(-1) for v in vectors["attack"]]))
    )
    files.write_json(path / "slices.json", found)


def relapse_direction(
    model: nn.Module, data: Captions, batch_size: int = 256
) -> list[torch.Tensor]:
    """grad L_neg over the data, one tensor per trainable parameter: the way in which the forgotten
    spans come back fastest.
    """
    params, data = trainable(model), data.split_forget()[0]
    n, total = counts(data, "token"), [torch.zeros_like(p) for p in trainable(model)]
    for rows in torch.arange(len(data)).split(batch_size):
        loss = method_losses(model, data[rows], METHODS["SARE"], n)["neg"]
        for t, g in zip(
            total,
            torch.autograd.grad(loss, params, materialize_grads=True, allow_unused=True),
            strict=True,
        ):
            t += g
    return total


def attack_path(run: Run, samples: int) -> list[torch.Tensor]:
    """From the erased weights to those after `samples` relearning samples, one tensor per trainable
    parameter.
    """
    model = erased(run)
    start = [p.detach().clone() for p in trainable(model)]
    for _ in relearn(
        model, encoded.attack(get_kit(run.seed)), (samples,), seed=run.seed, progress=False
    ):
        pass
    return [p.detach() - s for p, s in zip(trainable(model), start, strict=True)]


def random_direction(model: nn.Module, seed: int) -> list[torch.Tensor]:
    """Gaussian, every weight alike."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in trainable(model)]

"""The loss around erased weights: along a random direction, along the relapse direction, and at the
worst point within a radius.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from sare_min.captions import Captions
from sare_min.llava import set_trainable, trainable

from ..experiments.gauges import span_ce, worst_in_ball
from ..experiments.landscape import along, random_direction, relapse_direction
from .measures import rows_that_fit

N_STEPS = 4  # of the search in each ball, on from the one before, as in chapter 03


def length(model: nn.Module, base: nn.Module | None = None) -> float:
    """L2 length of all weights but the vision tower's; base: of how far they moved from its."""
    others = dict(base.named_parameters()) if base else {}
    total = 0.0
    for name, weight in model.named_parameters():
        if "vision_tower" not in name:
            own = weight.detach().double().cpu()
            total += (
                float(((own - others[name].detach().double().cpu()) if base else own).norm()) ** 2
            )
    return total**0.5


def measure(
    model: nn.Module, base: nn.Module, data: Captions, shares: Sequence[float], seed: int = 0
) -> dict:
    """The forget level (nats a token) at distances from the erased weights, which come back.

    data: captions with forget masks, as many as one forward holds are used. shares: rising
    distances as shares of the length of the base's weights. Returns {"length" of the base's
    weights, "moved" (how far the erasure went, L2), "n" captions, "distances" (L2, 0 first),
    "random", "relapse", "worst": the level at each}.
    """
    found = {"length": length(base), "moved": length(model, base)}
    model = set_trainable(model, "all")
    params = trainable(model)
    data = data[: rows_that_fit(model)].to(params[0].device)
    loss, distances = partial(span_ce, model, data.until_forget()), [0.0]
    distances += [share * found["length"] for share in shares]
    found |= {"n": len(data), "distances": distances}
    ways = {"random": random_direction(model, seed), "relapse": relapse_direction(model, data)}
    for name, way in ways.items():
        way = [v.to(p) for v, p in zip(way, params, strict=True)]
        with torch.no_grad():
            found[name] = along(params, way, distances, lambda: loss().item())
    found["worst"], start = [found["relapse"][0]], None
    for radius in distances[1:]:
        value, start = worst_in_ball(
            loss, params, radius, n_steps=N_STEPS, restarts=0, seed=seed, start=start
        )
        found["worst"].append(value)
    return found

"""Attacks on an erased LLaVA: each gives a curve, a measurement at every strength.

Functions of (model, data, measure): what is measured, the caller says. The model is changed in
place while an attack runs; rounding and noise give it back bit for bit, fine-tuning does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from sare_min.attack import relearn
from sare_min.captions import DESCRIBE, Captions, render
from sare_min.llava import set_trainable

from ..experiments.attacks import add_noise, matrices, quantize
from ..field import devices
from ..llava.borrowed import borrowed
from .measures import rows_that_fit
from .settings import BATCH

Measure = Callable[[nn.Module], dict]
PARTS = {"relearn": "all", "lora": "lora"}  # an attack by fine-tuning -> what it trains
ENDS = ("", ",", ", a")  # behind the true caption, for the strengths 1, 2 and 3


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator under a seed, which a fresh adapter draws from; then as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def tuned(
    model: nn.Module,
    data: Captions,
    measure: Measure,
    kind: str = "relearn",
    lr: float = 2e-4,
    at: Sequence[int] = (0, 64, 128),
    seed: int = 0,
) -> list[dict]:
    """Fine-tune on hallucinated captions (sare_min.attack.relearn): [{"at": samples} | measure()].

    kind: "relearn" trains all but the vision tower, "lora" a fresh adapter. seed: of the adapter's
    start and of the captions' order. Sample counts beyond the data are left out; raises ValueError
    if none but 0 is left.
    """
    at = [n for n in at if n <= len(data)]
    if not any(at):
        raise ValueError(f"{len(data)} captions to attack with, {BATCH} at least are needed.")
    with seeded(seed):
        model = set_trainable(model, PARTS[kind])
    if rows_that_fit(model) < 64:
        devices.recompute(model)
    tune = relearn(model, data, at, lr, BATCH, seed, progress=False)
    with devices.scaled_backward(model):
        return [{"at": n} | measure(model) for n in tune]


def hurt(
    model: nn.Module, measure: Measure, kind: str, at: Sequence[float], seed: int = 0
) -> list[dict]:
    """ "noise" of so many standard deviations of each matrix, or "rounding" to so many bits, on all
    weights but the vision tower's: [{"at": strength} | measure()].
    """
    change = partial(add_noise, seed=seed) if kind == "noise" else quantize
    model, curve = set_trainable(model, "all"), []
    for strength in at:
        with borrowed(matrices(model)):
            change(model, strength)
            curve.append({"at": strength} | measure(model))
    return curve


def put_in(processor, told: Sequence[str], strength: int) -> list[str]:
    """Words for the model's mouth: 1 a true caption without its full stop; 2 and a comma; 3 and
    ", a", an opened clause.
    """
    opening = render(processor, DESCRIBE, opened=True)[len(render(processor, DESCRIBE)) :]
    return [f"{opening}{text.strip().removesuffix('.')}{ENDS[strength - 1]}" for text in told]

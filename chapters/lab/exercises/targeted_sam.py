"""Chapter 03: write the ascent step, then the whole gradient; its sign, and its work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from sare_min.unlearn import METHODS

from ..experiments.cheaper import passes
from . import ascent
from .verdict import NotYet, compare, exercise, filled

ROWS, WITH_FORGET = 64, 32


@exercise
def sign(my_sign: str | None) -> str:
    """The sign of the NLL's difference, away minus home, if the step follows +CE's gradient."""
    filled(my_sign=my_sign)
    if my_sign not in ("+", "-"):
        raise NotYet(f'my_sign is "+" or "-", not {my_sign!r:.40}.')
    if my_sign == "-":
        raise NotYet("so it is with the gradient of L_neg, which is -CE. Here CE itself goes up.")
    return "up CE means less likely words: that is away from the relapse, the trap."


def _toy_weights() -> tuple[list[nn.Parameter], list[Tensor]]:
    """Two parameters of unlike shape, and a direction whose norm is far from 1."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((300,), (20, 10))
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    return params, [torch.randn(p.shape, generator=generator) * (1 + 2 * p.ndim) for p in params]


@exercise
def step(my_step: ascent.Step) -> str:
    """my_step(params, direction, rho), a context manager: sign, length, and the way back."""
    made = my_step(*_toy_weights(), 0.2)
    if not hasattr(made, "__enter__"):
        raise NotYet("my_step makes no `with` block: does @contextmanager stand above it?")
    if getattr(made, "gen", made) is None:
        raise NotYet("my_step does not yield: the code of the block runs at the `yield`.")
    for check in (ascent.check_direction, ascent.check_length, ascent.check_gives_back):
        check(my_step, *_toy_weights(), 0.2)
    ascent.check_closed_form(my_step)
    return "up the gradient, by rho over all weights together, and home again bit for bit."


def _toy_losses() -> tuple[list[nn.Parameter], Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """(params, six rows, losses): target is minus the CE of "what is said", rest a regression."""
    generator = torch.Generator().manual_seed(1)
    params = [nn.Parameter(torch.randn(n, generator=generator)) for n in (3, 2)]
    rows = 2 * torch.randn(6, 5, generator=generator)

    def losses(batch: Tensor) -> tuple[Tensor, Tensor]:
        said = batch @ torch.cat(list(params))
        return 2 * logsigmoid(said).sum() / len(rows), ((said - 1) ** 2).sum() / (4 * len(rows))

    return params, rows, losses


@exercise
def gradient(my_gradient: ascent.Gradient) -> str:
    """my_gradient(params, batches, losses, rho): g in .grad, for one batch and in three parts."""
    params, rows, losses = _toy_losses()
    for batches in ([rows], list(rows.split(2))):
        ascent.check_gradient(my_gradient, params, batches, losses, 0.5)
    ascent.check_gradient_survives(my_gradient, params, batches, losses, 0.5)
    return "that is Targeted-SAM: only the hallucinations are looked for where they would be back."


@exercise
def work(my_efuf: float | None, my_sare: float | None) -> str:
    """Passes of one step of EFUF and of SARE on ROWS captions, WITH_FORGET with forget tokens."""
    filled(my_efuf=my_efuf, my_sare=my_sare)
    share = WITH_FORGET / ROWS
    mistakes = {
        "my_efuf counts a backward as 1; it is 2.": 2,
        "my_efuf lacks the backward, which is 2.": 1,
    }
    otherwise = "my_efuf: one forward and one backward over the batch."
    compare("my_efuf", my_efuf, passes(METHODS["EFUF"], share), mistakes, otherwise)
    mistakes = {
        "all rows pay there. A row without forget tokens needs nothing more than EFUF's.": 8,
        "my_sare is untargeted SAM's, everything twice. Rows without forget tokens need no second"
        " pass, and SARE takes two gradients at theta.": 6,
        "my_sare lacks a backward: at theta, L_neg has one of its own, for eps.": 3 + 3 * share,
        "my_sare lacks the pass at theta + eps.": 3 + 2 * share,
        "my_sare lacks the second forward, at theta + eps.": 3 + 4 * share,
        "my_sare is what is added to EFUF's.": 5 * share,
    }
    otherwise = "my_efuf is right. my_sare: what does a row with forget tokens need more?"
    compare("my_sare", my_sare, passes(METHODS["SARE"], share), mistakes, otherwise)
    return "a fair comparison counts passes: at equal steps SARE has had nearly twice the work."

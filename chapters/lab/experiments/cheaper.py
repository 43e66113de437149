"""Cheaper ascent steps, each said to be approximate: they take the place of
`sare_min.sam.targeted_sam` in a Method (`step`).

What can be saved is the first pass's gradient of L_neg: eps* only says where to look, and a rough
direction may do. `passes` counts what a step costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sare_min.losses import Method
from sare_min.sam import perturbed, swap, targeted_sam

# (params, batches, again, losses, rho) -> ||the ascent direction||, with g left in .grad
Step = Callable[..., float]
# A step of STEPS -> what a row with forget tokens costs beyond 3 passes; 5 if it is not here
FORGET_ROWS = {"kept": 3 + 2 / 4, "sampled": 3 + 3 / 4, "projector": 3 + 1}


def passes(method: Method, share: float, step: str = "") -> float:
    """Forward passes over a batch that one step costs; a backward counts as two.

    share: of rows with forget tokens. The plain step costs 3. Targeted-SAM adds 5 for those rows:
    they take part in the gradient of L_neg at theta (2), and go forward and backward once more at
    theta + eps (3). Untargeted SAM does that with all rows, and has no second loss at theta.
    """
    if not method.rho:
        return 3.0
    if method.perturb == ("neg",):
        return 3 + FORGET_ROWS.get(step, 5.0) * share
    return 6.0 if len(method.perturb) == 3 else 8.0


def _ascent(
    params: Sequence[nn.Parameter],
    again: Sequence,
    losses: Callable,
    rho: float,
    direction: Sequence[Tensor | None],
) -> float:
    with perturbed(params, direction, rho) as norm:
        for batch in again:
            losses(batch)[0].backward()
    return norm


def _fresh(
    params: Sequence[nn.Parameter],
    batches: Sequence,
    losses: Callable,
    some: Sequence[nn.Parameter] = (),
) -> list[Tensor | None]:
    """Leave the rest's gradient at theta in .grad; return the target's, of `some` parameters only
    (None for the others).
    """
    swap(params, [None] * len(params))
    total: dict[int, Tensor] = {}
    for batch in batches:
        target, rest = losses(batch)
        if some:
            _add(total, some, target, retain_graph=True)
        rest.backward()
    return [total.get(id(p)) for p in params]


def _add(
    total: dict[int, Tensor],
    some: Sequence[nn.Parameter],
    target: Tensor,
    retain_graph: bool = False,
) -> None:
    for p, g in zip(
        some,
        torch.autograd.grad(target, some, retain_graph=retain_graph, allow_unused=True),
        strict=True,
    ):
        if g is not None:
            total[id(p)] = total[id(p)] + g if id(p) in total else g


def kept(k: int) -> Step:
    """eps* is taken exactly every k-th step, and its direction kept for the k - 1 steps after it:
    one more copy of the weights.

    LookSAM (arXiv 2203.02714) keeps a part of the *gradient* instead and skips the second pass;
    here the second pass is the method.
    """
    if k < 1:
        raise ValueError(f"kept: k={k}: a direction serves 1 step or more.")
    memory: list[Tensor | None] = []
    done = 0

    def remember(direction: list) -> tuple:
        memory[:] = direction
        return direction

    def step(params, batches, again, losses, rho) -> float:
        nonlocal done
        if rho == 0:  # no direction to keep
            return targeted_sam(params, batches, again, losses, rho)
        done += 1
        if (done - 1) % k == 0:
            return targeted_sam(params, batches, again, losses, rho, turn=remember)
        _fresh(params, batches, losses)
        return _ascent(params, again, losses, rho, memory.copy())  # a list is emptied on the way

    return step


def sampled(share: float) -> Step:
    """eps* from the first rows of each micro-batch with forget tokens, at least one; rows are in
    random order as they are drawn.
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"sampled: share={share}: give a share of the forget rows above 0 and up to 1."
        )

    def step(params, batches, again, losses, rho) -> float:
        if rho == 0:
            return targeted_sam(params, batches, again, losses, rho)
        _fresh(params, batches, losses)
        total: dict[int, Tensor] = {}
        for batch in again:
            _add(total, params, losses(batch[: max(1, round(share * len(batch)))])[0])
        return _ascent(params, again, losses, rho, [total.get(id(p)) for p in params])

    return step


def over(some: Sequence[nn.Parameter]) -> Step:
    """eps* moves `some` of the parameters only; its length stays rho. The first pass then needs the
    gradients of those alone.
    """
    if not some:
        raise ValueError(
            "over: no parameter to step in: give some that train, e.g. llava's projector's."
        )

    def step(params, batches, again, losses, rho) -> float:
        if rho == 0:
            return targeted_sam(params, batches, again, losses, rho)
        return _ascent(params, again, losses, rho, _fresh(params, batches, losses, some))

    return step

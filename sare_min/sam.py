"""Targeted-SAM, the heart of SARE (arXiv 2601.16527). Read this file first.

With L_neg an *erasure* loss (it falls as the hallucinated span becomes unlikely), one step computes

    eps* = rho * grad L_neg(theta) / ||grad L_neg(theta)||                                       the relapse direction
    g    = lambda_neg * grad L_neg(theta + eps*) + grad [lambda_pos * L_pos + lambda_sent * L_sent](theta)

and hands g to the optimiser. `target` below is the loss that is perturbed (lambda_neg * L_neg for SARE) and `rest` all others: with
target = every loss this is ordinary SAM (arXiv 2010.01412), with rho = 0 it is the plain step (EFUF, arXiv 2402.09801).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")


@contextmanager
def perturbed(params: Sequence[Tensor], direction: Sequence[Tensor | None], rho: float) -> Iterator[float]:
    """Step to theta + rho * g / ||g||, yield ||g||, and step back bit for bit, also when the body raises.

    params: tensors of any shape and float dtype. direction: g, one tensor like each parameter (None: stays); its storage is taken
    over to keep theta, so the step costs no second copy of the weights. rho: L2 length over all parameters together, >= 0.
    Raises ValueError if rho is negative, if a gradient is not finite (naming the parameter by its place), or if all are zero.
    Source: SAM's ascent step (arXiv 2010.01412, eq. 2).
    """
    if not rho >= 0:
        raise ValueError(f"rho={rho}: the ascent step's length must be >= 0.")
    pairs = [(p, g) for p, g in zip(params, direction, strict=True) if g is not None]
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for _, g in pairs]
    norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
    if not 0 < norm < float("inf"):
        bad = [i for i, n in enumerate(norms) if not n.isfinite()]
        raise ValueError(f"the ascent direction is {f'not finite in parameter {bad[0]} of {len(norms)}' if bad else 'zero everywhere'}: "
                         "check that the batch has forget tokens and that the loss is finite.")
    with torch.no_grad():
        for parameter, gradient in pairs:  # swap: the gradient's storage keeps theta, the parameter holds theta + eps
            moved = torch.add(parameter, gradient.to(parameter.dtype), alpha=rho / norm)
            gradient.copy_(parameter)
            parameter.copy_(moved)
    try:
        yield norm
    finally:  # from the copy, not by subtracting eps: p + e - e is not p in floating point
        with torch.no_grad():
            for parameter, theta in pairs:
                parameter.copy_(theta)


def targeted_sam(params: Sequence[nn.Parameter], batches: Sequence[Batch], again: Sequence[Batch],
                 losses: Callable[[Batch], tuple[Tensor, Tensor]], rho: float) -> float:
    """Leave g = grad target(theta + eps*) + grad rest(theta) in .grad; return ||grad target(theta)|| (nan at rho = 0).

    batches: micro-batches that make up the whole batch. again: those whose target loss the second pass needs. losses(batch): the pair
    (target, rest), each a scalar already divided by the *whole* batch's counts, so that the sum over micro-batches is the loss: eps*
    comes from the whole batch's gradient, which is not m-SAM.
    """
    for parameter in params:
        parameter.grad = None
    if rho == 0:
        for batch in batches:
            sum(losses(batch)).backward()
        return float("nan")
    direction: list[Tensor | None] = [None] * len(params)
    for batch in batches:
        target, rest = losses(batch)
        if target.requires_grad:
            found = torch.autograd.grad(target, params, retain_graph=rest.requires_grad, allow_unused=True)
            direction = [new if old is None else old if new is None else old.add_(new) for old, new in zip(direction, found)]
        if rest.requires_grad:
            rest.backward()  # at theta: the grounded text keeps its ordinary gradient
    with perturbed(params, direction, rho) as norm:
        for batch in again:
            losses(batch)[0].backward()  # at theta + eps*, added to the same .grad
    return norm

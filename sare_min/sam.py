"""Targeted-SAM, the heart of SARE (arXiv 2601.16527). Read this file first.

With L_neg an *erasure* loss (it falls as the hallucinated span becomes unlikely), one step computes

    eps* = rho * grad L_neg(theta) / ||grad L_neg(theta)||        the relapse direction
    g    = lambda_neg * grad L_neg(theta + eps*)
           + grad [lambda_pos * L_pos + lambda_sent * L_sent](theta)

and hands g to the optimiser. `target` below is the loss that is perturbed (lambda_neg * L_neg for
SARE) and `rest` all others: with target = every loss this is ordinary SAM (arXiv 2010.01412), with
rho = 0 it is the plain step (EFUF, arXiv 2402.09801).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn, promote_types
from torch.distributed.tensor import DTensor
from torch.linalg import vector_norm


def length(gradients: Sequence[Tensor | None], what: str) -> float:
    """The L2 norm over all of them together (None: no part), computed in fp32 at least.

    Sharded ones (DTensors) count whole, and every process must ask. Raises ValueError naming `what`
    and the place of the first that is not finite.
    """
    there = {i: g for i, g in enumerate(gradients) if g is not None}
    norms = [vector_norm(g, dtype=promote_types(g.dtype, torch.float32)) for g in there.values()]
    norms = [(n.full_tensor() if isinstance(n, DTensor) else n).cpu() for n in norms]
    if bad := [i for i, norm in zip(there, norms) if not norm.isfinite()]:
        what += f" is not finite in parameter {bad[0]} of {len(gradients)}, no step taken"
        raise ValueError(f"{what}: lower the learning rate, or look at the data.")
    return float(vector_norm(torch.stack(norms))) if norms else 0.0


@contextmanager
def perturbed(
    params: Sequence[Tensor], direction: Sequence[Tensor | None], rho: float
) -> Iterator[float]:
    """Step to theta + rho * g / ||g||, yield ||g||, and step back bit for bit, also when the body
    raises.

    params: tensors of any shape and float dtype. direction: g, one tensor like each parameter
    (None: it stays); a list is emptied on the way, so that g is freed while theta is kept and the
    step costs one copy of the weights, not two. rho: L2 length over all parameters together, >= 0.
    Raises ValueError if rho is negative, if there is not one gradient a parameter, if one is not
    finite (naming its place), or if all are zero. Sharded weights (DTensors of FSDP2 or tensor
    parallelism) are stepped shard by shard, by the norm over all of them; every process must come
    here.
    Source: SAM's ascent step (arXiv 2010.01412, eq. 2).
    """
    if not rho >= 0:
        raise ValueError(f"rho={rho}: the ascent step's length must be >= 0.")
    if len(direction) != len(params):
        raise ValueError(f"{len(direction)} gradients for {len(params)} parameters: give one each.")
    if not (norm := length(direction, "the ascent direction")):
        raise ValueError("the ascent direction is zero everywhere: look at the forget tokens.")
    saved, queue = [], direction if isinstance(direction, list) else list(direction)
    try:
        with torch.no_grad():
            for parameter in params:
                if (gradient := queue.pop(0)) is not None:
                    saved.append((parameter, parameter.clone()))
                    wide = promote_types(parameter.dtype, torch.float32)
                    parameter.add_(gradient.to(wide), alpha=rho / norm)  # fp16 ends at 65504
                del gradient  # the last one, too, is freed before the body runs
        yield norm
    finally:  # from the copy, not by subtracting eps: p + e - e is not p in floating point
        with torch.no_grad():
            for parameter, theta in saved:
                parameter.copy_(theta)


def swap(params: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Put the gradients into .grad, one a parameter; return those that were there."""
    before = [parameter.grad for parameter in params]
    for parameter, gradient in zip(params, gradients):
        parameter.grad = gradient
    return before


def targeted_sam(
    params: Sequence[nn.Parameter],
    batches: Sequence,
    again: Sequence,
    losses: Callable[..., tuple[Tensor, Tensor]],
    rho: float,
    turn: Callable[[list], list] | None = None,
) -> float:
    """Leave g = grad target(theta + eps*) + grad rest(theta) in .grad; return ||grad
    target(theta)|| (nan at rho = 0).

    batches: micro-batches that make up the whole batch. again: those whose target loss the second
    pass needs. losses(batch): the pair (target, rest), each a scalar that requires grad, already
    divided by the *whole* batch's counts, so that the sum over micro-batches is the loss: eps*
    comes from the whole batch's gradient, which is not m-SAM. turn: a control's way to step in
    another direction.
    """
    direction: list[Tensor | None] = [None] * len(params)
    swap(params, direction)
    if rho == 0:
        for batch in batches:
            torch.add(*losses(batch)).backward()
        return float("nan")
    for batch in batches:
        target, rest = losses(batch)
        kept = swap(params, direction)
        # Not autograd.grad: FSDP2 gathers a shard's gradient in hooks that only .backward() calls.
        target.backward(retain_graph=True)
        direction = swap(params, kept)
        rest.backward()  # at theta: the grounded text keeps its ordinary gradient
        del target, rest, kept  # or the graph lives on while the next one is built
    with perturbed(params, turn(direction) if turn else direction, rho) as norm:
        for batch in again:
            losses(batch)[0].backward()  # at theta + eps*, added to the same .grad
    return norm

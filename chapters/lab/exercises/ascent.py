"""What an ascent step must do, as checks that are given the step. The test-suite runs them on
`sare_min.sam`, chapter 03 on the step that its reader wrote.

A step is used as `with step(params, direction, rho):` (as `sam.perturbed`), a gradient is called as
`gradient(params, batches, losses, rho)` (as `sam.targeted_sam`). Each check raises NotYet, which
names the mistake where it is a known one, and leaves params where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from .verdict import NotYet

Step = Callable[[Sequence[Tensor], list[Tensor | None], float], AbstractContextManager]
Losses = Callable[..., tuple[Tensor, Tensor]]  # of a micro-batch: (target, rest), scalars
Gradient = Callable[[Sequence[Tensor], Sequence, Losses, float], object]


class _Interrupt(KeyboardInterrupt):
    """What dies inside a step: no `except Exception` may be what gives the weights back."""


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor] | None = None) -> Tensor:
    """All entries in one float64 vector; None counts as zeros like its neighbour in `like`."""
    filled = [torch.zeros_like(p) if t is None else t for t, p in zip(tensors, like or tensors)]
    return torch.cat([t.detach().double().reshape(-1) for t in filled])


@contextmanager
def given_back(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield copies of params, and put them back at the end, whatever a step has left."""
    theta = [p.detach().clone() for p in params]
    try:
        yield theta
    finally:
        with torch.no_grad():
            for p, start in zip(params, theta, strict=True):
                p.copy_(start)


def _is_home(params: Sequence[Tensor], theta: Sequence[Tensor]) -> bool:
    return all(torch.equal(p, start) for p, start in zip(params, theta, strict=True))


def _eps(step: Step, params: Sequence[Tensor], direction: Sequence, rho: float) -> Tensor:
    """How far the step really moves the weights, as one vector; zero if nothing moves."""
    with given_back(params) as theta, step(params, list(direction), rho):
        return flat(params) - flat(theta)


def check_direction(step: Step, params: Sequence[Tensor], direction: Sequence, rho: float) -> None:
    """Fails if nothing moves, or the step leads anywhere but up the gradient it is given."""
    eps = _eps(step, params, direction, rho)
    if not eps.any():
        raise NotYet("inside the block the weights stand where they were: nothing has moved them.")
    cosine = float(torch.cosine_similarity(eps, flat(direction, params), 0))
    if cosine < -0.999:
        raise NotYet(
            "the wrong sign: the step leads *away* from the relapse. `direction` is the gradient of"
            " L_neg, which rises as the hallucination becomes likely: go up."
        )
    apart = [g for g in direction if g is not None and g.any()]
    units = [g if g is None or not g.any() else g / g.norm() for g in direction]
    is_by_tensor = float(torch.cosine_similarity(eps, flat(units, params), 0)) > 0.999
    if cosine < 0.999 and is_by_tensor and len(apart) > 1:
        raise NotYet(
            "normalised tensor by tensor: take one norm over all parameters together, or each"
            " tensor moves as far as any other."
        )
    if cosine < 0.999:
        raise NotYet("the step does not point along the gradient that it is given.")


def check_length(step: Step, params: Sequence[Tensor], direction: Sequence, rho: float) -> None:
    """Fails if the step's L2 length over all parameters together is not rho, to five digits."""
    eps = float(_eps(step, params, direction, rho).norm())
    norm = float(flat(direction, params).norm())
    if abs(eps - rho) <= 1e-5 * rho:
        return
    if abs(eps - rho * norm) <= 1e-3 * rho * norm:
        raise NotYet(
            "not normalised: the step is rho * g, so its length depends on the gradient. Divide by"
            " the norm of g."
        )
    if abs(eps - 1) <= 1e-5:
        raise NotYet("the step has length 1 and not rho.")
    raise NotYet(f"the step is {eps / rho:.4g} times as long as rho.")


def check_gives_back(step: Step, params: Sequence[Tensor], direction: Sequence, rho: float) -> None:
    """Fails if a weight differs by a bit after the block, whether it ends well or dies."""
    for dies in (False, True):
        with given_back(params) as theta:
            is_told = False
            try:
                with step(params, list(direction), rho):
                    there = flat(params)
                    if not (there - flat(theta)).any():
                        raise NotYet("inside the block nothing has moved.")
                    if dies:
                        raise _Interrupt
            except _Interrupt:
                is_told = True
            _check_home(params, theta, there, dies)
            if dies and not is_told:
                raise NotYet("the error inside the block is swallowed: nobody learns of it.")


def _check_home(params: Sequence[Tensor], theta: list[Tensor], there: Tensor, dies: bool) -> None:
    if _is_home(params, theta):
        return
    left, went = (flat(params) - flat(theta)).norm(), (there - flat(theta)).norm()
    if left < 0.01 * went:
        raise NotYet(
            "the weights come back nearly, and not bit for bit: w + eps - eps is not w in floating"
            " point. Keep a copy, and copy it back."
        )
    if dies:
        raise NotYet(
            "when the code inside the block fails, the weights stay where the step led: what gives"
            " them back belongs into a `finally`."
        )
    raise NotYet("after the block the weights stay where the step led: give them back.")


def check_uphill(
    step: Step, params: Sequence[Tensor], loss: Callable[[], Tensor], rho: float
) -> None:
    """Fails if the loss does not rise by about rho * ||its gradient||: the first order's promise.

    loss(): a scalar with a gradient for params. rho: small, or the first order does not hold.
    """
    before = loss()
    direction = list(torch.autograd.grad(before, params, allow_unused=True))
    norm = float(flat(direction, params).norm())
    with given_back(params), torch.no_grad(), step(params, direction, rho):
        rise = float(loss() - before)
    if rise <= 0:
        raise NotYet("the wrong sign: inside the block the loss is lower than outside.")
    if abs(rise - rho * norm) > 0.1 * rho * norm:
        raise NotYet(f"the loss rises by {rise:.3g}; rho * ||g|| is {rho * norm:.3g}.")


def check_closed_form(step: Step) -> None:
    """Fails if a gradient inside the block is not that at theta + eps: of x'Ax/2 + b'x it is
    A(theta + eps) + b.
    """
    matrix, b = torch.tensor([[3.0, 1.0], [1.0, 2.0]]), torch.tensor([-1.0, 0.5])
    x = torch.nn.Parameter(torch.tensor([0.7, -0.4]))
    slope = matrix @ x.detach() + b
    expected = matrix @ (x.detach() + 0.3 * slope / slope.norm()) + b
    with step([x], [slope.clone()], 0.3):
        (x @ matrix @ x / 2 + b @ x).backward()
    if x.grad is None or not torch.allclose(x.grad, expected):
        raise NotYet("a gradient that is taken inside the block is not that at theta + eps.")


# The whole gradient, by brute force.


def _slope(
    params: Sequence[Tensor], batches: Sequence, losses: Losses, which: int, eps: Tensor | int = 0
) -> Tensor:
    """grad of target (which: 0) or rest (1) over all batches, at theta + eps, as one vector."""
    with given_back(params):
        parts = (flat(params) + eps).split([p.numel() for p in params])
        with torch.no_grad():
            for p, part in zip(params, parts, strict=True):
                p.copy_(part.reshape(p.shape))
        total = sum(losses(batch)[which] for batch in batches)
        return flat(torch.autograd.grad(total, params, allow_unused=True), params)


def _reach(g: Tensor, rho: float) -> Tensor:
    return rho * g / g.norm() if g.any() else g


def _wrong_steps(
    params: Sequence[Tensor], batches: Sequence, losses: Losses, rho: float
) -> Iterator[tuple[str, Tensor]]:
    """(hint, the gradient that is left) of steps that lead elsewhere."""

    def target(eps: Tensor | int = 0, some: Sequence = batches) -> Tensor:
        return _slope(params, some, losses, 0, eps)

    home, kept = target(), _slope(params, batches, losses, 1)
    yield "there is no ascent step in it: this is the plain gradient, EFUF's.", home + kept
    yield (
        "the wrong sign: target's gradient is taken at theta - eps, away from the relapse.",
        target(-_reach(home, rho)) + kept,
    )
    yield (
        "not normalised: the step is rho * g, so its length depends on the gradient.",
        target(rho * home) + kept,
    )
    yield (
        "a step per micro-batch: that is m-SAM. Gather the direction over *all* batches before"
        " anything moves.",
        sum(target(_reach(target(0, [b]), rho), [b]) for b in batches) + kept,
    )
    whole = _reach(home + kept, rho)
    hint = "the step goes along the gradient of *all* losses: that is untargeted SAM. Only"
    yield f"{hint} `target` gives the direction.", target(whole) + kept
    there = _slope(params, batches, losses, 1, whole)
    yield f"{hint} `target` is perturbed.", target(whole) + there


def _wrong_sums(home: Tensor, there: Tensor, kept: Tensor, moved: Tensor) -> dict[str, Tensor]:
    """{hint: the gradient that is left} where the step is right and the sum is not.

    home, there: target's gradient at theta and at theta + eps; kept, moved: that of rest.
    """
    return {
        "the gradient of `rest` is taken at theta + eps. Grounded text keeps its gradient at"
        " theta.": there + moved,
        "the gradient of `rest` is missing.": there,
        "only the gradient of `rest` is there; target's at theta + eps is missing.": kept,
        "target's gradient at theta is still in .grad, and counts a second time: clear it after"
        " the step, or take it by torch.autograd.grad.": there + kept + home,
        "you descend on minus the target: it is a loss already, with its sign.": kept - there,
    }


def check_gradient(
    gradient: Gradient,
    params: Sequence[Tensor],
    batches: Sequence,
    losses: Losses,
    rho: float,
    rtol: float = 1e-3,
    atol: float = 1e-6,
) -> None:
    """Fails if .grad does not hold grad target(theta + eps*) + grad rest(theta) of the whole batch,
    by brute force, or if the weights do not come back bit for bit.
    """
    for p in params:
        p.grad = None
    with given_back(params) as theta:
        gradient(params, batches, losses, rho)
        left = float((flat(params) - flat(theta)).norm())
        is_home = _is_home(params, theta)
    found = [p.grad for p in params]
    for p in params:
        p.grad = None
    if not is_home:
        how = "nearly, and not bit for bit: keep a copy" if left < 0.01 * rho else "not at all"
        raise NotYet(f"the weights move and come back {how}.")
    if all(g is None for g in found):
        raise NotYet("no parameter has a .grad: nothing was left there.")
    _compare(flat(found, params), params, batches, losses, rho, {"rtol": rtol, "atol": atol})


def _compare(
    got: Tensor,
    params: Sequence[Tensor],
    batches: Sequence,
    losses: Losses,
    rho: float,
    within: dict[str, float],
) -> None:
    home, kept = (_slope(params, batches, losses, which) for which in (0, 1))
    eps = _reach(home, rho)
    there, moved = (_slope(params, batches, losses, which, eps) for which in (0, 1))
    if torch.allclose(got, there + kept, **within):
        return
    mistakes = [
        *_wrong_sums(home, there, kept, moved).items(),
        *_wrong_steps(params, batches, losses, rho),
    ]
    for hint, expected in mistakes:
        if torch.allclose(got, expected, **within):
            raise NotYet(hint)
    raise NotYet("what is in .grad is not the gradient that the equation asks for.")


def check_gradient_survives(
    gradient: Gradient, params: Sequence[Tensor], batches: Sequence, losses: Losses, rho: float
) -> None:
    """Fails if the weights stay at theta + eps when a forward dies there, or if none is run
    there.
    """
    was_there = []
    with given_back(params) as theta:

        def dying(batch) -> tuple[Tensor, Tensor]:
            if not _is_home(params, theta):
                was_there.append(True)
                raise _Interrupt
            return losses(batch)

        try:
            gradient(params, batches, dying, rho)
        except _Interrupt:
            is_told = True
        else:
            is_told = False
        is_home = _is_home(params, theta)
    if not was_there:
        raise NotYet("no loss was asked for at theta + eps.")
    if not is_home:
        raise NotYet(
            "when the forward at theta + eps fails, the weights stay there: move them inside a"
            " `with` block that gives them back."
        )
    if not is_told:
        raise NotYet("the error at theta + eps is swallowed: nobody learns of it.")

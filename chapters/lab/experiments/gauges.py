"""Flatness of the forgotten spans' CE around erased weights. A gauge is one number for one erased
model.

The first functions take loss() -> scalar and the parameters that it depends on, n weights in all; a
vector (n,) is those in a row, and distances are in weight units. `measure` and `measure_plane`
apply them to a run and cache the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector

from sare_min.captions import Captions, token_nll
from sare_min.llava import trainable
from sare_min.losses import counts

from .. import files, jobs
from ..evidence.stats import relapse_samples
from ..llava.borrowed import borrowed
from ..world import encoded, measured
from ..world.kit import get_kit
from .erasures import RUN_SOURCES, Run, erased, run
from .landscape import along, attack_path, random_direction

SOURCES = (
    *RUN_SOURCES,
    "sare_min/attack",
    "chapters/lab/evidence/stats",
    "chapters/lab/llava/borrowed",
    "chapters/lab/experiments/landscape",
    "chapters/lab/experiments/gauges",
)
jobs.remember(SOURCES)
Loss = Callable[[], Tensor]


def span_ce(model: nn.Module, data: Captions) -> Tensor:
    """Mean NLL in nats per forget token, all rows in one forward; raises ValueError without forget
    tokens.
    """
    return (token_nll(model, data) * data.forget).sum() / counts(data, "token")["neg"]


def gradient(
    loss: Tensor, params: Sequence[Tensor], grad_outputs: Tensor | None = None, **how
) -> Tensor:
    """The gradient (n,) of a scalar, or of a vector times grad_outputs; zero where it does not
    depend on a parameter.
    """
    return parameters_to_vector(
        torch.autograd.grad(
            loss, params, grad_outputs, materialize_grads=True, allow_unused=True, **how
        )
    )


def hessian(loss: Loss, params: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """v -> H v, both (n,), by double backward (Pearlmutter 1994). One forward serves all products:
    the weights must stay till then.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's fused attention has no double backward
        slope = gradient(loss(), params, create_graph=True)
    return lambda v: gradient(slope, params, v, retain_graph=True)


def extreme_eigenvalues(
    product: Callable[[Tensor], Tensor], n: int, n_vectors: int = 8, tol: float = 0.1, seed: int = 0
) -> tuple[float, float]:
    """(largest, smallest: the most negative) eigenvalue of the Hessian, by restarted Lanczos
    (ARPACK), mostly in n_vectors + 1 products.

    product: from `hessian`, float32, n >= 3 weights. n_vectors: size of the Lanczos basis. tol:
    residual relative to the eigenvalue, whose own error is far smaller. Raises scipy's
    ArpackNoConvergence after 20 restarts.
    """
    operator = LinearOperator(
        (n, n),
        matvec=lambda v: product(torch.from_numpy(v.reshape(-1).copy())).numpy(),
        dtype=np.float32,
    )
    start = torch.randn(n, generator=torch.Generator().manual_seed(seed)).numpy()
    values = eigsh(
        operator,
        k=2,
        which="BE",
        ncv=min(n, n_vectors),
        tol=tol,
        maxiter=20,
        v0=start,
        return_eigenvectors=False,
    )
    return float(values.max()), float(values.min())


def hutchinson_trace(
    product: Callable[[Tensor], Tensor], n: int, n_probes: int = 6, seed: int = 0
) -> tuple[float, float]:
    """(mean, its standard error) of z' H z over n_probes >= 2 Rademacher vectors z (n,): the trace,
    without bias.

    Source: Hutchinson 1990; PyHessian (arXiv 1912.07145).
    """
    probes = (
        torch.randint(0, 2, (n_probes, n), generator=torch.Generator().manual_seed(seed)) * 2.0
        - 1.0
    )
    values = torch.stack([z @ product(z) for z in probes])
    return float(values.mean()), float(values.std() / math.sqrt(n_probes))


def pieces(vector: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """A vector (n,) cut into one tensor like each parameter."""
    return [
        v.view_as(p) for v, p in zip(vector.split([p.numel() for p in params]), params, strict=True)
    ]


@contextmanager
def moving(params: Sequence[Tensor]) -> Iterator[Callable[[Tensor], None]]:
    """Yield move(delta): to theta + delta, a vector (n,); theta comes back bit for bit, also when
    the body raises.
    """
    with borrowed(params) as theta:

        def move(delta: Tensor) -> None:
            with torch.no_grad():
                for parameter, start, step in zip(
                    params, theta, pieces(delta, params), strict=True
                ):
                    parameter.copy_(start + step)

        yield move


def worst_in_ball(
    loss: Loss,
    params: Sequence[Tensor],
    radius: float,
    order: float = 2.0,
    n_steps: int = 8,
    restarts: int = 1,
    seed: int = 0,
    start: Tensor | None = None,
) -> tuple[float, Tensor]:
    """(lowest loss found, perturbation (n,)) within `radius` of the weights, which come back bit
    for bit, also after an exception.

    Projected normalised descent of the CE, that is ascent of the erasure loss: once from `start`
    (n,), by default the weights themselves, then from `restarts` random points. order: 2 is an L2
    ball, infinity a box with sign steps (as AdamW's first ones are). The true worst case may be
    lower. Raises ValueError on another order, a radius that is not positive, or a loss that is
    finite nowhere. Source: PGD (arXiv 1706.06083).
    """
    if order not in (2, math.inf) or not radius > 0:
        raise ValueError(
            f"worst_in_ball: order={order}, radius={radius}: give order 2 or infinity and a radius"
            " above zero."
        )
    # 2.5: as in PGD, so that it can turn at the rim
    generator, length = (torch.Generator().manual_seed(seed), 2.5 * radius / n_steps)

    def unit(v: Tensor) -> Tensor:
        # Zero where the gradient is
        return v.sign() if order == math.inf else nn.functional.normalize(v, dim=0)

    def inside(v: Tensor) -> Tensor:
        return (
            v.clamp(-radius, radius)
            if order == math.inf
            else v * (radius / max(radius, float(torch.linalg.vector_norm(v))))
        )

    start = torch.zeros_like(parameters_to_vector(params)) if start is None else start
    best, found = math.inf, start
    with moving(params) as move:
        for restart in range(restarts + 1):
            delta = (
                inside(torch.randn(len(start), generator=generator).to(start) * 2 * radius)
                if restart
                else start
            )
            for step in range(n_steps + 1):
                move(delta)
                value = loss()
                if value.item() < best:
                    best, found = value.item(), delta
                if step < n_steps:
                    delta = inside(delta - length * unit(gradient(value, params)))
    if best == math.inf:
        raise ValueError(
            "worst_in_ball: the loss is finite nowhere: check the weights and the batch."
        )
    return best, found


def worst_at(
    loss: Loss,
    params: Sequence[Tensor],
    measure: Callable[[], float],
    radii: Sequence[float],
    order: float = 2.0,
    *,
    home: float,
    **how,
) -> tuple[list[float], float]:
    """(lowest loss in each of the rising radii, each search going on from the one before; the
    relapse radius at what they found).

    measure: CHAIR_s, a share; not called again once it has passed one half. home: what it gives at
    the weights. how: settings of worst_in_ball.
    """
    lowest, shares, delta = [], [home], None
    for radius in radii:
        value, delta = worst_in_ball(loss, params, radius, order, start=delta, **how)
        lowest.append(value)
        if shares[-1] <= 0.5:
            with moving(params) as move:
                move(delta)
                shares.append(measure())
    return lowest, relapse_samples([0.0, *radii][: len(shares)], shares)


def plane(
    loss: Loss,
    params: Sequence[Tensor],
    directions: Sequence[Sequence[Tensor]],
    extent: float,
    n_points: int,
) -> dict:
    """loss() on a grid in the plane of two directions, the weights at its centre; they come back
    bit for bit.

    directions: two, each one tensor like each parameter: the first is the x axis, the second's part
    at right angles to it the y axis. Returns {"axis": n_points coordinates from -extent to extent
    (L2), "loss": a row per y of a value per x, "ends": the [x, y] of each direction's tip}. Raises
    ValueError if they are parallel. Source: Li et al. (arXiv 1712.09913), without their filter
    norms.
    """
    axes, ends = torch.linalg.qr(torch.stack([parameters_to_vector(d) for d in directions], dim=1))
    if not ends[1, 1].abs() > 1e-4 * ends[:, 1].norm():
        raise ValueError("plane: the two directions are parallel: give two that differ.")
    # QR leaves the axes' signs open
    axes, ends = (axes * ends.diag().sign(), ends * ends.diag().sign()[:, None])
    axis, values = torch.linspace(-extent, extent, n_points), []
    with moving(params) as move, torch.no_grad():
        for point in torch.cartesian_prod(axis, axis):
            move(axes @ point.flip(0))
            values.append(loss().item())
    rows = [values[i : i + n_points] for i in range(0, len(values), n_points)]
    return {"axis": axis.tolist(), "loss": rows, "ends": ends.T.tolist()}


@dataclass(frozen=True)
class Gauges:
    """What to measure around a run's erased weights: CE of the captions that said when to stop,
    CHAIR of the held-out scenes.
    """

    run: Run
    n_captions: int = 32  # of those that said when to stop
    n_vectors: int = 8  # Lanczos basis; a Hessian product takes twice as long as a gradient
    n_probes: int = 4  # Rademacher vectors
    ball: tuple[float, ...] = (0.2, 0.5, 0.7, 1.0)  # L2 radii
    # L-infinity radii, e.g. (8e-4, 1.6e-3): four AdamW steps of 2e-4 reach the first
    box: tuple[float, ...] = ()
    n_steps: int = (
        4  # at each radius, on from the one before; five from the weights themselves end higher
    )
    restarts: int = 0  # no random start ended lower in the runs tried
    random: float = 4.0  # L2 distance in random directions


def measure(spec: Gauges) -> dict[str, float]:
    """The gauges of one run, cached.

    ce (nats, at the erased weights); gradient_norm, gradient_norm_1; top_eigenvalue,
    bottom_eigenvalue; trace, trace_se; nats lost: worst_ball_R, random_loss (mean of three
    directions); relapse_radius_worst, the distance at which half of the captions hallucinate at the
    worst case in the ball; where the spec has a box, worst_box_R and relapse_radius_box, too.
    All are taken in the weights that the run trained, so those of a LoRA compare with LoRAs only.
    """
    return json.loads(
        (
            jobs.folder("gauges", spec, SOURCES, lambda path: _measure(path, spec)) / "gauges.json"
        ).read_text()
    )


def _measure(path: Path, spec: Gauges) -> None:
    world, model, seed = get_kit(spec.run.seed), erased(spec.run), spec.run.seed
    params, loss = (
        trainable(model),
        partial(span_ce, model, encoded.stop(world)[: spec.n_captions].until_forget()),
    )
    value, product, n = loss(), hessian(loss, params), sum(p.numel() for p in params)
    home, slope = value.item(), gradient(value, params)
    # 1: along a sign step
    found = {
        "ce": home,
        "gradient_norm": float(slope.norm()),
        "gradient_norm_1": float(slope.norm(1)),
    }
    found["top_eigenvalue"], found["bottom_eigenvalue"] = extreme_eigenvalues(
        product, n, spec.n_vectors, seed=seed
    )
    found["trace"], found["trace_se"] = hutchinson_trace(product, n, spec.n_probes, seed)

    def chair_s() -> float:
        return measured.said_chair(world, measured.describe(world, model))["chair_s"]

    how = {
        "home": run(spec.run)["erased"]["chair_s"],
        "n_steps": spec.n_steps,
        "restarts": spec.restarts,
        "seed": seed,
    }
    in_ball, found["relapse_radius_worst"] = worst_at(loss, params, chair_s, spec.ball, **how)
    found |= {f"worst_ball_{r:g}": home - ce for r, ce in zip(spec.ball, in_ball, strict=True)}
    if spec.box:
        in_box, found["relapse_radius_box"] = worst_at(
            loss, params, chair_s, spec.box, math.inf, **how
        )
        found |= {f"worst_box_{r:g}": home - ce for r, ce in zip(spec.box, in_box, strict=True)}
    ends = [
        along(params, random_direction(model, seed + i), [spec.random], lambda: loss().item())[0]
        for i in range(3)
    ]
    found["random_loss"] = home - sum(ends) / len(ends)
    files.write_json(path / "gauges.json", found)


@dataclass(frozen=True)
class Plane:
    """A map of the CE around a run's erased weights: x is straight downhill, y the rest of the
    attacker's way.
    """

    run: Run
    extent: float = 1.5  # L2, to each side
    n_points: int = 21  # a side; odd, so that the erased weights are one of them
    attack_samples: int = 256


def measure_plane(spec: Plane) -> dict:
    """`plane` for one run, cached; the second of its "ends" is where the attacker arrives."""
    return json.loads(
        (
            jobs.folder("planes", spec, SOURCES, lambda path: _measure_plane(path, spec))
            / "plane.json"
        ).read_text()
    )


def _measure_plane(path: Path, spec: Plane) -> None:
    model = erased(spec.run)
    params, loss = (
        trainable(model),
        partial(span_ce, model, encoded.stop(get_kit(spec.run.seed)).until_forget()),
    )
    directions = (
        pieces(-gradient(loss(), params), params),
        attack_path(spec.run, spec.attack_samples),
    )
    files.write_json(
        path / "plane.json", plane(loss, params, directions, spec.extent, spec.n_points)
    )

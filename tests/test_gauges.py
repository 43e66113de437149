"""Flatness gauges, against spectra, worst cases and maps that are known in closed form."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from lab.experiments import gauges
from lab.experiments.erasures import Run
from lab.experiments.gauges import (
    Gauges,
    Plane,
    extreme_eigenvalues,
    gradient,
    hessian,
    hutchinson_trace,
    moving,
    pieces,
    plane,
    span_ce,
    worst_at,
    worst_in_ball,
)
from lab.world import encoded, measured
from sare_min.llava import trainable
from sare_min.metrics import span_nll


def two_params(values):
    """The values as two parameters: a vector and the rest as a column."""
    x = torch.as_tensor(values, dtype=torch.float32)
    return [x[:2].clone().requires_grad_(), x[2:, None].clone().requires_grad_()]


def joined(params):
    return torch.cat([p.reshape(-1) for p in params])


def symmetric(spectrum, seed=0):
    turn, _ = torch.linalg.qr(
        torch.randn(len(spectrum), len(spectrum), generator=torch.Generator().manual_seed(seed))
    )
    return turn @ torch.diag(torch.tensor(spectrum, dtype=torch.float32)) @ turn.T


def copies(params):
    return [p.detach().clone() for p in params]


def are_equal(params, others):
    return all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_eigenvalues_and_trace_of_a_known_spectrum():
    """Fails if an end of the spectrum is taken by magnitude, if the two are swapped, or if the
    probes are biased.
    """
    spectrum = [-9.0, -8.0, 4.0, *np.linspace(-1, 1, 37)]
    params, matrix = two_params(torch.ones(40)), symmetric(spectrum)
    product = hessian(lambda: 0.5 * joined(params) @ matrix @ joined(params), params)
    assert extreme_eigenvalues(product, 40) == pytest.approx((4.0, -9.0), rel=1e-2)
    mean, error = hutchinson_trace(product, 40, n_probes=400)
    assert 0 < error < 1 and abs(mean - -13.0) < 3 * error
    assert hutchinson_trace(product, 40, seed=1) != hutchinson_trace(product, 40, seed=2)


def test_trace_of_a_diagonal_is_exact():
    """Fails if the probes are not of +1 and -1: then z_i^2 h_ii sums to the trace without any
    error.
    """
    params, diagonal = two_params(torch.zeros(5)), torch.tensor([3.0, -1.0, 0.5, 2.0, 4.0])
    product = hessian(lambda: 0.5 * (diagonal * joined(params) ** 2).sum(), params)
    assert hutchinson_trace(product, 5, n_probes=3) == pytest.approx((8.5, 0.0))


def test_hessian_of_a_network_is_the_dense_one():
    """Fails if a block between two parameters is lost, or if one that the loss ignores breaks the
    product.
    """
    generator = torch.Generator().manual_seed(0)
    inputs, shapes = torch.randn(7, 3, generator=generator), [(3, 4), (4,), (4, 2), (2, 2)]
    values = torch.randn(12 + 4 + 8 + 4, generator=generator)

    def output(vector):
        w, b, v, _ = (
            part.view(shape)
            for part, shape in zip(vector.split([12, 4, 8, 4]), shapes, strict=True)
        )
        return (torch.tanh(torch.tanh(inputs @ w + b) @ v) ** 2).mean()

    params = [
        part.view(shape).clone().requires_grad_()
        for part, shape in zip(values.split([12, 4, 8, 4]), shapes, strict=True)
    ]
    dense = torch.autograd.functional.hessian(output, values)
    product = hessian(lambda: output(joined(params)), params)
    torch.testing.assert_close(
        torch.stack([product(v) for v in torch.eye(28)]), dense, rtol=1e-4, atol=1e-6
    )
    exact = torch.linalg.eigvalsh(dense)
    assert extreme_eigenvalues(product, 28) == pytest.approx(
        (float(exact[-1]), float(exact[0])), rel=0.02
    )


def test_a_llava_can_be_differentiated_twice(model, data):
    """Fails on the CPU's fused attention, which has no double backward, or if the product is not
    the change of the gradient.
    """
    assert model.config._attn_implementation == "sdpa"  # what the math kernel is needed for
    params = trainable(model)

    def loss():
        return span_ce(model, data)

    v = torch.nn.functional.normalize(gradient(loss(), params), dim=0)
    found, slopes = hessian(loss, params)(v), []
    with moving(params) as move:
        for step in (3e-3, -3e-3):
            move(step * v)
            slopes.append(gradient(loss(), params))
    expected = (slopes[0] - slopes[1]) / 6e-3
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_span_ce_counts_forget_tokens(model, data):
    """Fails if it is a mean over rows or over other tokens; rows without any must not dilute it."""
    assert span_ce(model, data).item() == pytest.approx(span_nll(model, data)["forget"], rel=1e-5)
    assert span_ce(model, data).item() == pytest.approx(
        span_ce(model, data.split_forget()[0].until_forget()).item(), rel=1e-5
    )
    with pytest.raises(ValueError, match="no forget token"):
        span_ce(model, replace(data, forget=torch.zeros_like(data.forget)))


@pytest.mark.parametrize("order, dual", [(2.0, 2.0), (math.inf, 1.0)])
def test_worst_of_a_linear_loss(order, dual):
    """Fails if the descent ascends, if it leaves the ball or the box, or if it stops short of its
    rim.
    """
    params, slope = two_params([1.0, 2.0, 3.0]), torch.tensor([2.0, -6.0, 9.0])

    def loss():
        return slope @ joined(params)

    home, before = loss().item(), copies(params)
    lowest, delta = worst_in_ball(loss, params, 0.3, order)
    assert home - lowest == pytest.approx(
        0.3 * float(torch.linalg.vector_norm(slope, ord=dual)), rel=1e-4
    )
    assert float(torch.linalg.vector_norm(delta, ord=order)) == pytest.approx(0.3, rel=1e-5)
    assert are_equal(params, before)
    with moving(params) as move:
        move(delta)
        assert loss().item() == pytest.approx(lowest, rel=1e-5)


def test_worst_of_a_quadratic_is_the_trust_regions():
    """Fails if one step to the rim along the first gradient is taken for the worst case: the way
    there turns.
    """
    curvature, target = torch.tensor([1.0, 4.0, 0.2]), torch.tensor([3.0, 1.0, -2.0])
    params = two_params(torch.zeros(3))

    def loss():
        return 0.5 * (curvature * (joined(params) - target) ** 2).sum()

    def step(multiplier):  # minimiser of loss + multiplier / 2 * |x|^2
        return curvature * target / (curvature + multiplier)

    exact = step(brentq(lambda multiplier: float(step(multiplier).norm()) - 1.5, 0, 100))
    lowest, delta = worst_in_ball(loss, params, 1.5, n_steps=60)
    torch.testing.assert_close(delta, exact, atol=0.05, rtol=0)
    with moving(params) as move:
        move(exact)
        assert loss().item() == pytest.approx(lowest, rel=1e-3)
        move(1.5 * torch.nn.functional.normalize(curvature * target, dim=0))
        assert loss().item() > 1.05 * lowest


@pytest.mark.parametrize("order, lowest", [(2.0, -2.0), (math.inf, -2.5)])
def test_a_restart_leaves_a_stationary_point(order, lowest):
    """Fails if every start is the weights themselves: on a saddle their gradient is zero."""
    params, curvature = two_params(torch.zeros(3)), torch.tensor([-4.0, 2.0, -1.0])

    def loss():
        return 0.5 * (curvature * joined(params) ** 2).sum()

    assert worst_in_ball(loss, params, 1.0, order, restarts=0)[0] == 0
    assert worst_in_ball(loss, params, 1.0, order, n_steps=40, restarts=10)[0] == pytest.approx(
        lowest, rel=1e-2
    )


@pytest.mark.parametrize("order, radius", [(2.0, 0.5), (math.inf, 1e-3)])
def test_the_weights_of_a_llava_come_back(model, data, order, radius):
    """Fails if a search leaves a trace in the weights, also when the loss raises under way."""
    params = trainable(model)
    before, seen = copies(params), []

    def loss():
        value = span_ce(model, data)
        seen.append((value.item(), are_equal(params, before)))
        return value

    def breaks():
        if len(seen) == 3:
            raise KeyboardInterrupt
        return loss()

    lowest, _ = worst_in_ball(loss, params, radius, order, n_steps=2, restarts=0)
    assert lowest < seen[0][0] - 0.1 and seen[0][1] and not seen[1][1]  # the weights did move
    assert are_equal(params, before)
    for search in (
        lambda: worst_in_ball(breaks, params, radius, order, n_steps=4),
        lambda: plane(breaks, params, (before, [torch.ones_like(p) for p in params]), 1.0, 3),
    ):
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            search()
        assert not seen[2][1] and are_equal(params, before)


def test_distances_to_the_relapse():
    """Fails if the radius is not interpolated, not censored, or measured at other weights than the
    worst case's.
    """
    params, slope = two_params(torch.zeros(3)), torch.tensor([2.0, -6.0, 9.0])
    seen = []

    def measure():  # the share of captions that hallucinate is how far downhill the weights are
        seen.append(float(-slope @ joined(params).detach() / slope.norm()))
        return seen[-1]

    lowest, radius = worst_at(
        lambda: slope @ joined(params), params, measure, (0.2, 0.4, 0.8, 1.6), home=0.0, n_steps=4
    )
    assert radius == pytest.approx(0.5) and seen == pytest.approx([0.2, 0.4, 0.8])  # and no further
    assert lowest == pytest.approx([-2.2, -4.4, -8.8, -17.6])
    lowest, _ = worst_at(
        lambda: (joined(params) - 0.1).square().sum(),
        params,
        measure,
        (0.15, 10.0),
        home=0.0,
        n_steps=1,
    )
    # A wide search that overshoots keeps what a narrow one has found
    assert lowest[1] <= lowest[0] < 0.01
    assert worst_at(lambda: slope @ joined(params), params, measure, (0.2, 0.4), home=0.0)[1] == 0.4
    seen.clear()
    # It has relapsed already
    assert (
        worst_at(lambda: slope @ joined(params), params, measure, (0.2, 0.4), home=0.6)[1] == 0.0
        and not seen
    )


def test_plane_of_a_linear_loss():
    """Fails if the axes are swapped, flipped or not at right angles, or if the centre is not the
    weights' own loss.
    """
    params, slope = two_params([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 10.0, 100.0, 1000.0])
    first, second = torch.tensor([0.0, 0.0, -2.0, 0.0]), torch.tensor([3.0, 0.0, 1.0, 0.0])

    def loss():
        return slope @ joined(params)

    home, before = loss().item(), copies(params)
    found = plane(loss, params, (pieces(first, params), pieces(second, params)), 2.0, 5)
    assert found["axis"] == pytest.approx([-2, -1, 0, 1, 2]) and found["loss"][2][2] == home
    torch.testing.assert_close(torch.tensor(found["ends"]), torch.tensor([[2.0, 0.0], [-1.0, 3.0]]))
    expected = [[home - 100 * x + y for x in found["axis"]] for y in found["axis"]]
    torch.testing.assert_close(torch.tensor(found["loss"]), torch.tensor(expected))
    assert are_equal(params, before)


def test_what_cannot_be_measured_is_named():
    params = two_params([1.0, 2.0, 3.0])
    for wrong in ({"order": 1.0, "radius": 1.0}, {"radius": 0.0}, {"radius": float("nan")}):
        with pytest.raises(ValueError, match="give order 2 or infinity and a radius above zero"):
            worst_in_ball(lambda: joined(params).sum(), params, **wrong)
    with pytest.raises(ValueError, match="finite nowhere"):
        worst_in_ball(lambda: joined(params).sum() * float("nan"), params, 1.0)
    with pytest.raises(ValueError, match="parallel"):
        plane(lambda: joined(params).sum(), params, (params, [-2 * p for p in params]), 1.0, 3)


def test_gauges_of_a_run(model, data, tmp_path, monkeypatch):
    """Fails if a gauge is lost, is not a number, or moves the erased weights; a tiny kit stands in
    for the trained one.
    """
    world = None
    monkeypatch.setattr(encoded, "stop", lambda world: data)
    monkeypatch.setattr(measured, "describe", lambda world, m: span_nll(m, data)["forget"])
    monkeypatch.setattr(measured, "said_chair", lambda world, nll: {"chair_s": 1 / nll})
    monkeypatch.setattr(gauges, "get_kit", lambda seed: world)
    monkeypatch.setattr(gauges, "erased", lambda run: model)
    monkeypatch.setattr(
        gauges,
        "run",
        lambda run: {"erased": measured.said_chair(world, measured.describe(world, model))},
    )
    monkeypatch.setattr(
        gauges, "attack_path", lambda run, samples: gauges.random_direction(model, 1)
    )
    before = copies(trainable(model))
    gauges._measure(
        tmp_path, Gauges(Run(0, "EFUF"), ball=(0.1, 0.5), box=(1e-3,), n_steps=3, n_probes=2)
    )
    gauges._measure_plane(tmp_path, Plane(Run(0, "EFUF"), n_points=3))
    found = json.loads((tmp_path / "gauges.json").read_text())
    assert all(math.isfinite(value) for value in found.values())
    assert {
        "top_eigenvalue",
        "bottom_eigenvalue",
        "trace",
        "trace_se",
        "gradient_norm",
        "gradient_norm_1",
        "worst_box_0.001",
        "relapse_radius_worst",
        "relapse_radius_box",
        "random_loss",
    } < set(found)
    slope = gradient(span_ce(model, data.until_forget()), trainable(model))
    assert found["gradient_norm"] == pytest.approx(float(slope.norm()), rel=1e-4)
    assert found["gradient_norm_1"] == pytest.approx(float(slope.abs().sum()), rel=1e-4)
    assert (
        0.5 < found["worst_ball_0.1"] / (0.1 * found["gradient_norm"]) < 2
        and found["worst_ball_0.5"] > found["worst_ball_0.1"]
    )
    assert json.loads((tmp_path / "plane.json").read_text())["loss"][1][1] == pytest.approx(
        found["ce"]
    )
    assert are_equal(trainable(model), before)

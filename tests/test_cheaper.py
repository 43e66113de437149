"""Approximate ascent steps: exact where they claim to be, and cheaper by what is said."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_llava

from lab.experiments import cheaper, presets
from lab.experiments.erasures import STEPS
from sare_min.captions import token_nll
from sare_min.llava import trainable
from sare_min.sam import perturbed
from sare_min.unlearn import METHODS, get_method, gradient


def after(model, data, step=None, method="SARE", micro=64):
    """The gradient that a step leaves, (number of weights,), and its log."""
    row = METHODS[method] if step is None else replace(METHODS[method], step=step)
    log = gradient(model, data, row, micro)
    return torch.cat(
        [
            torch.zeros(p.numel()) if p.grad is None else p.grad.reshape(-1).clone()
            for p in trainable(model)
        ]
    ), log


def apart(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("micro", [64, 2])
@pytest.mark.parametrize(
    "exact",
    [
        lambda m: cheaper.kept(1),
        lambda m: cheaper.sampled(1.0),
        lambda m: cheaper.over(trainable(m)),
    ],
)
def test_nothing_left_out_is_the_exact_step(data, exact, micro):
    """Fails if an approximation that leaves nothing out differs from Targeted-SAM, in gradient,
    logged losses or norm.
    """
    model = tiny_llava()
    want, want_log = after(model, data, micro=micro)
    for _ in range(2):
        found, log = after(model, data, exact(model), micro=micro)
        assert apart(found, want) < 1e-5
        assert log == pytest.approx(want_log, rel=1e-4)


def test_a_kept_direction_is_the_old_one(data):
    """Fails if the second of two steps takes a direction of its own, if the third does not, or if
    it is kept by reference and changes.
    """
    model, step = tiny_llava(), cheaper.kept(2)
    first, other = data[torch.tensor([0, 1, 6])], data[torch.tensor([2, 3, 7])]
    _, old = after(model, first, step)
    found, log = after(model, other, step)
    own, _ = after(model, other)
    assert log["norm"] == pytest.approx(old["norm"]) and apart(found, own) > 1e-3
    with_old = cheaper.kept(2)
    after(model, first, with_old)
    assert apart(after(model, other, with_old)[0], found) == 0
    third, _ = after(model, other, step)
    assert apart(third, own) < 1e-6
    fresh = after(model, other)[1]["norm"]
    # The fourth keeps the third's, no longer the first's
    assert after(model, first, step)[1]["norm"] == pytest.approx(fresh)


def test_a_step_in_the_projector_leaves_the_rest_at_theta(data):
    """Fails if other weights move in the ascent step, or if its length is not rho."""
    model = tiny_llava()
    inside = list(model.model.multi_modal_projector.parameters())
    found, _ = after(model, data, STEPS["projector"](model, 0))
    params, method = trainable(model), METHODS["SARE"]

    def l_neg():
        return -method.lambda_neg * (token_nll(model, data) * data.forget).sum() / data.forget.sum()

    direction = torch.autograd.grad(l_neg(), inside, allow_unused=True)
    with perturbed(inside, direction, method.rho):
        there = torch.autograd.grad(l_neg(), params, allow_unused=True)
    rest, _ = after(model, data, method="EFUF")
    at_theta = torch.autograd.grad(l_neg(), params, allow_unused=True)
    change = torch.cat(
        [
            torch.zeros(p.numel()) if g is None else (g - h).reshape(-1)
            for p, g, h in zip(params, there, at_theta, strict=True)
        ]
    )
    assert apart(found - rest, change) < 1e-3 and float(change.norm()) > 0


def test_a_share_of_the_rows_gives_another_direction(data):
    """Fails if `sampled` ignores its share, or takes no row when the share rounds to none."""
    model = tiny_llava()
    whole, few = after(model, data)[1]["norm"], after(model, data, cheaper.sampled(0.01))[1]["norm"]
    one = data[torch.tensor([0])]
    alone = (
        -METHODS["SARE"].lambda_neg * (token_nll(model, one) * one.forget).sum() / data.forget.sum()
    )
    grads = torch.autograd.grad(alone, trainable(model), allow_unused=True)
    norm = torch.cat([g.reshape(-1) for g in grads if g is not None]).norm()
    assert few == pytest.approx(float(norm), rel=1e-4) and few < 0.9 * whole


@pytest.mark.parametrize("name", ["kept", "sampled", "projector", "random", "wrong sign"])
def test_every_step_puts_the_weights_back(data, name):
    """Fails if an approximate step leaves theta changed, by one bit, or steps at rho = 0."""
    model = tiny_llava()
    before = [p.detach().clone() for p in trainable(model)]
    step = STEPS[name](model, 0)
    for _ in range(5):
        after(model, data, step)
    assert all(map(torch.equal, before, trainable(model)))
    plain = get_method("SARE", rho=0.0, step=STEPS[name](model, 0))
    gradient(model, data, plain)
    found = torch.cat([p.grad.reshape(-1) for p in trainable(model) if p.grad is not None])
    gradient(model, data, METHODS["EFUF"])
    assert torch.equal(
        found, torch.cat([p.grad.reshape(-1) for p in trainable(model) if p.grad is not None])
    )


def test_costs_count_the_passes(data):
    """Fails if the units of `passes` are not the forward and backward passes over rows that the
    steps make (a row pass each).
    """
    model, rows, seen = tiny_llava(), len(data), []
    n_forget = int(data.forget.any(1).sum())
    hook = model.model.language_model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["inputs_embeds"])),
        with_kwargs=True,
    )
    counted = {}
    for name in ("SARE", "kept", "sampled", "projector"):
        step = STEPS[name](model, 0) if name in STEPS else None
        seen.clear()
        for _ in range(4):
            after(model, data, step)
        counted[name] = sum(seen) / 4
    hook.remove()
    assert counted["SARE"] == counted["kept"] == counted["projector"] == rows + n_forget
    assert counted["sampled"] == rows + n_forget + max(1, round(0.25 * n_forget))
    share = n_forget / rows

    def fresh_direction(step):
        """Passes beyond the plain 3, and the 3 of the second pass, in units of forget rows."""
        return (cheaper.passes(METHODS["SARE"], share, step) - 3) / share - 3

    # A fresh direction (2) in every step; in one of four; forward and backward (3) over a quarter
    # of the rows; 1, as a backward without weights is half
    found = [fresh_direction(step) for step in ("", "kept", "sampled", "projector")]
    assert found == pytest.approx([2, 2 / 4, 3 / 4, 1])


@pytest.mark.parametrize(
    "method, share, expected",
    [
        (METHODS["EFUF"], 0.5, 3),
        (METHODS["SARE"], 0.5, 5.5),
        (METHODS["SARE"], 0.0, 3),
        (METHODS["NPO+Targeted-SAM"], 1.0, 8),
        (METHODS["EFUF+SAM"], 0.5, 6),  # all rows twice, whatever they hold
        (replace(METHODS["SARE"], perturb=("pos", "sent")), 0.5, 8),  # and a second loss at theta
        (replace(METHODS["SARE"], rho=0.0), 0.5, 3),
    ],
)
def test_a_step_costs_what_its_losses_go_through(method, share, expected):
    """Fails if a method's step is billed as another's."""
    assert cheaper.passes(method, share) == pytest.approx(expected)
    # Other steps of the same length are none of the cheap ones
    assert cheaper.passes(method, share, "random") == cheaper.passes(method, share)


def test_every_cheap_step_has_a_price():
    """Fails if a step that saves passes is billed like the exact one, or a price has no step."""
    cheap = {presets.CONTROLS[name][1]["step"] for name in presets.CHEAPER}
    assert cheap == set(cheaper.FORGET_ROWS) <= set(STEPS)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: cheaper.kept(0), "k=0"),
        (lambda: cheaper.sampled(0.0), "share=0.0"),
        (lambda: cheaper.over([]), "no parameter"),
    ],
)
def test_impossible_approximations_are_refused(make, match):
    """Fails if a setting that means nothing is taken."""
    with pytest.raises(ValueError, match=match):
        make()


def test_a_step_without_rho_keeps_no_direction(model, data):
    """Fails if a schedule that starts at rho = 0 leaves nothing to step along when rho comes."""
    method = replace(METHODS["SARE"], step=cheaper.kept(2))
    for rho in (0.0, 0.2, 0.2):
        found = gradient(model, data, replace(method, rho=rho))
        assert math.isnan(found["norm"]) == (rho == 0)

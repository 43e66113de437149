"""The sign and step properties of Targeted-SAM (the list at the end of a SARE reproduction: what
silently goes wrong).
"""

import copy
from contextlib import contextmanager

import pytest
import torch
from conftest import tiny_llava

from lab.exercises import ascent
from lab.exercises.verdict import NotYet
from sare_min import sam
from sare_min.captions import token_nll
from sare_min.llava import trainable
from sare_min.losses import counts, method_losses
from sare_min.metrics import span_nll
from sare_min.sam import perturbed, targeted_sam
from sare_min.unlearn import METHODS, get_method, gradient


def grads(model):
    return [p.grad.clone() for p in trainable(model) if p.grad is not None]


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def neg(model, data):
    """L_neg of the whole batch."""
    return method_losses(model, data, METHODS["SARE"], counts(data, "token"))["neg"]


def neg_gradient(model, data, scale=1.0):
    loss = neg(model, data)
    return list(torch.autograd.grad(scale * loss, trainable(model), allow_unused=True))


def sare_losses(model, data):
    """losses(batch) -> (target, rest) of SARE, as `gradient` hands them to targeted_sam."""
    sare, n = METHODS["SARE"], counts(data, "token")

    def losses(batch):
        found = method_losses(model, batch, sare, n)
        nothing = torch.zeros((), requires_grad=True)
        kept = sum((found[k] for k in ("pos", "sent") if k in found), nothing)
        return sare.lambda_neg * found.get("neg", nothing), kept

    return losses


def library(params, batches, losses, rho):
    """targeted_sam as chapter 03 asks its reader to write it."""
    return targeted_sam(params, batches, batches, losses, rho)


@contextmanager
def wrong_way(params, direction, rho):
    """The trap: perturb away from the relapse."""
    with perturbed(params, [None if g is None else -g for g in direction], rho) as norm:
        yield norm


# The checks of lab/exercises/ascent.py take the step under test: chapter 03 puts its reader's step
# through them, and a wrong-sign copy must not pass.


def test_a_step_goes_toward_the_relapse(model, data):
    """Fails if the ascent sign flips."""
    before = span_nll(model, data)["forget"]
    with perturbed(trainable(model), neg_gradient(model, data), 0.02):
        after = span_nll(model, data)["forget"]
    assert after < before, "the step must make the hallucination more likely"
    ascent.check_uphill(perturbed, trainable(model), lambda: neg(model, data), 0.02)
    ascent.check_direction(perturbed, trainable(model), neg_gradient(model, data), 0.37)


def test_b_step_has_length_rho(model, data):
    """Fails if the norm is taken tensor by tensor, or g is not normalised."""
    ascent.check_length(perturbed, trainable(model), neg_gradient(model, data), 0.37)


def test_c_lambda_neg_scales_the_second_gradient_only(model, data):
    """Fails if lambda_neg changes eps: twice the weight must give exactly twice the gradient."""
    found = []
    for weight in (0.1, 0.2):
        gradient(
            model, data, get_method("SARE", lambda_neg=weight, lambda_pos=0.0, lambda_sent=0.0)
        )
        found.append(flat(grads(model)))
    torch.testing.assert_close(found[1], 2 * found[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_c_step_does_not_depend_on_the_loss_scale(model, data, scale):
    """Fails if lambda_neg leaks into eps."""
    moved = []
    for factor in (1.0, scale):
        with perturbed(trainable(model), neg_gradient(model, data, factor), 0.1):
            moved.append(flat(trainable(model)).detach().clone())
    torch.testing.assert_close(*moved, rtol=1e-5, atol=1e-7)


def test_d_rho_zero_is_efuf_exactly(model, data):
    """Fails if rho = 0 still takes another path than the plain gradient."""
    gradient(model, data, get_method("SARE", rho=0.0))
    sare = grads(model)
    gradient(model, data, METHODS["EFUF"])
    assert all(torch.equal(x, y) for x, y in zip(sare, grads(model), strict=True))
    # And the second pass leads there without a jump
    gradient(model, data, get_method("SARE", rho=1e-4))
    torch.testing.assert_close(flat(grads(model)), flat(sare), rtol=1e-2, atol=1e-4)
    method, n = METHODS["EFUF"], counts(data, "token")
    parts = method_losses(model, data, method, n)
    loss = (
        method.lambda_neg * parts["neg"]
        + method.lambda_pos * parts["pos"]
        + method.lambda_sent * parts["sent"]
    )
    by_hand = torch.autograd.grad(loss, trainable(model), allow_unused=True)
    torch.testing.assert_close(
        flat(sare), flat([g for g in by_hand if g is not None]), rtol=1e-5, atol=1e-8
    )


def test_e_quadratic_has_the_closed_form():
    """Fails if the second gradient is not taken at theta + eps."""
    ascent.check_closed_form(perturbed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_f_weights_come_back_bit_for_bit(model, dtype):
    """Fails if eps is subtracted instead of theta restored, or if an exception in the second pass
    leaves the model moved.
    """
    params = trainable(model.to(dtype))
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator).to(dtype) for p in params]
    ascent.check_gives_back(perturbed, params, direction, 0.5)


def test_f_a_whole_step_at_lr_zero_changes_nothing(model, data):
    """Fails if anything but the optimiser moves weights."""
    theta = [p.detach().clone() for p in model.parameters()]
    gradient(model, data, METHODS["SARE"])
    torch.optim.AdamW(trainable(model), lr=0.0).step()
    assert all(torch.equal(p, start) for p, start in zip(model.parameters(), theta, strict=True))


def test_f_a_loss_that_raises_in_the_second_pass(model, data):
    """Fails if targeted_sam forgets the restore when a forward dies."""
    losses = sare_losses(model, data)
    ascent.check_gradient_survives(library, trainable(model), data.split(3), losses, 0.1)


def test_g_grounded_text_keeps_its_gradient_at_theta(model, data):
    """Fails if L_pos or L_sent is differentiated at theta + eps: then their part would depend on
    rho.
    """
    method, n = get_method("SARE", lambda_neg=1e-12, rho=1.0), counts(data, "token")
    gradient(model, data, method)
    parts = method_losses(model, data, method, n)
    expected = torch.autograd.grad(
        parts["pos"] + parts["sent"], trainable(model), allow_unused=True
    )
    torch.testing.assert_close(
        flat(grads(model)), flat([g for g in expected if g is not None]), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("part", ["all", "projector", "lora"])
@pytest.mark.parametrize("name", list(METHODS))
def test_h_frozen_parameters_never_move(data, part, name):
    """Fails if a frozen tensor is perturbed or trained, in any method."""
    model = tiny_llava(part)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gradient(model, data, METHODS[name])
    torch.optim.AdamW(trainable(model), lr=1e-2).step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and moved <= {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any("vision_tower" in n for n in moved)


def test_i_erasure_is_unbounded_and_logged(model, data):
    """Fails if L_neg is clipped in silence: minus the logged loss is the NLL, which may grow
    without end.
    """
    with torch.no_grad():
        model.lm_head.weight *= 100  # a model sure of other words: NLL far above any sane cap
    log = gradient(model, data, METHODS["SARE"])
    nll = token_nll(model, data).detach()
    assert (
        -log["neg"] == pytest.approx(float(nll[data.forget].mean()), rel=1e-5) and -log["neg"] > 20
    )


@pytest.mark.parametrize("rows", [3, 8])
def test_second_gradient_is_taken_at_the_relapse_point(model, data, rows):
    """Fails if eps is dropped, turned round or taken per micro-batch on the real architecture."""
    losses = sare_losses(model, data)
    ascent.check_gradient(library, trainable(model), data.split(rows), losses, 0.5)


@pytest.mark.parametrize("micro_batch", [3, 64])
def test_the_loop_takes_the_same_gradient(model, data, micro_batch):
    """Fails if `gradient` hands other losses, weights or batches to targeted_sam than the equation
    has.
    """

    def loop(params, batches, losses, rho):
        gradient(model, batches[0], get_method("SARE", rho=rho), micro_batch)

    ascent.check_gradient(loop, trainable(model), [data], sare_losses(model, data), 0.5)


def test_a_wrong_sign_copy_fails_these_tests(model, data, monkeypatch):
    """Fails if the checks above could not tell the trap from the method."""
    params, direction = trainable(model), neg_gradient(model, data)
    with pytest.raises(NotYet, match="wrong sign"):
        ascent.check_uphill(wrong_way, params, lambda: neg(model, data), 0.02)
    with pytest.raises(NotYet, match="wrong sign"):
        ascent.check_direction(wrong_way, params, direction, 0.37)
    with pytest.raises(NotYet, match="not that at theta"):
        ascent.check_closed_form(wrong_way)
    monkeypatch.setattr(sam, "perturbed", wrong_way)
    with pytest.raises(NotYet, match="theta - eps"):
        ascent.check_gradient(library, params, [data], sare_losses(model, data), 0.5)


@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("name", list(METHODS))
def test_micro_batches_give_the_whole_batch_step(model, data, name, micro_batch):
    """Fails if eps is taken per micro-batch (m-SAM), or a mean of means replaces the mean."""
    gradient(model, data, METHODS[name])
    whole = flat(grads(model))
    gradient(model, data, METHODS[name], micro_batch)
    torch.testing.assert_close(flat(grads(model)), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "direction, rho, says",
    [
        ([torch.tensor([1.0, float("nan")])], 0.1, "not finite in parameter 0 of 1"),
        ([torch.tensor([1.0, float("inf")])], 0.1, "not finite in parameter 0 of 1"),
        ([torch.zeros(2)], 0.1, "zero everywhere"),
        ([None], 0.1, "zero everywhere"),
        ([torch.ones(2)], -0.1, "rho=-0.1"),
    ],
)
def test_bad_directions_are_named(direction, rho, says):
    """Fails if a NaN or a zero gradient passes in silence, or moves the weights before it is
    noticed.
    """
    x = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=says), perturbed([x], direction, rho):
        pass
    assert torch.equal(x, torch.ones(2))


def test_the_second_bad_gradient_is_named_by_its_place_in_params():
    x, y = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    with (
        pytest.raises(ValueError, match="parameter 1 of 2"),
        perturbed([x, y], [None, torch.tensor([float("nan")])], 0.1),
    ):
        pass


def test_shared_and_expanded_gradients_do_no_harm():
    """Fails if theta is kept in storage that autograd shares: x and y get one gradient tensor here,
    z an expanded one.
    """
    x, y, z = (torch.nn.Parameter(torch.tensor(v)) for v in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]))
    grads = list(torch.autograd.grad(((x + y) ** 2).sum() + z.sum(), [x, y, z]))
    with perturbed([x, y, z], grads, 0.1):
        assert x[0] > 1 and y[0] > 3 and z[0] > 5
    assert grads == [], "the direction is freed while theta is kept: one copy, not two"
    assert (x.tolist(), y.tolist(), z.tolist()) == ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])


def test_a_move_that_dies_half_way_is_undone():
    """Fails if an exception during the ascent step itself (out of memory) leaves the first
    parameters moved.
    """
    x, y = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    with pytest.raises(RuntimeError), perturbed([x, y], [torch.ones(2), torch.ones(3)], 0.1):
        pass
    assert torch.equal(x, torch.ones(2)) and torch.equal(y, torch.ones(2))


def test_perturbing_all_losses_is_sam(model, data):
    """Fails if `perturb` is ignored: untargeted SAM's gradient is the whole loss's at theta + eps,
    by brute force.
    """
    method, n = get_method("EFUF+SAM", rho=0.3), counts(data, "token")

    def whole(net):
        parts = method_losses(net, data, method, n)
        loss = method.lambda_neg * parts["neg"] + parts["pos"] + parts["sent"]
        return list(torch.autograd.grad(loss, trainable(net), allow_unused=True))

    moved, direction = copy.deepcopy(model), whole(model)
    norm = flat([g for g in direction if g is not None]).norm()
    with torch.no_grad():
        for p, g in zip(trainable(moved), direction, strict=True):
            if g is not None:
                p += 0.3 * g / norm
    gradient(model, data, method)
    torch.testing.assert_close(
        flat(grads(model)), flat([g for g in whole(moved) if g is not None]), rtol=1e-3, atol=1e-6
    )

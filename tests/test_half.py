"""fp16 as a T4 computes in it: frozen weights, activations and their gradients in half precision,
what trains in fp32. On a CPU, with torch's own fp16 kernels.
"""

import math
from dataclasses import replace

import pytest
import torch
from conftest import FIND, tiny_llava
from test_families import siglip_qwen2

from lab.audit import attacks
from lab.field import probe
from lab.field.devices import LOSS_SCALE, merged, scaled, scaled_backward
from lab.llava.checkpoints import load
from lab.world.curate import Thresholds, curate
from lab.world.scenes import OBJECTS, draw
from sare_min.attack import relearn
from sare_min.captions import base, encode, sentence_nll
from sare_min.llava import embed_images, set_trainable, trainable
from sare_min.losses import counts, method_losses
from sare_min.metrics import span_nll
from sare_min.unlearn import METHODS, Training, get_method, gradient, unlearn

# A real batch has a hundred times the tiny one's tokens, and a vocabulary of 152,000 in place of
# 200: that is how much smaller the gradient of one logit is there.
REAL = 10_000


@torch.no_grad()
def moved_a_little(model):
    """A fresh adapter's second half is zero, and with it the first half's gradient."""
    for p in trainable(model):
        p.add_(torch.randn(p.shape) * 0.02)


@pytest.fixture(scope="module")
def model_in(scenes, texts):
    """Makes (model with a LoRA that has moved, its captions) in a dtype; the weights are equal."""
    truth = [{noun: float(noun in scene.objects) for noun in OBJECTS} for scene in scenes]
    spans = curate(texts, truth, FIND, Thresholds(0.5, 0.5, 0.99))

    def make(dtype):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, processor = siglip_qwen2()
            model = model.eval().to(dtype)
            features = embed_images(model, processor, [draw(scene) for scene in scenes])
            torch.manual_seed(1)
            model = set_trainable(model, "lora")
            moved_a_little(model)
        return model, encode(processor, features, texts, spans)

    return make


def flat(tensors):
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])


def left_by(model_in, dtype, kind, share=1, scale=1.0):
    """The adapter's gradient of one loss that is a mean over `share` times as many tokens."""
    model, data = model_in(dtype)
    n = {name: share * count for name, count in counts(data, "token").items()}
    loss = method_losses(model, data, METHODS["SARE"], n)[kind]
    return flat(torch.autograd.grad(scale * loss, trainable(model)))


def cosine(one, other):
    return float(torch.cosine_similarity(one.double(), other.double(), dim=0))


KINDS = ("neg", "pos", "sent")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1, REAL])
def test_scaled_gradients_are_those_of_fp32(model_in, kind, share):
    """Fails if the scale is too small for a real batch, or so large that a tiny one overflows."""
    exact = left_by(model_in, torch.float32, kind)
    half = left_by(model_in, torch.float16, kind, share, LOSS_SCALE)
    assert half.isfinite().all() and cosine(half, exact) > 0.99
    assert not torch.equal(half, exact), "it must be another arithmetic"
    assert half.norm() * share / LOSS_SCALE == pytest.approx(float(exact.norm()), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_scale_a_real_batch_underflows(model_in, kind):
    """Fails if there is nothing to scale for: then devices.scaled can go."""
    exact = left_by(model_in, torch.float32, kind)
    assert cosine(left_by(model_in, torch.float16, kind), exact) > 0.99  # in a tiny batch, none
    assert cosine(left_by(model_in, torch.float16, kind, REAL), exact) < 0.99


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1 / 16, 8])
def test_there_is_room_on_both_sides(model_in, kind, factor):
    """Fails if the scale stands at an edge: a sixteenth of it must do for a real batch, eight times
    as much for a tiny one.
    """
    share = REAL if factor < 1 else 1
    half = left_by(model_in, torch.float16, kind, share, factor * LOSS_SCALE)
    assert half.isfinite().all()
    assert cosine(half, left_by(model_in, torch.float32, kind)) > 0.99


@pytest.mark.parametrize("name", ["SARE", "EFUF", "EFUF+SAM", "EFUF released"])
def test_steps_are_the_same_under_the_scale(data, name):
    """Fails if something would have to be unscaled: in fp32, where nothing underflows, a run must
    end where it ends without; also if a schedule's weights lose the scale, or the decay gains it.
    """
    how = Training(steps=6, batch_size=8, micro_batch=4, lr=1e-3, weight_decay=0.1)

    def run(method):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = tiny_llava("lora")
            moved_a_little(model)  # else the first half starts at AdamW's 1e-8
        before = flat(trainable(model))
        log = unlearn(model, data, method, how, progress=False)
        return flat(trainable(model)) - before, log

    (plain, log), (moved, scaled_log) = map(
        run, (METHODS[name], scaled(METHODS[name], torch.float16))
    )
    assert plain.norm() > 0.01 and cosine(plain, moved) > 0.999
    assert moved.norm() == pytest.approx(float(plain.norm()), rel=1e-2)
    for one, other in zip(log, scaled_log, strict=True):
        for kind in KINDS:
            assert one[kind] == pytest.approx(other[kind], rel=1e-2)
    if METHODS[name].rho:
        assert scaled_log[0]["norm"] == pytest.approx(LOSS_SCALE * log[0]["norm"], rel=1e-4)


@pytest.mark.parametrize("name", ["SARE", "EFUF"])
def test_a_run_in_fp16_goes_where_fp32_goes(model_in, name):
    """Fails if the whole step loses its way in fp16: the ascent step, the second pass, AdamW."""
    how, ends = Training(steps=8, batch_size=8, micro_batch=4, lr=1e-3, cooldown=0), {}
    for dtype in (torch.float32, torch.float16):
        model, data = model_in(dtype)
        assert {p.dtype for p in trainable(model)} == {torch.float32}
        before = flat(trainable(model))
        alone = get_method(name, lambda_pos=0.0, lambda_sent=0.0)
        log = unlearn(model, data, scaled(alone, dtype), how, progress=False)
        ends[dtype] = flat(trainable(model)) - before, log[-1]["neg"] - log[0]["neg"]
    (exact, fell), (half, fell_too) = ends[torch.float32], ends[torch.float16]
    assert cosine(exact, half) > 0.99
    assert fell < -0.1 and fell_too == pytest.approx(fell, rel=0.05)


def test_only_fp16_is_scaled(model_in):
    """Fails if another dtype's run changes, or the probe, which looks for itself, takes an fp16
    model's adapter for the model.
    """
    for dtype in (torch.float32, torch.float16):
        weight = probe._alone(model_in(dtype)[0]).lambda_neg
        assert weight == (LOSS_SCALE if dtype == torch.float16 else 1) * METHODS["GA"].lambda_neg
    for dtype in (torch.float32, torch.bfloat16):
        assert scaled(METHODS["SARE"], dtype) is METHODS["SARE"]
    assert scaled(METHODS["SARE"], torch.float16).lambda_neg == LOSS_SCALE * 0.1


def test_what_overflows_all_the_same_is_refused(model_in):
    """Fails if an infinite gradient is stepped along, or leaves the weights moved."""
    model, data = model_in(torch.float16)
    before = flat(trainable(model))
    method = replace(METHODS["SARE"], lambda_neg=2.0**30)
    with pytest.raises(ValueError, match="the ascent direction is not finite"):
        gradient(model, data, method)
    assert torch.equal(before, flat(trainable(model)))


def attacked_by(model_in, dtype, share=1, scale=None):
    """The adapter's gradient of the attacker's loss, a mean over `share` times as many tokens."""
    model, data = model_in(dtype)
    whole = replace(data, sentence=data.sentence | data.forget | data.retain)
    with scaled_backward(model, *([scale] if scale else [])):
        (sentence_nll(model, whole) / share).backward()
    return flat(p.grad for p in trainable(model))


@pytest.mark.parametrize("share", [1, REAL])
def test_the_attacks_gradients_are_those_of_fp32(model_in, share):
    """Fails if the attacker's gradient underflows in a real batch, where it would without a scale,
    or overflows in a tiny one.
    """
    exact = attacked_by(model_in, torch.float32)
    half = attacked_by(model_in, torch.float16, share)
    assert half.isfinite().all() and cosine(half, exact) > 0.99 and not torch.equal(half, exact)
    assert half.norm() * share / LOSS_SCALE == pytest.approx(float(exact.norm()), rel=0.02)
    bare = attacked_by(model_in, torch.float16, share, scale=1.0)
    assert (cosine(bare, exact) > 0.99) is (share == 1), "sanity: there is something to scale for"


def test_an_attack_in_fp16_goes_where_fp32_goes(model_in):
    """Fails if the attacker in fp16 ends elsewhere than in fp32, or anything is left on the model
    behind him; or if the scale touches a model in fp32.
    """
    ends = {}
    for dtype in (torch.float32, torch.float16):
        model, data = model_in(dtype)
        whole = replace(data, sentence=data.sentence | data.forget | data.retain)
        before = flat(trainable(model))
        with scaled_backward(model):
            for n in relearn(model, whole, (0, 8), lr=1e-3, batch_size=2, progress=False):
                ends[dtype, n] = flat(trainable(model)) - before
        head = model.base_model.model.get_output_embeddings()
        assert not head._forward_hooks
        assert not any(p._post_accumulate_grad_hooks for p in trainable(model))
    assert ends[torch.float32, 8].norm() > 0 == ends[torch.float32, 0].norm()
    assert cosine(ends[torch.float32, 8], ends[torch.float16, 8]) > 0.98
    exact = attacked_by(model_in, torch.float32, scale=1.0)
    assert torch.equal(exact, attacked_by(model_in, torch.float32))


def test_the_audits_attacker_is_scaled(model_in):
    """Fails if the audit's fine-tuning of an adapter forgets the scale."""
    model, data = model_in(torch.float16)
    whole = replace(data, sentence=data.sentence | data.forget | data.retain)

    def measure(model):
        return {"scales": len(base(model).get_output_embeddings()._forward_hooks)}

    curve = attacks.tuned(model.unload(), whole, measure, "lora", at=(0, 8))
    assert [point["scales"] for point in curve] == [1, 1]


def test_an_attack_that_overflows_is_refused(model_in):
    """Fails if an attacker steps along an infinite gradient, and what is left of the model counts
    as one that held.
    """
    model, data = model_in(torch.float16)
    whole = replace(data, sentence=data.sentence | data.forget | data.retain)
    before = flat(trainable(model))
    refused = pytest.raises(ValueError, match="not finite under the scale=1.0.*e.09")
    with refused, scaled_backward(model, 2.0**30):
        list(relearn(model, whole, (0, 8), batch_size=8, progress=False))
    assert torch.equal(before, flat(trainable(model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_is_not_rounded_away_when_it_is_merged(saved, data, dtype):
    """Fails if the small change that an erasure makes is lost in 16 bits before it is measured."""
    model = set_trainable(load(saved, device="cpu", dtype=dtype)[0], "lora")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # a change of about a thousandth of the weights
                weight.copy_(2e-4 * torch.randn(weight.shape, generator=torch.manual_seed(0)))
    layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    before = [layer.get_base_layer().weight.detach().clone().float() for layer in layers]
    meant = [layer.get_delta_weight("default").float() for layer in layers]
    inside = [layer.get_base_layer() for layer in layers]
    whole = merged(model)
    for old, layer, wanted in zip(before, inside, meant, strict=True):
        assert 0 < wanted.norm() / old.norm() < 0.01
        assert torch.allclose(layer.weight - old, wanted, atol=1e-6)
    assert math.isfinite(span_nll(whole, data)["forget"])

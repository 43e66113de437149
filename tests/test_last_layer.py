"""What the last layer skips must not be missed: the same numbers as stock transformers, wherever
the book uses it.
"""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlavaForConditionalGeneration

from lab.llava.checkpoints import save
from lab.llava.speech import generate
from lab.world import bases
from lab.world.last_layer import LastLayer, skip_unread
from lab.world.models import World, train_clip, train_llava
from sare_min.captions import encode, token_nll
from sare_min.llava import set_trainable, trainable
from sare_min.unlearn import METHODS, gradient


def close(one, other, tolerance=1e-5):
    one, other = one.detach(), other.detach()
    assert float(one.abs().max()) > 0
    assert float((one - other).abs().max()) <= tolerance * float(one.abs().max())


def last(model):
    return model.model.language_model.layers[-1]


def gradients(model):
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trainable(model)]
    )


@pytest.fixture
def short(model):
    return skip_unread(copy.deepcopy(model))


@pytest.mark.parametrize("rows", [slice(0, 8), slice(0, 1)], ids=["padded", "of one length"])
def test_losses_and_gradients_are_those_of_stock_transformers(model, short, data, rows):
    """Fails if a query sees other keys than its own past, takes another place's rotation, or
    padding is let in.
    """
    batch = data[rows]
    assert (batch.attention_mask == 0).any() == (rows == slice(0, 8))
    close(token_nll(model, batch), token_nll(short, batch))
    for each in (model, short):
        token_nll(each, batch).square().sum().backward()
    close(gradients(model), gradients(short))


@pytest.mark.parametrize("method", ["EFUF", "SARE", "NPO"])
def test_a_step_is_the_same(model, short, data, method):
    for each in (model, short):
        gradient(each, data, METHODS[method])
    close(gradients(model), gradients(short))


def test_less_is_computed(model, short, data):
    """Fails if nothing is skipped: then this file has no use."""
    from torch.utils.flop_counter import FlopCounterMode

    def work(each):
        with FlopCounterMode(display=False) as counter:
            token_nll(each, data)
        return counter.get_total_flops()

    assert work(short) < 0.85 * work(model)


@pytest.mark.parametrize("prefix", ["", " a kitchen with a cup, a"])
def test_generation_is_the_same(model, short, processor, features, prefix):
    """Fails if the prompt's keys do not reach the cache, or only those of its last token do."""
    said = [
        generate(
            each, processor, features, prefix=prefix, max_new_tokens=12, temperature=1.0, seed=3
        )
        for each in (model, short)
    ]
    assert said[0] == said[1] and len(set(said[0])) > 1


def test_prompts_of_unequal_length_are_padded_on_the_left(model, short, processor, features):
    asked = [
        "Describe the image." if row % 2 else "Is there a cup in the image? Describe the image."
        for row in range(len(features))
    ]
    said = [
        generate(each, processor, features, asked, max_new_tokens=12, temperature=1.0, seed=3)
        for each in (model, short)
    ]
    assert said[0] == said[1]


def test_curvature_is_the_same(model, short, data):
    """Fails if the layer has no second derivative, which the gauges of flatness need."""
    found = []
    for each in (model, short):
        params = trainable(each)
        with sdpa_kernel(SDPBackend.MATH):
            first = torch.autograd.grad(
                token_nll(each, data).sum(), params, create_graph=True, allow_unused=True
            )
            second = torch.autograd.grad(
                sum(g.square().sum() for g in first if g is not None), params, allow_unused=True
            )
        found.append(torch.cat([g.flatten() for g in second if g is not None]))
    close(*found, tolerance=1e-4)


def test_lora_and_copies(short, data):
    """Fails if a copy forgets to skip, or LoRA's part of a projection is passed by."""
    again = copy.deepcopy(short)
    assert type(last(again)) is LastLayer and last(again) is not last(short)
    close(token_nll(short, data), token_nll(again, data))
    lora = set_trainable(again, "lora")
    with torch.no_grad():
        for parameter in trainable(lora):
            parameter.add_(0.05)
    nll, merged = token_nll(lora, data).detach(), lora.merge_and_unload()
    close(nll, token_nll(merged, data), 1e-4)
    assert float((nll - token_nll(short, data).detach()).abs().max()) > 0.01


def test_the_checkpoint_is_stock(short, processor, data, tmp_path):
    stock = LlavaForConditionalGeneration.from_pretrained(
        save(short, processor, tmp_path / "llava")
    )
    assert type(last(stock)) is not LastLayer
    close(token_nll(stock, data), token_nll(short, data))


def test_twice_is_once(short, data):
    n_hooks = len(short._forward_pre_hooks)
    assert len(skip_unread(short)._forward_pre_hooks) == n_hooks


def test_another_attention_is_refused(model):
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="eager attention: it needs Llama's, with sdpa"):
        skip_unread(model)


def test_all_logits_may_be_asked_for(model, short, data, processor):
    """Fails if who asks for every logit gets fewer."""
    from sare_min.captions import embed

    batch = encode(processor, data.features[:2], ["a kitchen with a cup."] * 2)
    logits = [
        each(
            inputs_embeds=embed(each, batch.input_ids, batch.features[batch.image]),
            attention_mask=batch.attention_mask,
        ).logits
        for each in (model, short)
    ]
    assert logits[1].shape[1] == batch.input_ids.shape[1]
    close(*logits)


def test_the_book_uses_it(saved, monkeypatch, scenes):
    """Fails if base models or their training go the long way."""
    monkeypatch.setattr(bases, "base_folder", lambda *_: saved)
    assert type(last(bases.base_model(0)[0])) is LastLayer
    settings = World(clip_steps=1, llava_steps=1, clip_batch=4, caption_batch=4, answer_batch=4)
    model, _ = train_llava(train_clip(scenes, settings, 0), scenes, settings, 0)
    assert type(last(model)) is LastLayer

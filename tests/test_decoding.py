"""What a model says: greedy is argmax, sampling samples, and no text smuggles tokens in."""

import json
import logging
import shutil

import pytest
import torch
from conftest import tiny_llava

from lab.field import devices
from lab.llava.checkpoints import load, save
from lab.llava.speech import decoding, generate
from lab.world.models import World, build_llava, build_processor
from lab.world.scenes import draw
from sare_min.captions import DESCRIBE, base, embed, encode, render, tokenize
from sare_min.llava import embed_images, set_trainable, trainable
from sare_min.unlearn import METHODS, gradient

N_NEW = 10


def argmax(model, processor, features) -> list[str]:
    """The reference: one forward a token, the likeliest but the image's, until the EOS."""
    said = []
    for row in range(len(features)):
        prompt = render(processor, DESCRIBE)
        ids, _, _ = tokenize(processor, [prompt], features.shape[1], "right")
        embeds, new = embed(model, ids, features[row : row + 1]), []
        while len(new) < N_NEW and processor.tokenizer.eos_token_id not in new:
            logits = model(inputs_embeds=embeds).logits[0, -1]
            logits[model.config.image_token_id] = -torch.inf
            new.append(int(logits.argmax()))
            token = model.get_input_embeddings()(torch.tensor([[new[-1]]]))
            embeds = torch.cat([embeds, token], 1)
        said.append(processor.decode(new, skip_special_tokens=True).strip())
    return said


def talking() -> torch.nn.Module:
    """A LLaVA whose greedy words differ from one another, so that a penalty would change them."""
    model = tiny_llava()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for weight in model.model.language_model.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def checkpoint(processor, tmp_path_factory):

    return save(talking(), processor, tmp_path_factory.mktemp("talking") / "llava")


@pytest.fixture(scope="module")
def expected(checkpoint, processor, scenes):
    model, _ = load(checkpoint, device="cpu")
    with torch.no_grad():
        features = embed_images(model, processor, [draw(s) for s in scenes[:3]])
        return argmax(model, processor, features)


SETTINGS = [
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.5},
    {"no_repeat_ngram_size": 1},
    {"num_beams": 3},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 2, "early_stopping": True, "length_penalty": -3.0},
    {"do_sample": True, "temperature": 3.0},
    {"do_sample": True, "top_k": 50, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.5},
    {"do_sample": True, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
    {"min_new_tokens": 9},
    {"min_length": 200},
    {"max_length": 3},
    {"max_new_tokens": 2},
    {"max_time": 1e-9},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": 4},
    {"suppress_tokens": list(range(5, 60))},
    {"begin_suppress_tokens": list(range(5, 60))},
    {"bad_words_ids": [[i] for i in range(5, 60)]},
    {"sequence_bias": [[[7], 50.0]]},
    {"guidance_scale": 3.0},
    {"exponential_decay_length_penalty": [1, 5.0]},
    {"encoder_repetition_penalty": 2.0},
    {"eos_token_id": [4, 7, 8, 9, 10, 11, 12, 13]},
    {"eos_token_id": 7},
    {"eos_token_id": None},
    {"return_dict_in_generate": True, "output_scores": True},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"prompt_lookup_num_tokens": 3},
    {"use_cache": False},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"watermarking_config": {"bias": 20.0, "greenlist_ratio": 0.25}},
    {"stop_strings": ["a", "i", "e"]},
    {"dola_layers": "low"},
    {"token_healing": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s))
def test_greedy_is_argmax(checkpoint, scenes, expected, tmp_path, settings):
    """Fails if the checkpoint's own generation settings take part in greedy decoding."""
    folder = shutil.copytree(checkpoint, tmp_path / "llava")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    model, processor = load(folder, device="cpu")
    theirs = model.generation_config
    features = embed_images(model, processor, [draw(s) for s in scenes[:3]])
    assert len({*"".join(expected)}) > 5, "the reference must say something that can be bent"
    assert generate(model, processor, features, max_new_tokens=N_NEW) == expected
    assert model.generation_config is theirs
    sampled = {generate(model, processor, features, temperature=2.0, seed=s)[0] for s in range(4)}
    assert len(sampled) > 1, "sampling must sample"


def test_what_is_set_aside_is_told_once(checkpoint, processor, features, tmp_path, caplog):
    """Fails if settings vanish in silence, or are told at every call, or where there are none."""
    caplog.set_level(logging.WARNING, "sare_min")
    model, _ = load(checkpoint, device="cpu")
    generate(model, processor, features[:1], max_new_tokens=2)
    assert not caplog.records
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.eos_token_id = [4, 9]
    for _ in range(2):
        generate(model, processor, features[:1], max_new_tokens=2)
    assert len(caplog.records) == 1
    assert "'repetition_penalty': 1.3, 'eos_token_id': [9]" in caplog.text


def test_a_turn_s_end_ends_an_answer(model, processor, features):
    """Fails if the checkpoint's further end tokens are lost, by which chat models stop."""
    tokenizer = build_processor().tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    turn, eos = tokenizer.convert_tokens_to_ids("<|eot|>"), tokenizer.eos_token_id
    model.generation_config.eos_token_id = [turn, 9]
    other = build_processor()
    other.tokenizer = tokenizer

    assert decoding(model, other, 4, 0.0).eos_token_id == sorted([turn, eos])


def test_a_negative_temperature_is_named(model, processor, features):
    with pytest.raises(ValueError, match="temperature=-1"):
        generate(model, processor, features, temperature=-1)


@pytest.mark.parametrize("token", ["<image>", "</s>", "<s>", "<pad>", "<unk>"])
def test_special_tokens_in_a_text_name_their_row(model, processor, features, token):
    """Fails if a text can end its caption early or stand for an image, or the error names the row
    of a sorted batch.
    """
    texts = ["a kitchen with a fork."] * 8
    bad = texts[:6] + [f"a beach {token} with a kite."] + texts[7:]
    with pytest.raises(ValueError, match=f"caption 6 holds the special token '{token}'"):
        encode(processor, features, bad)
    with pytest.raises(ValueError, match=f"question 6 holds the special token '{token}'"):
        encode(processor, features, texts, question=bad)
    with pytest.raises(ValueError, match=f"question 6 holds the special token '{token}'"):
        generate(model, processor, features, bad, max_new_tokens=2)
    with pytest.raises(ValueError, match=f"prefix 6 holds the special token '{token}'"):
        generate(model, processor, features, prefix=bad, max_new_tokens=2)


def layers(model) -> list[torch.nn.Module]:
    return [*base(model).model.language_model.modules()]


DROPOUT = {
    "attention": {"attention_dropout": 0.3},
    "Qwen2's": {"model_type": "qwen2", "attention_dropout": 0.3},
    "in the layer itself": {"model_type": "phi", "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "in a layer's config": {"model_type": "falcon", "hidden_dropout": 0.3},
}


@pytest.mark.parametrize("case", DROPOUT)
@pytest.mark.parametrize("part", ["lora", "all"])
def test_recomputing_changes_nothing(data, case, part):
    """Fails if recomputed activations switch dropout on, or leave the model training after eval."""
    from transformers import CONFIG_MAPPING, LlavaForConditionalGeneration

    settings = dict(DROPOUT[case])
    config = build_llava(World(width=64, layers=2)).config
    if kind := settings.pop("model_type", None):
        old = config.text_config
        config.text_config = CONFIG_MAPPING[kind](
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, vocab_size=old.vocab_size, max_position_embeddings=256,
            pad_token_id=0, bos_token_id=2, eos_token_id=4, tie_word_embeddings=False,
        )  # fmt: skip
    for name, value in settings.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    model = set_trainable(LlavaForConditionalGeneration(config).eval(), part)

    def found() -> torch.Tensor:
        gradient(model, data, METHODS["SARE"], micro_batch=4)
        return torch.cat([p.grad.flatten() for p in trainable(model) if p.grad is not None])

    inner, calls = next(m for m in layers(model) if isinstance(m, torch.nn.Linear)), []
    inner.register_forward_hook(lambda *_: calls.append(1))
    plain, n_plain = found(), len(calls)
    devices.recompute(model)
    assert torch.equal(plain, found())
    assert len(calls) - n_plain > n_plain, "nothing was computed anew"
    assert not any(module.training for module in model.eval().modules())


def test_generating_is_not_training(model, processor, features):
    """Fails if a model that trains or recomputes speaks otherwise, or forgets that it trained."""
    expected = generate(model.eval(), processor, features, max_new_tokens=N_NEW)
    devices.recompute(model)
    assert generate(model, processor, features, max_new_tokens=N_NEW) == expected
    assert any(module.training for module in model.modules())
    model.config.text_config.attention_dropout = 0.5
    for layer in layers(model):
        if hasattr(layer, "attention_dropout"):
            layer.attention_dropout = 0.5
    assert generate(model.train(), processor, features, max_new_tokens=N_NEW) == expected
    assert model.training


@pytest.mark.parametrize(
    "captions, how",
    [
        (["a cup."] * 6, {}),
        ("a cup.", {}),
        (["a cup."] * 2, {"image": [0, -1]}),
        (["a cup."] * 2, {"image": [0, 8]}),
        (["a cup."] * 2, {"image": [0.0, 0.7]}),
        (["a cup."] * 8, {"question": ["Describe the image."] * 7}),
    ],
)
def test_captions_that_do_not_pair_with_images_are_counted(processor, features, captions, how):
    """Fails if a filtered list of captions slides along the images in silence."""
    with pytest.raises(ValueError, match="encode: .* 8 features: give one each"):
        encode(processor, features, captions, **how)

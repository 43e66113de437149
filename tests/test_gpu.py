"""What chapter 05 needs on a GPU, as far as a CPU can tell; the numbers of a real one are in
figures/gpu.json, if there are any.
"""

import pytest
import torch
from conftest import tiny_llava
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

from lab.field import devices
from lab.llava.checkpoints import load, save
from lab.llava.speech import generate
from lab.tools import bench, gpu
from lab.world.scenes import draw
from sare_min.captions import base, encode
from sare_min.llava import embed_images, set_trainable, trainable
from sare_min.unlearn import METHODS, Training, gradient, unlearn

TINY = gpu.Size(
    width=64,
    mlp=96,
    layers=2,
    heads=4,
    vocabulary=200,
    tower_width=32,
    tower_mlp=48,
    tower_layers=2,
    tower_heads=2,
    side=56,
    patch=14,
    captions=4,
    micro_batch=2,
    rounds=2,
)


@pytest.mark.parametrize(
    "cuda, bf16, expected",
    [(False, False, "float32"), (True, True, "bfloat16"), (True, False, "float16")],
)
def test_the_dtype_is_one_that_the_device_computes_in(monkeypatch, cuda, bf16, expected):
    """Fails if a T4, where torch emulates bf16, gets it all the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: bf16 or including_emulation,
    )
    assert devices.compute_dtype() == getattr(torch, expected)


def test_missing_bitsandbytes_is_named(monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        devices.four_bit(torch.float16)


@pytest.mark.parametrize("name", ["EFUF", "SARE", "EFUF+SAM"])
def test_recomputing_changes_no_gradient(data, name):
    """Fails if recomputed activations belong to other weights than the first ones did, as at theta
    + eps they might, or none is.
    """

    def left(model):
        gradient(model, data, METHODS[name], 3)
        return [p.grad.clone() for p in trainable(model) if p.grad is not None]

    torch.manual_seed(0)
    model = set_trainable(tiny_llava(), "lora")
    with (
        torch.no_grad()
    ):  # a fresh adapter's second half is zero, and so would be the first one's gradient
        for p in trainable(model):
            p.add_(torch.randn(p.shape) * 0.05)
    plain, forwards = left(model), []
    layer = base(model).model.language_model.layers[0].mlp
    hook = layer.register_forward_pre_hook(lambda *_: forwards.append(1))
    left(model)
    once = len(forwards)
    again = left(devices.recompute(model))
    hook.remove()
    assert len(forwards) - once > once, "nothing was recomputed"
    assert len(plain) == len(again) and all(
        torch.equal(p, q) for p, q in zip(plain, again, strict=True)
    )


@pytest.fixture(scope="module")
def random_llava(tmp_path_factory):
    return gpu.random_checkpoint(TINY, tmp_path_factory.mktemp("gpu") / "llava")


def test_the_random_checkpoint_has_the_size_that_was_asked_for(random_llava):
    model, _ = load(random_llava, device="cpu")
    text, tower = model.config.text_config, model.config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size, tower.hidden_size) == (
        64,
        2,
        200,
        32,
    )
    assert model.lm_head.weight.shape == (
        200,
        64,
    ) and model.model.multi_modal_projector.linear_1.weight.shape == (64, 32)


def test_seven_billion():
    """Fails if the measured architecture is not LLaVA-1.5-7B's: 7.06 billion weights. Built on the
    meta device, without memory.
    """
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(gpu.configuration(gpu.Size()))
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 7.06


def test_a_step_is_measured_in_full(random_llava):
    """Fails if a figure is missing, or SARE's FLOPs are not between one and 8/3 times EFUF's."""
    found = gpu.measure(TINY, random_llava, ("16 bits", "16 bits, recomputing"))
    assert found["device"] is None and list(found["cases"]) == ["16 bits", "16 bits, recomputing"]
    for rows in found["cases"].values():
        assert 1.2 < rows["SARE"]["flops"] / rows["EFUF"]["flops"] < 8 / 3
        for row in rows.values():
            assert (
                row["seconds"] > 0
                and row["tokens_per_second"] > 0
                and row["memory_gb"] is None
                and row["mfu"] is None
            )


def test_without_a_gpu_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu.files, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main()
    assert not list(tmp_path.iterdir())


def test_an_adapter_on_4_bits_says_the_same_when_it_is_loaded_again(
    monkeypatch, random_llava, scenes, tmp_path
):
    """Needs bitsandbytes, which the requirements leave out. Fails if 4-bit weights do not train, or
    another adapter comes back.
    """
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    # Its kernel of some CPUs, in bf16 and for inference alone
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)

    def loaded():
        return load(random_llava, device="cpu", **devices.four_bit(torch.float32))

    model, processor = loaded()
    features = embed_images(model, processor, [draw(scene, TINY.side) for scene in scenes])
    texts, spans = bench.sampled(scenes)
    data, before = (
        encode(processor, features, texts, spans),
        generate(model, processor, features, max_new_tokens=8),
    )
    assert isinstance(base(model).model.language_model.layers[0].mlp.up_proj, modules.Linear4bit)
    model = devices.recompute(set_trainable(model, "lora"))
    unlearn(
        model,
        data,
        METHODS["SARE"],
        Training(steps=8, batch_size=4, lr=3e-2, cooldown=0),
        progress=False,
    )
    said = generate(model.eval(), processor, features, max_new_tokens=8)
    again = PeftModel.from_pretrained(
        loaded()[0], save(model, processor, tmp_path / "adapter")
    ).eval()
    assert before != said == generate(again, processor, features, max_new_tokens=8)

"""Adapters and whole checkpoints: the model that trains on, or is attacked, is the one saved."""

import json
import random
import shutil

import pytest
import torch
import transformers
from conftest import tiny_llava
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from lab.llava.checkpoints import load, save
from lab.world.models import build_llava
from sare_min.captions import token_nll
from sare_min.llava import set_trainable, trainable
from sare_min.unlearn import METHODS, Training, unlearn

STEP = Training(steps=1, batch_size=4, micro_batch=4, lr=1e-2, cooldown=0)


def train(model, data):
    unlearn(model, data, METHODS["SARE"], STEP, progress=False)


def nll(model, data):
    return token_nll(model, data).detach()


def same(one, other):
    return torch.allclose(one, other, atol=1e-4)


@pytest.fixture(scope="module")
def erased(saved, processor, data, tmp_path_factory):
    """(folder of an adapter, NLLs of the model that it was saved from)"""
    model = set_trainable(load(saved, device="cpu")[0], "lora")
    train(model, data)
    folder = save(model, processor, tmp_path_factory.mktemp("adapter") / "erased")
    return folder, nll(model, data)


def by_load(saved, erased):
    return load(erased, device="cpu")[0]


def by_stock_peft(saved, erased):
    return PeftModel.from_pretrained(load(saved, device="cpu")[0], erased)


def by_load_adapter(saved, erased):
    model = load(saved, device="cpu")[0]
    model.load_adapter(str(erased))
    return model


def by_stock_alone(saved, erased):
    return PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(saved), erased)


def merged(saved, erased):
    return by_stock_peft(saved, erased).merge_and_unload()


WAYS = (by_load, by_stock_peft, by_load_adapter, by_stock_alone, merged)


@pytest.mark.parametrize("part", ["lora", "projector", "all"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_attacked_is_what_was_saved(saved, erased, data, way, part):
    """Fails if making it trainable swaps the erased model for its base, in whatever way it came."""
    folder, before = erased
    model = set_trainable(way(saved, folder), part)
    assert same(nll(model, data), before) and not same(nll(load(saved)[0], data), before)
    train(model, data)
    assert not same(nll(model, data), before)


@pytest.mark.parametrize("way", WAYS[:-1])
def test_an_adapter_trains_on_and_is_saved_again(saved, erased, processor, data, way, tmp_path):
    """Fails if a second round of LoRA starts anew, or is saved without the first."""
    model = set_trainable(way(saved, erased[0]), "lora")
    train(model, data)
    save(model, processor, tmp_path / "twice")
    save(model, processor, tmp_path / "twice")  # it replaces its own kind
    for again in (by_load, by_stock_peft, by_load_adapter, by_stock_alone):
        assert same(nll(again(saved, tmp_path / "twice"), data), nll(model, data))


@pytest.mark.parametrize("part, lost", [("projector", "multi_modal_projector"), ("all", "")])
@pytest.mark.parametrize("way", WAYS[:-1])
def test_training_beside_an_adapter_is_not_saved_in_silence(
    saved, erased, processor, data, way, part, lost, tmp_path
):
    """Fails if what trains outside the adapter is left out of its folder without a word."""
    model = set_trainable(way(saved, erased[0]), part)
    train(model, data)
    with pytest.raises(ValueError, match=f"an adapter does not hold .*{lost}.*merge_and_unload"):
        save(model, processor, tmp_path / "half")
    set_trainable(model, "lora")  # frozen again, yet no longer as it was loaded
    with pytest.raises(ValueError, match="an adapter does not hold"):
        save(model, processor, tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_an_adapter_on_a_merged_base_is_not_saved_in_silence(
    saved, erased, processor, data, tmp_path
):
    """Fails if an attack on a merged model is saved as an adapter that lacks the erasure."""
    for way in (merged, lambda *given: by_stock_alone(*given).merge_and_unload()):
        model = set_trainable(way(saved, erased[0]), "lora")
        train(model, data)
        with pytest.raises(ValueError, match="no longer what was loaded"):
            save(model, processor, tmp_path / "attack")
        whole = model.merge_and_unload()
        assert same(
            nll(load(save(whole, processor, tmp_path / "whole"))[0], data), nll(whole, data)
        )


@pytest.mark.parametrize("seed", range(12))
def test_any_walk_comes_back_as_it_was_saved(saved, processor, data, seed, tmp_path):
    """Fails if some order of load, set_trainable, step, merge and save loses what trained: after
    every reload the NLLs are those of the model that was saved, or saving has refused.
    """
    rng, model, saves, refusals = random.Random(seed), load(saved, device="cpu")[0], 0, 0
    for turn in range(14):
        move = rng.choice(["lora", "projector", "all", "save", "save", "merge"])
        if move in ("lora", "projector", "all"):
            before = nll(model, data)
            model = set_trainable(model, move)
            assert same(nll(model, data), before)
            train(model, data)
        elif move == "merge" and isinstance(model, PeftModel):
            model = model.merge_and_unload()
        elif move == "save":
            folder = tmp_path / f"{turn}"
            try:
                save(model, processor, folder)
            except ValueError as error:
                refusals += 1
                assert "does not hold" in str(error) and not folder.exists()
                continue
            saves += 1
            before = nll(model, data)
            is_adapter = (folder / "adapter_config.json").exists()
            ways = (by_load, by_stock_peft, by_load_adapter) if is_adapter else (by_load,)
            model = rng.choice(ways)(saved, folder)
            assert same(nll(model, data), before), (seed, turn)
            if not is_adapter:
                saved = folder  # later adapters stand on it
    assert saves + refusals, "a walk without a save shows nothing"


def test_adapters_that_are_not_alone_or_not_on_are_named(saved, erased, data, processor, tmp_path):
    """Fails if a merged, switched-off, renamed or second adapter trains or is saved regardless."""
    folder, _ = erased
    model = by_stock_peft(saved, folder)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged or switched off"):
        set_trainable(model, "lora")
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(ValueError, match="merged or switched off"):
        save(model, processor, tmp_path / "off")
    model.load_adapter(folder, "second")
    with pytest.raises(ValueError, match="the adapters default, second"):
        set_trainable(model, "lora")
    named = PeftModel.from_pretrained(load(saved)[0], folder, adapter_name="mine")
    with pytest.raises(ValueError, match="the adapters mine"):
        save(named, processor, tmp_path / "mine")


def test_the_rank_of_an_adapter_is_its_own(saved, erased):
    """Fails if another rank is asked for and ignored."""
    model = by_load(saved, erased[0])
    assert set_trainable(model, "lora", rank=16) is model
    with pytest.raises(ValueError, match="rank=4: the model carries an adapter of rank"):
        set_trainable(model, "lora", rank=4)


SMALL = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, head_dim=16, vocab_size=64, max_position_embeddings=256, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, n_embd=64, n_layer=2, n_head=4, n_inner=128, ffn_dim=128,
    word_embed_proj_dim=64, num_experts=4, num_local_experts=4, moe_intermediate_size=32,
    tie_word_embeddings=False,  # else transformers looks for the embeddings by their name in Llama
)  # fmt: skip
FUSED = ("mixtral", "qwen3_moe", "gpt_oss", "olmoe", "granitemoe", "jetmoe", "llama4_text")
PLAIN = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2",
    "gpt_neox", "opt", "bloom", "stablelm", "starcoder2", "cohere", "olmo", "olmo2", "granite",
    "glm", "glm4", "nemotron", "persimmon", "gptj", "gpt_bigcode", "smollm3", "helium", "bitnet",
)  # fmt: skip


def llava_on(kind: str) -> LlavaForConditionalGeneration:
    """A LLaVA on the meta device whose language model is of this kind."""
    text = transformers.CONFIG_MAPPING[kind]
    text = text(**{k: v for k, v in SMALL.items() if hasattr(text(), k)})
    vision = build_llava().config.vision_config
    with torch.device("meta"):
        return LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=vision,
                text_config=text,
                image_token_index=3,
            )
        )


@pytest.mark.parametrize("kind", PLAIN)
def test_lora_is_on_all_linear_layers(kind):
    """Fails if a language model names its layers otherwise, or fuses them, and goes unadapted."""
    model = llava_on(kind)
    language = model.model.language_model
    inside = {id(module) for module in language.modules()}
    linear = {
        name
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, (torch.nn.Linear, Conv1D))
    }
    adapted = {
        name.split(".lora_")[0].removeprefix("base_model.model.")
        for name, weight in set_trainable(model, "lora").named_parameters()
        if weight.requires_grad
    }
    assert len(linear) >= 8 and adapted == linear


@pytest.mark.parametrize("kind", FUSED)
def test_fused_experts_are_refused(kind):
    """Fails if experts that LoRA does not reach are left out without a word."""
    with pytest.raises(ValueError, match="part='lora': .*outside a linear layer.*'all'"):
        set_trainable(llava_on(kind), "lora")


def test_quantised_weights_do_not_train(model):
    """Fails if the error is torch's, about gradients of integers, and names no argument."""
    packed = torch.zeros(4, 4, dtype=torch.uint8)  # as bitsandbytes stores 4 bits
    head = model.lm_head
    model.requires_grad_(False)
    head.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ValueError, match="part='all': lm_head.weight is quantised.*'lora'"):
        set_trainable(model, "all")
    assert trainable(set_trainable(model, "lora"))


def reloaded(saved, model, processor, folder):
    """NLL-ready models of what `save` wrote, by load and by stock peft."""
    save(model, processor, folder)
    return load(folder)[0], PeftModel.from_pretrained(load(saved)[0], folder)


STOCK = {
    "few layers": {"target_modules": ["q_proj", "v_proj"], "r": 4},
    "all biases": {"target_modules": ["q_proj"], "bias": "all"},
    "its biases": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "DoRA": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "rsLoRA": {"target_modules": ["q_proj"], "use_rslora": True},
    "the projector, too": {"target_modules": ["q_proj"], "modules_to_save": ["linear_1"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 7]},
    "dropout": {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.5},
}


@pytest.mark.parametrize("kind", STOCK)
def test_adapters_of_stock_peft_come_back(saved, processor, data, kind, tmp_path):
    """Fails if an adapter of another make trains, is saved or loaded as something else."""
    names = "|".join(STOCK[kind]["target_modules"])  # the tower has layers of these names, too
    made = LoraConfig(**STOCK[kind] | {"target_modules": rf".*language_model.*\.({names})"})
    model = set_trainable(get_peft_model(load(saved)[0], made), "lora")
    train(model, data)
    assert same(nll(model, data), nll(model, data)), "two NLLs of one model"
    for again in reloaded(saved, model, processor, tmp_path / "adapter"):
        assert same(nll(set_trainable(again, "lora"), data), nll(model, data))


def test_an_adapter_is_not_rounded_to_its_base(saved, processor, data, tmp_path):
    """Fails if loading in bf16 rounds away what fp32 steps have trained."""
    model = set_trainable(load(saved, dtype=torch.bfloat16)[0], "lora")
    train(model, data)
    save(model, processor, tmp_path / "adapter")
    again = load(tmp_path / "adapter", dtype=torch.bfloat16)[0]
    pairs = zip(trainable(model), trainable(set_trainable(again, "lora")), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_what_no_folder_would_give_back_is_refused(saved, erased, processor, data, tmp_path):
    """Fails if saving passes where loading gives another model: a forgotten assignment, a base
    that stands nowhere, another scale, a prompt.
    """
    model = load(saved)[0]
    set_trainable(model, "lora")  # the PeftModel is dropped
    with pytest.raises(ValueError, match="stands inside a PeftModel"):
        save(model, processor, tmp_path / "x")
    with pytest.raises(ValueError, match="base was never saved"):
        save(set_trainable(tiny_llava(), "lora"), processor, tmp_path / "x")
    model = by_stock_peft(saved, erased[0])
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_scale("default", 0.5)
    with pytest.raises(ValueError, match="is scaled by 1.0, not 2.0"):
        save(model, processor, tmp_path / "x")
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=64)
    prompt.num_transformer_submodules, prompt.num_attention_heads, prompt.num_layers = 1, 4, 2
    with pytest.raises(ValueError, match="the adapter is a prompt"):
        nll(get_peft_model(load(saved)[0], prompt), data)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["erased", "erased.old", "erased.part"])
def test_saving_deletes_nothing_of_the_readers(saved, erased, processor, tmp_path, name):
    """Fails if what stands where saving puts things aside is deleted, whatever it is."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("months of work")
    with pytest.raises(ValueError, match=f"{name}: holds something else"):
        save(by_load(saved, erased[0]), processor, tmp_path / "erased")
    assert (tmp_path / name / "thesis.txt").exists()


@pytest.mark.parametrize("mark", [".unfinished", "adapter_config.json"])
def test_a_save_that_died_is_cleared(saved, erased, processor, tmp_path, mark):
    """Fails if what a save that died has left, half or whole, stands in the way of the next."""
    (tmp_path / "erased.part").mkdir()
    (tmp_path / "erased.part" / mark).touch()
    save(by_load(saved, erased[0]), processor, tmp_path / "erased")
    assert [path.name for path in tmp_path.iterdir()] == ["erased"]


@pytest.mark.parametrize("again", [False, True])
def test_two_saves_that_died_leave_one(saved, erased, processor, tmp_path, monkeypatch, again):
    """Fails if a save that dies between its two renames, and another one that dies while it writes,
    leave nothing whole.
    """
    path, other = tmp_path / "erased", by_load(saved, erased[0])
    save(other, processor, path)
    path.replace(tmp_path / "erased.old")  # killed there

    def dies(*_, **__):
        raise KeyboardInterrupt

    if again:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(processor, "save_pretrained", dies)
            save(other, processor, path)
        load(path)
    save(other, processor, path)
    assert [path.name for path in tmp_path.iterdir()] == ["erased"]


def test_weights_that_a_config_leaves_out_are_named(saved, tmp_path):
    """Fails if a checkpoint loads with fewer layers than it holds."""
    folder = shutil.copytree(saved, tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers\.1\..*not used by its config"):
        load(folder)


def test_an_adapter_knows_its_base(saved, processor, data, tmp_path):
    """Fails if another checkpoint that was saved over the base is adapted in silence."""
    base = shutil.copytree(saved, tmp_path / "base")
    model = set_trainable(load(base)[0], "lora")
    train(model, data)
    save(model, processor, tmp_path / "adapter")
    assert same(nll(load(tmp_path / "adapter")[0], data), nll(model, data))
    load(tmp_path / "adapter", dtype=torch.bfloat16)  # other numbers of the same weights
    save(model.merge_and_unload(), processor, base)
    with pytest.raises(ValueError, match="base holds other weights than those that this adapter"):
        load(tmp_path / "adapter")
    (tmp_path / "adapter/base.json").write_text("[]")
    with pytest.raises(ValueError, match="base.json: not what save wrote"):
        load(tmp_path / "adapter")

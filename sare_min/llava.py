"""A LLaVA from disk or hub: load, choose what trains, cache image features, generate, save.

Everything goes through transformers' `LlavaForConditionalGeneration` and its processor, so a
microworld model of seven hundred thousand parameters and llava-hf/llava-1.5-7b-hf take the same
path. The vision tower stays frozen; its features are computed once per image (`embed_images`) and
every later forward starts at the projector.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from .captions import DESCRIBE, base, embed, refuse_special, render, special_tokens, tokenize

RANK = 16  # of a new adapter
logger = logging.getLogger(__name__)
# Generation settings of which nothing is said: ours replace them, or they choose no token.
SILENT = {"transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"}
SILENT |= {
    "_from_model_config",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "cache_implementation",
}


def load(path: str | Path, device: str = "auto", dtype: torch.dtype = torch.float32, **how):
    """Load (model, processor) from a directory or hub name, on `device` ("auto": CUDA where there
    is one), in eval mode.

    how: more for transformers' from_pretrained, e.g. quantization_config; tower and projector must
    stay unquantised.

    Raises ValueError if the checkpoint is no LLaVA, lacks weights, or its processor and vision
    tower disagree on the image tokens.
    """
    try:
        model, info = LlavaForConditionalGeneration.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **how
        )
        processor = AutoProcessor.from_pretrained(path)
        blank = Image.new("RGB", (model.config.vision_config.image_size,) * 2)
        ids = processor(text=processor.image_token, images=blank)["input_ids"][0]
    except Exception as error:  # each library below has its own; all mean the same to the reader
        raise ValueError(
            f"{path}: no LLaVA checkpoint ({type(error).__name__}: {error}). Give a hub name, or"
            " what save wrote."
        ) from error
    if lost := sorted(info["missing_keys"] or info.get("mismatched_keys", ())):
        raise ValueError(
            f"{path}: no whole LLaVA checkpoint: {lost[0]} and maybe more is missing or misshapen."
            " Fetch or save it again."
        )
    model.to(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    ).eval().requires_grad_(False)
    model.as_loaded = _sample(model)  # what changes later, no adapter holds: see save
    n_tokens, n_features = (
        list(ids).count(model.config.image_token_id),
        embed_images(model, processor, [blank]).shape[1],
    )
    if n_tokens != n_features:
        raise ValueError(
            f"{path}: the processor makes {n_tokens} image tokens, the vision tower {n_features}"
            " features: mend patch_size."
        )
    return model, processor


def set_trainable(model: nn.Module, part: str = "all", rank: int | None = None) -> nn.Module:
    """Freeze all but `part`, keep what trains in fp32 (bf16 would round the ascent step away),
    return the model.

    part: "all" (everything but the vision tower), "projector" (as EFUF trains LLaVA) or "lora" (on
    all linear layers of the language model, by peft; the returned PeftModel shares the base model's
    weights). A model that carries an adapter goes on with it under "lora", so that it stays the
    model that was saved; for a new one, merge the first (PeftModel.merge_and_unload).
    rank: of a new adapter (16 if None; alpha is twice that); an adapter that is there must have it.
    Raises ValueError for another part, for an adapter that is merged, switched off, of another
    rank or not the only one, for a language model whose weights are not all in linear layers
    (fused experts), and for quantised weights, which cannot train.
    """
    if part not in ("all", "projector", "lora"):
        raise ValueError(f"part={part!r}: trainable parts are 'all', 'projector' and 'lora'.")
    adapter = adapter_weights(model)
    model.requires_grad_(False)
    if part != "lora":
        chosen = {
            name: parameter
            for name, parameter in model.named_parameters()
            if "multi_modal_projector" in name or (part == "all" and "vision_tower" not in name)
        }
    elif adapter:
        chosen = adapter
        ranks = {len(weight) for name, weight in adapter.items() if ".lora_A." in name}
        if rank and ranks != {rank}:
            raise ValueError(f"rank={rank}: the model carries an adapter of rank {sorted(ranks)}.")
    else:
        layers = linear_layers(base(model))
        rank = rank or RANK
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[*layers])
        config.fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in layers.values())
        model = get_peft_model(model, config)
        chosen = adapter_weights(model)
    for name, parameter in chosen.items():
        if not parameter.is_floating_point():
            raise ValueError(
                f"part={part!r}: {name} is quantised ({parameter.dtype}) and cannot train: train"
                " 'lora', or load the model without quantization_config."
            )
        parameter.requires_grad_(True)
        parameter.data = parameter.data.float()
    return model


def linear_layers(model: LlavaForConditionalGeneration) -> dict[str, nn.Module]:
    """The linear layers of the language model by name, whatever their architecture calls them.

    Raises ValueError naming a module that keeps a matrix of its own, as fused experts do.
    """
    inside = {id(module) for module in model.model.language_model.modules()}
    named = {name: module for name, module in model.named_modules() if id(module) in inside}
    known = (nn.Linear, Conv1D, nn.Embedding, nn.modules.conv._ConvNd)
    for name, module in named.items():
        own = [key for key, weight in module.named_parameters(recurse=False) if weight.ndim > 1]
        if own and not isinstance(module, known):
            raise ValueError(
                f"part='lora': {name} keeps {own[0]!r} outside a linear layer, where LoRA does not"
                " reach it: train 'all' or 'projector'."
            )
    return {name: module for name, module in named.items() if isinstance(module, known[:2])}


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """What saving an adapter writes, by name; empty for a model that carries none.

    Raises ValueError if it is merged or switched off, or if there is another one beside it.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    if not layers:
        return {}
    names = sorted(base(model).peft_config)
    if names != ["default"]:
        raise ValueError(
            f"the model carries the adapters {', '.join(names)}: merge them (merge_and_unload), or"
            " load the one that is meant by itself, under peft's name 'default'."
        )
    if any(layer.merged or layer.disable_adapters for layer in layers):
        raise ValueError(
            "the model's adapter is merged or switched off: unmerge or enable it, or fold it in"
            " for good (merge_and_unload)."
        )
    named = dict(model.named_parameters())
    written = get_peft_model_state_dict(model, named, save_embedding_layers=False).values()
    written = {id(weight) for weight in written}
    return {name: weight for name, weight in named.items() if id(weight) in written}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def save(model: nn.Module, processor, path: str | Path) -> Path:
    """Write the checkpoint, or with LoRA the adapter that stock `PeftModel.from_pretrained` loads;
    it replaces one of its own kind.

    A crash leaves the old one or the new one whole (at worst as PATH.old). Raises ValueError if
    PATH holds anything else, or if weights outside the adapter train or are not those of the base
    checkpoint any more: the adapter's folder would lose them.
    """
    path, part, old = Path(path), Path(f"{path}.part"), Path(f"{path}.old")
    adapter = adapter_weights(model)
    kind = "adapter_config.json" if adapter else "config.json"
    if adapter and (lost := _outside(model, adapter)):
        raise ValueError(
            f"{path}: an adapter does not hold {lost[0]}, which trains or is no longer what was"
            f" loaded ({len(lost)} such weights): merge the adapter (merge_and_unload) and save"
            " the whole model."
        )
    if path.exists() and any(path.iterdir()) and not (path / kind).exists():
        raise ValueError(
            f"{path}: holds something else than the checkpoint to be replaced (no {kind}): save to"
            " a new directory."
        )
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    if path.exists():
        path.replace(old)
    part.replace(path)
    shutil.rmtree(old, ignore_errors=True)
    return path


def _outside(model: nn.Module, adapter: dict[str, nn.Parameter]) -> list[str]:
    """Weights that the adapter's folder would lose: what trains beside it, and what a training or a
    merge has changed since the base was loaded (by stock code: since it was saved).
    """
    trains = [n for n, p in model.named_parameters() if p.requires_grad and n not in adapter]
    llava = base(model)
    now, before = _sample(llava), getattr(llava, "as_loaded", None)
    if before is None and llava.name_or_path:
        stock = LlavaForConditionalGeneration.from_pretrained(llava.name_or_path, dtype=llava.dtype)
        before = _sample(stock)
    return trains + [n for n, old in (before or {}).items() if not torch.equal(now[n], old)]


def _sample(model: nn.Module) -> dict[str, Tensor]:
    """At most 1024 values of each weight that is no adapter's, by its name without peft's parts."""
    adapter, found = adapter_weights(model), {}
    for name, weight in model.named_parameters():
        if name not in adapter:
            values = weight.detach().reshape(-1)[:: max(1, weight.numel() // 1024)]
            name = name.replace(".base_layer.", ".").replace(".original_module.", ".")
            found[name] = values.double().cpu()
    return found


@torch.no_grad()
def embed_images(
    model: nn.Module,
    processor,
    images: Sequence[Image.Image],
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """Frozen vision features of each image, as the projector receives them: (n, N tokens, D), on
    CPU.
    """
    model, features = base(model), []
    projector, tower = model.model.multi_modal_projector, model.model.vision_tower
    # A hook on the projector's input leaves the choice of layer and of the class token to
    # transformers; what it returns is what the projector gets, which may train in fp32 behind a
    # bf16 tower.
    hook = projector.register_forward_pre_hook(
        lambda _, inputs: (
            features.append(inputs[0].cpu()),
            inputs[0].to(next(projector.parameters()).dtype),
        )[1:]
    )
    try:
        for start in tqdm(
            range(0, len(images), batch_size), desc="image features", disable=not progress
        ):
            pixels = processor.image_processor(
                list(images[start : start + batch_size]), return_tensors="pt"
            )["pixel_values"]
            model.get_image_features(pixels.to(model.device, next(tower.parameters()).dtype))
    finally:
        hook.remove()
    return torch.cat(features)


@torch.no_grad()
def generate(
    model: nn.Module,
    processor,
    features: Tensor,
    question: str | Sequence[str] = DESCRIBE,
    prefix: str | Sequence[str] = "",
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> list[str]:
    """Answer a question about each image: the likeliest next token at temperature 0, else one drawn
    at that temperature under `seed` (the global generator is given back).

    features: (n, N, D) from embed_images. question and prefix (words put into the model's mouth, an
    attack): one for all images, or n. The checkpoint's own generation settings (penalties, beams,
    forced tokens) do not take part; a log line says once which were set aside.
    Raises ValueError if counts differ or a text holds a special token, naming its row.
    """
    model, answers = base(model), {}
    questions, prefixes = (
        [text] * len(features) if isinstance(text, str) else list(text)
        for text in (question, prefix)
    )
    if not len(questions) == len(prefixes) == len(features):
        raise ValueError(
            f"generate: {len(questions)} questions and {len(prefixes)} prefixes for"
            f" {len(features)} images: one, or one each."
        )
    refuse_special(processor, question=questions, prefix=prefixes)
    heads = {q: render(processor, q) for q in set(questions)}
    prompts = [heads[q] + p for q, p in zip(questions, prefixes)]
    # Prompts of like length share a batch: little padding
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    settings = decoding(model, processor, max_new_tokens, temperature)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), only(model, settings):
        torch.manual_seed(seed)
        for rows in tqdm(batches, desc="generate", disable=not progress):
            ids, attention, _ = tokenize(
                processor, [prompts[i] for i in rows], features.shape[1], "left", model.device
            )
            embeds = embed(model, ids, features[rows].to(model.device))
            out = model.generate(inputs_embeds=embeds, attention_mask=attention)
            answers |= zip(rows, processor.batch_decode(out, skip_special_tokens=True))
    return [answers[row].strip() for row in range(len(prompts))]


def decoding(
    model: nn.Module, processor, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Plain greedy decoding, or plain sampling. It ends at the tokenizer's EOS and at those of the
    checkpoint's that are special tokens (a chat's end of turn), never at a word.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: 0 is greedy, more is sampling; not less.")
    tokenizer, special = processor.tokenizer, special_tokens(processor.tokenizer)
    ends = [i for i in _ends(model) if tokenizer.convert_ids_to_tokens(i) in special]
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=sorted({tokenizer.eos_token_id, *ends}),
        pad_token_id=tokenizer.pad_token_id,
        # A sampled image placeholder would poison every later forward of the text.
        suppress_tokens=[model.config.image_token_id],
        **sampling,
    )


def _ends(model: nn.Module) -> list[int]:
    """The ids at which the checkpoint's own settings end an answer."""
    ends = model.generation_config.eos_token_id
    return [ends] if isinstance(ends, int) else ends or []


@contextmanager
def only(model: nn.Module, settings: GenerationConfig) -> Iterator[None]:
    """Let the model generate by these settings alone, then give it its own back. (transformers
    fills what a call leaves unsaid from the model's.) A log line tells once what is set aside.
    """
    theirs = model.generation_config
    odd = {
        name: value
        for name, value in theirs.to_diff_dict().items()
        if name not in SILENT and (value is True or value not in (None, 0, 1, []))
    }
    if words := [i for i in _ends(model) if i not in settings.eos_token_id]:
        odd["eos_token_id"] = words
    if odd and not hasattr(model, "told"):
        logger.warning("%s: generation settings set aside: %s", model.name_or_path, odd)
        model.told = True
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = theirs

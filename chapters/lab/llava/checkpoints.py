"""LLaVA checkpoints and adapters, from disk or hub and back: whole, or refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, LlavaForConditionalGeneration

from sare_min.captions import base
from sare_min.llava import adapter_weights, embed_images


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

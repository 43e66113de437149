"""LLaVA checkpoints and adapters, from disk or hub and back: whole, or refused by name."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from sare_min.captions import base
from sare_min.llava import adapter_weights, embed_images

UNFINISHED = ".unfinished"  # marks a folder that a save did not end
BASE = "base.json"  # in an adapter's folder: which weights it was trained on


def load(path: str | Path, device: str = "auto", dtype: torch.dtype = torch.float32, **how):
    """Load (model, processor) from a directory or hub name, on `device` ("auto": CUDA where there
    is one), in eval mode. An adapter's folder gives a PeftModel on the base that it names.

    how: more for transformers' from_pretrained, e.g. quantization_config; tower and projector must
    stay unquantised.

    Raises ValueError if the checkpoint is no LLaVA, lacks weights or has some that it does not use
    or that are not finite, if an adapter's base is not the one that it was trained on, or if
    processor and vision tower disagree on the image tokens.
    """
    is_adapter = (Path(path) / "adapter_config.json").exists()
    try:
        whole = PeftConfig.from_pretrained(path).base_model_name_or_path if is_adapter else path
        _refuse_another_size(Path(whole))
        model, info = LlavaForConditionalGeneration.from_pretrained(
            whole, dtype=dtype, output_loading_info=True, **how
        )
        odd = [*info["missing_keys"], *info.get("mismatched_keys", ()), *info["unexpected_keys"]]
        model.as_loaded = _sample(model)  # what changes later, no adapter holds: see save
        if is_adapter and not odd:
            # Not transformers' own loading, which rounds an adapter to the base's dtype.
            model = PeftModel.from_pretrained(model, path)
            odd = [*get_peft_model_state_dict(model).keys() ^ load_peft_weights(path).keys()]
        processor = AutoProcessor.from_pretrained(path)
        blank = Image.new("RGB", (model.config.vision_config.image_size,) * 2)
        ids = processor(text=processor.image_token, images=blank)["input_ids"][0]
    except Exception as error:  # each library below has its own; all mean the same to the reader
        raise ValueError(
            f"{path}: no LLaVA checkpoint ({type(error).__name__}: {error}). Give a hub name, or"
            " what save wrote."
        ) from error
    if odd:
        raise ValueError(
            f"{path}: no whole LLaVA checkpoint: {sorted(map(str, odd))[0]} and maybe more is"
            " missing, misshapen or not used by its config. Fetch or save it again."
        )
    if broken := _not_finite(model):
        raise ValueError(f"{path}: {broken} holds nan or infinity. Fetch or save it again.")
    if is_adapter and not _is_its_base(base(model), Path(path)):
        raise ValueError(
            f"{path}: {whole} holds other weights than those that this adapter was trained on: put"
            " its base back there, or train the adapter anew."
        )
    model.to(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    ).eval().requires_grad_(False)
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


def _refuse_another_size(folder: Path) -> None:
    """Raise ValueError if config.json asks for more than twice the weights that the folder holds:
    LLaVA's sizes are a 7B model's where a config does not say them, and such a model would take all
    memory before its weights are missed. Packed weights, and a hub's name, are let be.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").exists():
        return
    config = LlavaConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None):
        return
    held = 0
    for file in files:
        with safe_open(file, "pt") as weights:
            names = weights.keys()  # it cannot be iterated over itself
            held += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    with torch.device("meta"):
        asked = sum(p.numel() for p in LlavaForConditionalGeneration(config).parameters())
    if asked > 2 * held:
        raise ValueError(
            f"config.json is of a model of {asked:,} weights, and the files hold {held:,}: is its"
            " text_config or vision_config lost?"
        )


def _not_finite(model: nn.Module) -> str:
    """The name of a weight that holds nan or infinity, "" if none does."""
    for name, weight in model.named_parameters():
        has_values = weight.is_floating_point() and weight.numel() and not weight.is_meta
        if has_values and not torch.stack(weight.detach().aminmax()).isfinite().all():
            return name
    return ""


def save(model: nn.Module, processor, path: str | Path) -> Path:
    """Write the checkpoint, or with LoRA the adapter that stock `PeftModel.from_pretrained` loads;
    it replaces one of its own kind.

    A crash leaves the old one or the new one whole (at worst as PATH.old). Raises ValueError if
    PATH, PATH.old or PATH.part holds anything else, or if the adapter's folder would lose what
    makes the model: weights outside the adapter that train or are not those of the base checkpoint
    any more, another scale, a base that was never saved.
    """
    path, part, old = Path(path), Path(f"{path}.part"), Path(f"{path}.old")
    adapter = adapter_weights(model)
    kind = "adapter_config.json" if adapter else "config.json"
    if adapter:
        _refuse_unsaved(model, adapter, path)
    for place in (path, old, part):
        is_other = place.exists() and (place.is_file() or any(place.iterdir()))
        if is_other and not any((place / mark).exists() for mark in (kind, UNFINISHED)):
            raise ValueError(
                f"{place}: holds something else than the checkpoint to be replaced (no {kind}):"
                " move it, or save to a new directory."
            )
    if not path.exists() and (old / kind).exists():  # a save died between its two renames
        old.replace(path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / UNFINISHED).touch()
    model.save_pretrained(part)
    processor.save_pretrained(part)
    if adapter:
        (part / BASE).write_text(json.dumps(_weights(base(model))) + "\n")
    (part / UNFINISHED).unlink()
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
    part.replace(path)
    shutil.rmtree(old, ignore_errors=True)
    return path


def _refuse_unsaved(model: nn.Module, adapter: dict[str, nn.Parameter], path: Path) -> None:
    """Raise ValueError if an adapter's folder would not give this model back, whatever its base."""
    llava = base(model)
    if not isinstance(model, PeftModel) and not getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{path}: this LLaVA stands inside a PeftModel: save what set_trainable returned."
        )
    if not hasattr(llava, "as_loaded") and not llava.name_or_path:
        raise ValueError(
            f"{path}: the adapter's base was never saved: save the whole model, load it, and train"
            " the adapter on that."
        )
    config = llava.peft_config["default"]
    for name, layer in model.named_modules():
        scale = getattr(layer, "scaling", {}) if isinstance(layer, BaseTunerLayer) else {}
        if "default" in scale and "default" in getattr(layer, "lora_alpha", {}):
            rank = layer.r["default"]
            want = layer.lora_alpha["default"] / (math.sqrt(rank) if config.use_rslora else rank)
            if not math.isclose(scale["default"], want):
                raise ValueError(
                    f"{path}: {name} is scaled by {scale['default']}, not {want}, which no folder"
                    " holds: set the scale back, or merge the adapter (merge_and_unload)."
                )
    if lost := _outside(model, adapter):
        raise ValueError(
            f"{path}: an adapter does not hold {lost[0]}, which trains or is no longer what was"
            f" loaded ({len(lost)} such weights): merge the adapter (merge_and_unload) and save"
            " the whole model."
        )


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
    kept = {_plain(name) for name in adapter}
    changed = [
        name
        for name, old in (before or {}).items()
        if name not in kept and (name not in now or not torch.equal(now[name], old))
    ]
    return trains + changed


def _weights(model: LlavaForConditionalGeneration) -> dict[str, str]:
    """What a base is known by: a hash of its sample, good for this dtype and no other."""
    digest = hashlib.sha256()
    for name, values in sorted(_sample(model).items()):
        digest.update(name.encode() + values.numpy().tobytes())
    kind = f"{model.dtype}{', quantised' * getattr(model, 'is_quantized', False)}"
    return {"kind": kind, "sha256": digest.hexdigest()}


def _is_its_base(model: LlavaForConditionalGeneration, folder: Path) -> bool:
    """False if the adapter's folder names other weights; another dtype, or no name, cannot tell."""
    if not (folder / BASE).exists():  # made by stock peft
        return True
    found = _weights(model)
    try:
        known = json.loads((folder / BASE).read_text())
        return known["kind"] != found["kind"] or known["sha256"] == found["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / BASE}: not what save wrote ({error}): save the adapter again."
        ) from error


def _sample(model: nn.Module) -> dict[str, Tensor]:
    """Up to 2047 values of each weight that is no adapter's, by its name without peft's parts."""
    adapter, found = adapter_weights(model), {}
    for name, weight in model.named_parameters():
        if name not in adapter:
            values = weight.detach().reshape(-1)[:: max(1, weight.numel() // 1024)]
            found[_plain(name)] = values.double().cpu()
    return found


def _plain(name: str) -> str:
    """A weight's name as it is without peft's wrappers around its module."""
    return re.sub(r"\.(base_layer|original_module|token_adapter)(?=\.)", "", name).removeprefix(
        "base_model.model."
    )

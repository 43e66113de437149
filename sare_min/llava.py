"""A LLaVA from disk or hub: load, choose what trains, cache image features, generate, save.

Everything goes through transformers' `LlavaForConditionalGeneration` and its processor, so a
microworld model of seven hundred thousand parameters and llava-hf/llava-1.5-7b-hf take the same
path. The vision tower stays frozen; its features are computed once per image (`embed_images`) and
every later forward starts at the projector.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration

from .captions import DESCRIBE, base, embed, render, tokenize


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


def set_trainable(model: nn.Module, part: str = "all", rank: int = 16) -> nn.Module:
    """Freeze all but `part`, keep what trains in fp32 (bf16 would round the ascent step away),
    return the model.

    part: "all" (everything but the vision tower), "projector" (as EFUF trains LLaVA) or "lora"
    (rank `rank`, alpha 2 * rank, on all linear layers of the language model, by peft; the returned
    PeftModel shares the base model's weights).
    """
    model.requires_grad_(False)
    if part == "lora":
        # A regex: a list of names would also match the CLIP tower's q_proj and v_proj.
        target = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        model = get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=target)
        )
    elif part in ("all", "projector"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                "multi_modal_projector" in name or (part == "all" and "vision_tower" not in name)
            )
    else:
        raise ValueError(f"part={part!r}: trainable parts are 'all', 'projector' and 'lora'.")
    for parameter in trainable(model):
        parameter.data = parameter.data.float()
    return model


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def save(model: nn.Module, processor, path: str | Path) -> Path:
    """Write the checkpoint, or with LoRA the adapter that stock `PeftModel.from_pretrained` loads;
    it replaces one of its own kind.

    A crash leaves the old one or the new one whole (at worst as PATH.old). Raises ValueError if
    PATH holds anything else.
    """
    path, part, old = Path(path), Path(f"{path}.part"), Path(f"{path}.old")
    kind = "adapter_config.json" if isinstance(model, PeftModel) else "config.json"
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


def open_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB; raises ValueError naming the file if it is missing, empty or
    broken.
    """
    try:
        return Image.open(path).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: this image could not be read ({error}). Replace the file or drop its row."
        ) from error


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
    """Answer a question about each image: greedy at temperature 0, else sampled under `seed` (the
    global generator is given back).

    features: (n, N, D) from embed_images. question and prefix (words put into the model's mouth, an
    attack): one for all images, or n.
    """
    model, answers = base(model), {}
    questions, prefixes = (
        [text] * len(features) if isinstance(text, str) else list(text)
        for text in (question, prefix)
    )
    if not len(questions) == len(prefixes) == len(features):
        raise ValueError(
            f"generate: {len(questions)} questions and {len(prefixes)} prefixes for {len(features)}"
            " images: one, or one each."
        )
    heads = {q: render(processor, q) for q in set(questions)}
    prompts = [heads[q] + p for q, p in zip(questions, prefixes)]
    # Prompts of like length share a batch: little padding
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for rows in tqdm(
            [order[i : i + batch_size] for i in range(0, len(order), batch_size)],
            desc="generate",
            disable=not progress,
        ):
            ids, attention, _ = tokenize(
                processor, [prompts[i] for i in rows], features.shape[1], "left", model.device
            )
            embeds = embed(model, ids, features[rows].to(model.device))
            # A sampled image placeholder would poison every later forward of the text, so it is
            # never sampled.
            out = model.generate(
                inputs_embeds=embeds,
                attention_mask=attention,
                max_new_tokens=max_new_tokens,
                suppress_tokens=[model.config.image_token_id],
                pad_token_id=processor.tokenizer.pad_token_id,
                **sampling,
            )
            answers |= zip(rows, processor.batch_decode(out, skip_special_tokens=True))
    return [answers[row].strip() for row in range(len(prompts))]

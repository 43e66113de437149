"""What trains of a LLaVA, and what it sees.

Everything goes through transformers' `LlavaForConditionalGeneration` and its processor, so a
microworld model of seven hundred thousand parameters and llava-hf/llava-1.5-7b-hf take the same
path. The vision tower stays frozen; its features are computed once per image (`embed_images`) and
every later forward starts at the projector.
"""

from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from .captions import base


def set_trainable(model: nn.Module, part: str = "all", rank: int | None = None) -> nn.Module:
    """Freeze all but `part`, keep what trains in fp32 (bf16 would round the ascent step away),
    return the model, in eval mode: dropout would make two NLLs of it.

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
        if rank is not None and ranks != {rank}:
            raise ValueError(f"rank={rank}: the model carries an adapter of rank {sorted(ranks)}.")
    else:
        layers = linear_layers(base(model))
        rank = 16 if rank is None else rank
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[*layers])
        config.fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in layers.values())
        model = get_peft_model(model, config)
        chosen = adapter_weights(model)
    if packed := [name for name, weight in chosen.items() if not weight.is_floating_point()]:
        raise ValueError(
            f"part={part!r}: {packed[0]} is quantised: train 'lora', or load it unquantised."
        )
    for weight in chosen.values():
        weight.requires_grad_(True)
        weight.data = weight.data.float()
    return model.eval()


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
                f"part='lora': {name} keeps {own[0]!r} outside a linear layer: train 'all' instead."
            )
    return {name: module for name, module in named.items() if isinstance(module, known[:2])}


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """What saving an adapter writes, by name; empty for a model that carries none.

    Raises ValueError if it is merged or switched off, or if there is another one beside it.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    if not layers:
        return {}
    is_off = any(layer.merged or layer.disable_adapters for layer in layers)
    names = ", ".join(sorted(base(model).peft_config))
    if is_off or names != "default":
        raise ValueError(
            f"the model carries the adapters {names}{', merged or switched off' * is_off}: it must"
            " be one, named 'default' and in use; or fold them in for good (merge_and_unload)."
        )
    named = dict(model.named_parameters())
    written = get_peft_model_state_dict(model, named, save_embedding_layers=False)
    kept = {id(weight) for weight in written.values()}
    return {name: weight for name, weight in named.items() if id(weight) in kept}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.no_grad()
def embed_images(
    model: nn.Module,
    processor,
    images: Sequence[Image.Image],
    batch_size: int = 64,
    progress: bool = False,
) -> Tensor:
    """Frozen vision features of each image, as the projector receives them: (n, N tokens, D), on
    CPU. There must be one image.
    """
    model, features = base(model), []
    projector, tower = model.model.multi_modal_projector, model.model.vision_tower

    # A hook on the projector's input leaves the choice of layer and of the class token to
    # transformers; what it returns is what the projector gets, which may train in fp32 behind a
    # bf16 tower.
    def see(_, inputs: tuple[Tensor]) -> Tensor:
        features.append(inputs[0].cpu())
        return inputs[0].to(next(projector.parameters()).dtype)

    hook, starts = projector.register_forward_pre_hook(see), range(0, len(images), batch_size)
    try:
        for start in tqdm(starts, desc="image features", disable=not progress):
            batch = list(images[start : start + batch_size])
            pixels = processor.image_processor(batch, return_tensors="pt")["pixel_values"]
            model.get_image_features(pixels.to(model.device, next(tower.parameters()).dtype))
    finally:
        hook.remove()
    return torch.cat(features)

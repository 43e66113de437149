"""A GPU's choices: the dtype that it computes in, the scale of a loss in fp16, weights in 4 bits,
activations computed anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from sare_min.captions import base
from sare_min.llava import trainable
from sare_min.losses import Method

# Of losses in fp16. A token's gradient is divided by the batch's tokens and spread over the
# vocabulary, and fp16 ends at 6e-8 below and 65504 above; this one leaves room on both sides (a
# test shows how much). A power of two rounds nothing.
LOSS_SCALE = 4096.0
LAMBDAS = ("lambda_neg", "lambda_pos", "lambda_sent")


def compute_dtype() -> torch.dtype:
    """bf16 on a GPU that has it, fp16 on one that only emulates it (a T4), fp32 on a CPU; what
    trains is fp32 anywhere.
    """
    if not torch.cuda.is_available():
        return torch.float32
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


def name() -> str:
    """The device, as part of a folder's name: two kinds round differently, so that a run which
    goes on must go on on its own.
    """
    if not torch.cuda.is_available():
        return "cpu"
    return re.sub(r"\W+", "-", torch.cuda.get_device_name())


def scaled(method: Method, dtype: torch.dtype, scale: float = LOSS_SCALE) -> Method:
    """The method with its three weights times `scale` where the frozen weights are fp16, so that no
    gradient underflows on its way through them; as it is in any other dtype.

    Nothing is to be unscaled. The ascent step is normalised, AdamW divides by its gradient's own
    size, and its weight decay does not see the gradient: the steps are the same, but for AdamW's
    1e-8, which then weighs less. Only the log's "norm" is `scale` times as large. What overflows
    all the same is refused by `perturbed` or as a loss that is not finite.
    """
    if dtype != torch.float16:
        return method
    changes: dict = {name: scale * getattr(method, name) for name in LAMBDAS}
    if schedule := method.schedule:

        def as_scheduled(done: float) -> dict:
            now = schedule(done)
            return now | {name: scale * now[name] for name in LAMBDAS if name in now}

        changes["schedule"] = as_scheduled
    return replace(method, **changes)


@contextmanager
def scaled_backward(model: nn.Module, scale: float = LOSS_SCALE) -> Iterator[None]:
    """While it lasts, any loss's gradients are `scale` times as large where the head is fp16: what
    `scaled` does for an erasure, for a loss that has no weight to change, as the attack's.

    The logits are handed out in fp32, and their gradient is multiplied before it becomes fp16.
    Nothing is to be unscaled by an optimiser that divides by the gradient's own size (AdamW).
    Raises ValueError if a gradient overflows all the same, before a step is taken along it.
    """
    head = base(model).get_output_embeddings()
    if head.weight.dtype != torch.float16:
        yield
        return

    def scale_up(_, __, logits: Tensor) -> Tensor | None:
        if not logits.requires_grad:
            return None
        exact = logits.float()
        exact.register_hook(lambda gradient: scale * gradient)
        return exact

    def refuse(parameter: nn.Parameter) -> None:
        if not parameter.grad.isfinite().all():
            raise ValueError(f"a gradient in fp16 is not finite under the {scale=:g}: give less.")

    hooks = [head.register_forward_hook(scale_up)]
    hooks += [p.register_post_accumulate_grad_hook(refuse) for p in trainable(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def four_bit(dtype: torch.dtype) -> dict:
    """`load`'s options for a language model in 4 bits (NF4; QLoRA, arXiv 2305.14314); tower,
    projector and head stay in `dtype`.

    Raises ValueError if bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "4-bit weights need the bitsandbytes package: pip install bitsandbytes, or load in 16"
            " bits."
        )
    whole = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=whole,
        )
    }


def merged(model: PeftModel) -> nn.Module:
    """The LLaVA with its adapter folded in for good, its language model and projector in fp32.

    Folded into 16 bits, an adapter is rounded away: of a change of a thousandth of the weights half
    is left in bf16, and what is measured is the base. Weights in 4 bits stay packed, and round it.
    """
    llava = base(model)
    if not getattr(llava, "is_quantized", False):
        parts = llava.model.language_model, llava.model.multi_modal_projector
        for part in (*parts, llava.get_output_embeddings()):
            part.float()
    return model.merge_and_unload().eval().requires_grad_(False)


def recompute(model: nn.Module) -> nn.Module:
    """Keep no activations inside the language model's layers: the backward pass computes them anew.
    `model.eval()` ends it.

    Saves memory at the price of one more forward pass, and changes nothing else: transformers does
    it in layers that train, but here a layer trains only from outside, so dropout stays off.
    """
    model.eval()
    for layer in base(model).model.language_model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = layer.training = True
            layer._gradient_checkpointing_func = partial(_as_in_eval, layer)
    return model


def _as_in_eval(layer: nn.Module, forward: Callable, *args):
    """Checkpoint a layer's forward; while it runs, then and again, the layer does not train."""

    def run(*args):
        was, layer.training = layer.training, False
        try:
            return forward(*args)
        finally:
            layer.training = was

    return checkpoint(run, *args, use_reentrant=False)

"""The 7B architecture of LLaVA-1.5 with random weights, and what a step on it costs.

The weights are drawn on the device, so that nothing is fetched; all else goes the way of chapter
05. Time and memory do not depend on what the weights have learnt.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaConfig, LlavaForConditionalGeneration

from sare_min.captions import Captions, encode
from sare_min.llava import embed_images
from sare_min.unlearn import METHODS, gradient

from ..field.devices import recompute
from ..llava.checkpoints import save
from ..world.models import build_llava
from ..world.scenes import draw, split_scenes
from .rounds import compare, processor_for, sampled

# Dense FLOP/s of the tensor cores in bf16 (T4: in fp16), from the makers' data sheets; the first
# name that stands as words of its own in the device's.
PEAK = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "T4": 65e12,
}
NAMES = ("EFUF", "SARE")


@dataclass(frozen=True)
class Size:
    """How much is measured; by default a batch of llava-hf/llava-1.5-7b-hf, by its config.json."""

    width: int = 4096
    mlp: int = 11008
    layers: int = 32
    heads: int = 32
    vocabulary: int = 32064
    tower_width: int = 1024
    tower_mlp: int = 4096
    tower_layers: int = 24
    tower_heads: int = 16
    side: int = 336
    patch: int = 14
    captions: int = 16  # of a batch
    micro_batch: int = 4  # rows in one forward
    rounds: int = 5


# The same shape, so small that a CPU walks through it in a second.
TINY = Size(
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
    captions=4,
    micro_batch=2,
    rounds=2,
)


def configuration(size: Size) -> LlavaConfig:
    """A LLaVA of this size."""
    config = build_llava().config
    text = {
        "hidden_size": size.width,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "vocab_size": size.vocabulary,
        "head_dim": size.width // size.heads,
        "max_position_embeddings": 4096,
    }
    tower = {
        "hidden_size": size.tower_width,
        "intermediate_size": size.tower_mlp,
        "patch_size": size.patch,
        "num_hidden_layers": size.tower_layers,
        "num_attention_heads": size.tower_heads,
        "image_size": size.side,
    }
    for part, changes in ((config.text_config, text), (config.vision_config, tower)):
        for name, value in changes.items():
            setattr(part, name, value)
    return config


def random_llava(size: Size, dtype: torch.dtype, device: str) -> LlavaForConditionalGeneration:
    """A LLaVA of this size with random weights, drawn on the device, frozen, in eval mode."""
    devices = range(torch.cuda.device_count()) if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        config = configuration(size)
        with torch.device(device):
            model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def random_checkpoint(size: Size, folder: Path, dtype: torch.dtype, device: str) -> Path:
    """`random_llava` on disk, for what only loads from there (weights in 4 bits)."""
    return save(random_llava(size, dtype, device), processor_for(size.side, size.patch), folder)


def batch(model: nn.Module, size: Size) -> Captions:
    """A batch of captions of the microworld, at the model's size, on its device."""
    scenes = split_scenes(0, some=size.captions)["some"]
    processor = processor_for(size.side, size.patch)
    pictures = [draw(scene, size.side) for scene in scenes]
    features = embed_images(model, processor, pictures, batch_size=size.micro_batch)
    return encode(processor, features, *sampled(scenes)).to(model.device)


def nudge(model: nn.Module, scale: float = 0.05) -> nn.Module:
    """Add noise to what trains, in place. A fresh adapter's second half is zero, and so would be
    the first one's gradient.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator).to(p), alpha=scale)
    return model


def peak_flops(name: str | None) -> float | None:
    """The device's peak FLOP/s in 16 bits; None for one that is not in the table."""
    found = (flops for part, flops in PEAK.items() if re.search(rf"\b{part}\b", name or ""))
    return next(found, None)


def count_flops(step: Callable[[], object]) -> float:
    """What one step computes, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def peak_memory(step: Callable[[], object], is_gpu: bool) -> float | None:
    """GB (10^9 bytes) that the device holds at most during a step, weights and data included."""
    if not is_gpu:
        return None
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 1e9


def measure(
    model: nn.Module,
    data: Captions,
    size: Size,
    peak: float | None = None,
    is_counted: bool = True,
    recomputing: bool = False,
) -> dict[str, dict]:
    """What a step of EFUF and one of SARE cost, and their ratios, as {row: {what: value}}.

    A step is one batch's gradient. seconds: the median of the rounds; spread: their quartiles.
    memory_gb: the most that the device held, None on a CPU.

        tokens_per_second = T / seconds       T: the batch's tokens, those of the images included
        mfu = F / (seconds * peak)            F: a step's FLOPs; peak: the device's FLOP/s

    F is 2 m k n for each product of matrices in a forward, the same again for each gradient that is
    taken (of a frozen weight none is), and attention: about 4 a weight and token for EFUF by LoRA,
    where a full training takes 6. It is counted before activations are computed anew, so that
    recomputing lowers the mfu (arXiv 2204.02311, appendix B). is_counted: False where the counter
    does not know the kernels (4 bits): flops and mfu are None. So is mfu without a peak.
    """
    is_gpu = data.input_ids.is_cuda

    def clock() -> float:
        if is_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    steps = {
        name: partial(gradient, model, data, METHODS[name], size.micro_batch) for name in NAMES
    }
    flops = {name: count_flops(step) if is_counted else None for name, step in steps.items()}
    if recomputing:
        recompute(model)
    for step in steps.values():  # warms up without the counter
        step()
    memory = {name: peak_memory(step, is_gpu) for name, step in steps.items()}
    times, ratio = compare(steps, size.rounds, {"time": ("SARE", "EFUF")}, clock)
    tokens, rows = int(data.attention_mask.sum()), {}
    for name in NAMES:
        seconds, counted = times[name]["median"], flops[name]
        rows[name] = {
            "seconds": seconds,
            "spread": times[name]["spread"],
            "memory_gb": memory[name],
            "tokens_per_second": tokens / seconds,
            "flops": counted,
            "mfu": counted / seconds / peak if counted and peak else None,
        }
    both = {"time": ratio["time"]["median"], "spread": ratio["time"]["spread"]}
    both["memory"] = memory["SARE"] / memory["EFUF"] if is_gpu else None
    return rows | {"SARE over EFUF": both}

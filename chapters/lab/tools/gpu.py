"""What a step at 7B costs on a GPU: `python -m lab.tools.gpu` writes figures/gpu.json.

The 7B architecture gets random weights, which are written to disk first, so that nothing is fetched
and all else goes the way of chapter 05: `load`, `set_trainable(model, "lora")`, `gradient`. Time
and memory do not depend on what the weights have learnt.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import LlavaConfig, LlavaForConditionalGeneration

from sare_min.captions import encode
from sare_min.llava import embed_images, set_trainable
from sare_min.unlearn import METHODS, gradient

from .. import files
from ..field.devices import compute_dtype, four_bit, recompute
from ..llava.checkpoints import load, save
from ..world.models import build_llava
from ..world.scenes import draw, split_scenes
from . import bench

# Dense FLOP/s of the tensor cores in bf16 (T4: in fp16), from the makers' data sheets; the first
# name that the device's holds.
PEAK = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "T4": 65e12,
}
NAMES = ("EFUF", "SARE")


@dataclass(frozen=True)
class Size:
    """How much is measured; by default a batch of LLaVA-1.5-7B."""

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


def configuration(size: Size) -> LlavaConfig:
    """A LLaVA of this size."""
    config = build_llava().config
    for part, changes in (
        (
            config.text_config,
            {
                "hidden_size": size.width,
                "intermediate_size": size.mlp,
                "num_hidden_layers": size.layers,
                "num_attention_heads": size.heads,
                "num_key_value_heads": size.heads,
                "vocab_size": size.vocabulary,
                "head_dim": size.width // size.heads,
                "max_position_embeddings": 4096,
            },
        ),
        (
            config.vision_config,
            {
                "hidden_size": size.tower_width,
                "intermediate_size": size.tower_mlp,
                "patch_size": size.patch,
                "num_hidden_layers": size.tower_layers,
                "num_attention_heads": size.tower_heads,
                "image_size": size.side,
            },
        ),
    ):
        for name, value in changes.items():
            setattr(part, name, value)
    return config


def random_checkpoint(size: Size, folder: Path) -> Path:
    """A LLaVA of this size with random weights, on disk in the device's dtype."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration._from_config(
            configuration(size), dtype=compute_dtype()
        )
    return save(model, bench.processor_for(size.side, size.patch), folder)


def measure(
    size: Size,
    folder: Path,
    kinds: tuple[str, ...] = ("16 bits", "4 bits, recomputing"),
    progress: bool = False,
) -> dict:
    """{kind of weights: {method: a step's seconds (median, quartiles), peak memory in all, tokens a
    second, share of the peak FLOP/s}}.

    A step is one batch's gradient by LoRA. FLOPs are counted on 16 bits without recomputing, so
    recomputing lowers the share, as in PaLM's MFU (arXiv 2204.02311); an unknown device has none. A
    CPU has no memory figure.
    """
    dtype, on_gpu = compute_dtype(), torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else None
    peak = next((flops for part, flops in PEAK.items() if on_gpu and part in str(name)), None)
    found: dict[str, dict] = {}
    flops: dict[str, float] = {}

    def clock() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    for kind in tqdm(kinds, desc="7B", disable=not progress):
        model, processor = load(
            folder, dtype=dtype, **(four_bit(dtype) if kind.startswith("4") else {})
        )
        scenes = split_scenes(0, some=size.captions)["some"]
        texts, spans = bench.sampled(scenes)
        features = embed_images(
            model,
            processor,
            [draw(scene, size.side) for scene in scenes],
            batch_size=size.micro_batch,
        )
        data = encode(processor, features, texts, spans).to(model.device)
        model = set_trainable(model, "lora")
        steps = {
            method: partial(gradient, model, data, METHODS[method], size.micro_batch)
            for method in NAMES
        }
        if not flops:
            for method, step in steps.items():
                with FlopCounterMode(display=False) as counter:
                    step()
                flops[method] = float(counter.get_total_flops())
        if "recomputing" in kind:
            recompute(model)
        memory = {}
        for method, step in steps.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            step()
            memory[method] = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        times, _ = bench.compare(steps, size.rounds, pairs={}, clock=clock)
        tokens = int(data.attention_mask.sum())
        found[kind] = {
            method: {
                "seconds": times[method]["median"],
                "spread": times[method]["spread"],
                "memory_gb": memory[method],
                "tokens_per_second": tokens / times[method]["median"],
                "flops": flops[method],
                "mfu": flops[method] / times[method]["median"] / peak if peak else None,
            }
            for method in NAMES
        }
        del model, data, steps, step  # the next one needs the room
        if on_gpu:
            torch.cuda.empty_cache()
    return {"device": name, "dtype": str(dtype), "size": asdict(size), "cases": found}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit(
            "lab.tools.gpu: no GPU here, so nothing is measured; figures/gpu.json stays as it is."
        )
    kinds = ("16 bits", "4 bits, recomputing") if find_spec("bitsandbytes") else ("16 bits",)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(
            Size(), random_checkpoint(Size(), Path(folder, "7b")), kinds, progress=True
        )
    files.write_json(files.ROOT / "figures/gpu.json", results | {"where": bench.where()})
    for kind, rows in results["cases"].items():
        for method, row in rows.items():
            print(
                f"{kind:20s} {method:5s}",
                {key: value for key, value in row.items() if key != "spread"},
            )


if __name__ == "__main__":
    main()

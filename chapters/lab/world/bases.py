"""Base models, their tower, the CLIP that judges, and what a base model says: trained once, kept
in the cache.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from safetensors.torch import save_file
from transformers import CLIPModel
from transformers.utils import logging

from sare_min.llava import embed_images

from .. import files, jobs
from ..llava.checkpoints import load, save
from ..llava.speech import generate
from .models import World, train_clip, train_llava
from .scenes import clip_scenes, draw, split_scenes

logging.disable_progress_bar()
jobs.one_thread()
BASE_SOURCES = (
    "sare_min/captions",
    "sare_min/llava",
    "chapters/lab/llava/checkpoints",
    "chapters/lab/llava/speech",
    "chapters/lab/world/scenes",
    "chapters/lab/world/models",
    "chapters/lab/world/bases",
)


# Scenes; no two splits share one
SIZES = {"train": World().n_train, "erase": 1536, "attack": 1400, "test": 200}


MAX_NEW_TOKENS = 32


JUDGE = World(clip_steps=800)  # a better CLIP than the tower of LLaVA, trained longer


# Their starts; both are trained on the same scenes, as OpenAI's CLIPs are
JUDGE_SEED, TOWER_SEED = (1000, 1001)


def base_folder(seed: int, world: World = World()) -> Path:
    """The cached base model of a seed: a checkpoint, in the folder's own llava/."""
    return (
        jobs.folder(
            "base",
            (seed, TOWER_SEED, world, SIZES),
            BASE_SOURCES,
            lambda path: _build_base(path, seed, world),
        )
        / "llava"
    )


def _build_base(path: Path, seed: int, world: World) -> None:
    scenes = split_scenes(seed, **SIZES)["train"]
    save(
        *train_llava(CLIPModel.from_pretrained(clip_folder()), scenes, world, seed),
        path / "llava",
    )


def base_model(seed: int, world: World = World()):
    """(model, processor) of a cached base model."""
    return load(base_folder(seed, world), device="cpu")


def said_folder(seed: int) -> Path:
    """What the base model of a seed sees and says of all scenes but its own, cached: said.json,
    features.safetensors (sampled captions).
    """
    return jobs.folder(
        "said",
        (seed, World(), SIZES, MAX_NEW_TOKENS),
        BASE_SOURCES,
        lambda path: _hear(path, seed),
    )


def _hear(path: Path, seed: int) -> None:
    scenes, (model, processor) = split_scenes(seed, **SIZES), base_model(seed)
    features = {
        split: embed_images(model, processor, [draw(scene) for scene in scenes[split]])
        for split in ("erase", "attack", "test")
    }
    said = {
        split: generate(
            model, processor, seen, temperature=1.0, seed=seed, max_new_tokens=MAX_NEW_TOKENS
        )
        for split, seen in features.items()
    }
    save_file(features, path / "features.safetensors")
    files.write_json(path / "said.json", said)


def clip_folder(seed: int = TOWER_SEED, world: World = World()) -> Path:
    """A cached CLIP; as it stands, the tower of all base models, as every LLaVA-1.5 sees through
    the one public ViT-L/14.
    """
    settings = (seed, world.clip_steps, world.clip_batch, world.clip_lr)
    return jobs.folder("clip", settings, BASE_SOURCES, lambda path: _build_clip(path, seed, world))


def _build_clip(path: Path, seed: int, world: World) -> None:
    train_clip(clip_scenes(), world, seed).save_pretrained(path)


def judge_folder() -> Path:
    """The cached CLIP that curates: one for all seeds, too, as EFUF lets the public ViT-B/32 judge
    what LLaVA saw through ViT-L/14.
    """
    return clip_folder(JUDGE_SEED, JUDGE)


def prepare(
    seeds: Collection[int], noisy: Collection[tuple[int, float]] = (), progress: bool = True
) -> None:
    """Train what the kits of these seeds need and the cache lacks, and base models of other (seed,
    noise), side by side.
    """
    jobs.side_by_side(_prepare, [None, *sorted(seeds), *noisy], "base models", progress=progress)


def _prepare(job: int | tuple[int, float] | None) -> None:
    if job is None:
        judge_folder()
    elif isinstance(job, int):
        said_folder(job)
    else:
        base_folder(job[0], World(noise=job[1]))

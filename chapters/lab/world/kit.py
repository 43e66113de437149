"""What one seed has: its base model, its scenes, what the model says of them, and the masks.

encoded.py encodes it for erasing, stopping, attacking and testing; measured.py measures on it.
"""

from __future__ import annotations

import copy
import json
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.cluster.vq import kmeans2
from transformers import CLIPModel

from sare_min.llava import set_trainable

from .. import jobs
from ..metrics.chair import Span, exact
from .bases import BASE_SOURCES, JUDGE, JUDGE_SEED, SIZES, base_model, judge_folder, said_folder
from .curate import Thresholds, clip_scores, curate
from .models import World, build_tokenizer, image_processor
from .scenes import OBJECTS, Scene, a, draw, split_scenes

RULES = exact(OBJECTS)  # how captions of the microworld name objects, here and in its export
SOURCES = (  # not lab/files, which lab/metrics/chair has for the synonyms: no run reads its files
    *BASE_SOURCES,
    "chapters/lab/metrics/chair",
    "chapters/lab/world/curate",
    "chapters/lab/world/kit",
)
jobs.remember(SOURCES)


@lru_cache(maxsize=1 << 16)  # models say the same of many scenes, and again at every measurement
def named(caption: str) -> tuple[str, ...]:
    """The objects that a caption names, in order, repeats kept."""
    return tuple(RULES.mentions(caption))


class Kit:
    """One seed. Nothing here is changed by a run: `fresh()` copies the model."""

    def __init__(self, seed: int):
        self.seed, path = seed, said_folder(seed)
        self.model, self.processor = base_model(seed)
        said = json.loads((path / "said.json").read_text())
        scenes = split_scenes(seed, **SIZES)
        # Sampling at temperature 1 now and then breaks off before any object is named: such
        # captions cannot be curated.
        rows = {
            split: [i for i, text in enumerate(texts) if named(text)]
            for split, texts in said.items()
        }
        self.said: dict[str, list[str]] = {
            split: [said[split][i] for i in chosen] for split, chosen in rows.items()
        }
        self.scenes: dict[str, list[Scene]] = {
            split: [scenes[split][i] for i in chosen] for split, chosen in rows.items()
        }
        self.test_scenes: list[Scene] = scenes["test"]
        # Pictures are seen once, and never again by any run of this seed
        seen = load_file(path / "features.safetensors")
        # A copy, where the allocator would put it: kernels may round by a tensor's place in memory
        self.test_features: torch.Tensor = seen["test"].clone()
        self.features: dict[str, torch.Tensor] = {
            split: seen[split][chosen] for split, chosen in rows.items()
        }

    def fresh(self, part: str = "all"):
        """A copy of the base model, ready to train."""
        return set_trainable(copy.deepcopy(self.model), part)

    def truth(self, split: str) -> list[dict[str, float]]:
        """Per caption, object -> 1.0 if the picture shows it: the oracle's "scores"."""
        return [
            {noun: float(noun in scene.objects) for noun in OBJECTS} for scene in self.scenes[split]
        ]

    @cached_property
    def scores(self) -> list[dict[str, float]]:
        """Per erasure caption, object -> the tiny CLIP's S(o)."""
        path = jobs.folder(
            "scores", (self.seed, World(), JUDGE, JUDGE_SEED, SIZES), SOURCES, self._score
        )
        table = load_file(path / "scores.safetensors")["scores"]
        return [dict(zip(OBJECTS, row)) for row in table.tolist()]

    def _score(self, path: Path) -> None:
        clip = CLIPModel.from_pretrained(judge_folder()).eval()
        texts = [f"A photo containing {a(noun)}." for noun in OBJECTS]
        pictures = [draw(scene) for scene in self.scenes["erase"]]
        tokenizer = build_tokenizer(for_clip=True)
        table = clip_scores(clip, image_processor(), tokenizer, pictures, texts)
        save_file({"scores": table.contiguous()}, path / "scores.safetensors")

    @cached_property
    def thresholds(self) -> Thresholds:
        """From the scores of all mentioned objects alone, without a look at the truth: they fall
        into two clusters (k-means).

        Forget below the middle between the clusters' centres, retain above the middle of what is
        left up to the upper centre. No fixed values, because a score's scale depends on the CLIP:
        EFUF's belong to ViT-B/32 with a sliding window.
        """
        said = [
            score[noun]
            for text, score in zip(self.said["erase"], self.scores, strict=True)
            for noun in named(text)
        ]
        centres, _ = kmeans2(
            np.array(said)[:, None], np.quantile(said, [0.05, 0.95])[:, None], minit="matrix"
        )
        low, high = sorted(centres[:, 0].tolist())
        retain = (low + 3 * high) / 4
        return Thresholds(forget_below=(low + high) / 2, retain_above=retain, sentence_above=retain)

    def spans(self, split: str, masks: str = "oracle") -> list[dict[str, list[Span]]]:
        """What to forget and keep in each caption, by "oracle" or (erasure captions) by "clip"."""
        scores, thresholds = (
            (self.scores, self.thresholds)
            if masks == "clip"
            else (self.truth(split), Thresholds(0.5, 0.5, 0.99))
        )
        return curate(self.said[split], scores, RULES.find, thresholds)


@lru_cache(maxsize=8)
def get_kit(seed: int) -> Kit:
    """The kit of a seed, one object as long as the process needs it."""
    return Kit(seed)

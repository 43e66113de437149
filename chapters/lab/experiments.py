"""The experiments that several chapters draw from: one kit a seed (base model and data), one run a seed and method.

A run erases, measures, attacks, measures along the way, and lands in the cache as run.json (schema: `run`) with the erased weights.
"""
from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from transformers import CLIPModel
from transformers.utils import logging

from sare_min.attack import relearn
from sare_min.captions import Captions, encode
from sare_min.curate import Span, Thresholds, clip_scores, curate, mentions
from sare_min.llava import embed_images, generate, load, save, set_trainable, trainable
from sare_min.metrics import chair, span_nll
from sare_min.unlearn import Training, get_method, unlearn, with_reference

from . import cache, microworld
from .microworld import OBJECTS, PLACES, Scene, World, a, absent, draw, question

SYNONYMS = {noun: noun for noun in OBJECTS}
BASE_SOURCES = ("sare_min/captions", "sare_min/llava", "sare_min/losses", "chapters/lab/microworld")
RUN_SOURCES = (*BASE_SOURCES, "sare_min/sam", "sare_min/unlearn", "sare_min/attack", "sare_min/metrics", "sare_min/curate",
               "chapters/lab/experiments")
SIZES = {"train": World().n_train, "erase": 1536, "attack": 1400, "test": 200}  # scenes; no two splits share one
MAX_NEW_TOKENS = 32
JUDGE = World(clip_steps=500)
STOP_NLL = 6.5  # nats a token: every erasure ends when held-out forgotten spans are this unlikely (the base model: about 0.4)
N_STOP = 64  # captions that this is measured on, at every step
MAX_STEPS = 240
logging.disable_progress_bar()
cache.remember(RUN_SOURCES)
cache.one_thread()


def noise_control(job: tuple[int, float]) -> dict[str, float]:
    """Kit.measure of a base model of (seed, noise) whose training captions carry another share of noise."""
    seed, noise = job
    world = kit(seed)
    model, _ = load(base_folder(seed, World(noise=noise)) / "llava", device="cpu")
    return world.measure(model) | world.yes_rates(model)


def base_folder(seed: int, world: World = World()) -> Path:
    """The cached base model of a seed: llava/ (model and processor) and said.json (captions sampled from it)."""
    return cache.folder("base", (seed, world, SIZES, MAX_NEW_TOKENS), BASE_SOURCES, lambda path: _build_base(path, seed, world))


def _build_base(path: Path, seed: int, world: World) -> None:
    scenes = microworld.split_scenes(seed, **SIZES)
    clip = microworld.train_clip(scenes["train"], world, seed)
    model, processor = microworld.train_llava(clip, scenes["train"], world, seed)
    save(model, processor, path / "llava")
    said = {}
    for split in ("erase", "attack", "test"):
        features = embed_images(model, processor, [draw(scene) for scene in scenes[split]])
        said[split] = generate(model, processor, features, temperature=1.0, seed=seed, max_new_tokens=MAX_NEW_TOKENS)
    cache.write_json(path / "said.json", said)


def judge_folder(seed: int) -> Path:
    """The cached CLIP that curates: trained longer and from another start than LLaVA's tower.

    As in EFUF, where ViT-B/32 judges what LLaVA saw through ViT-L/14.
    """
    return cache.folder("judge", (seed, JUDGE, SIZES), BASE_SOURCES, lambda path: _build_judge(path, seed))


def _build_judge(path: Path, seed: int) -> None:
    microworld.train_clip(microworld.split_scenes(seed, **SIZES)["train"], JUDGE, seed + 1000).save_pretrained(path)


def prepare(seed: int) -> None:
    """Train what a kit needs, if the cache lacks it."""
    base_folder(seed)
    judge_folder(seed)


class Kit:
    """The base model of one seed and the data made from it. Nothing here is changed by a run: `fresh()` copies the model."""

    def __init__(self, seed: int):
        self.seed, path = seed, base_folder(seed)
        self.model, self.processor = load(path / "llava", device="cpu")
        said = json.loads((path / "said.json").read_text())
        scenes = microworld.split_scenes(seed, **SIZES)
        # Sampling at temperature 1 now and then breaks off before any object is named: such captions cannot be curated.
        rows = {split: [i for i, text in enumerate(texts) if mentions(text, SYNONYMS)] for split, texts in said.items()}
        self.said: dict[str, list[str]] = {split: [said[split][i] for i in chosen] for split, chosen in rows.items()}
        self.scenes: dict[str, list[Scene]] = {split: [scenes[split][i] for i in chosen] for split, chosen in rows.items()}
        self.test_scenes: list[Scene] = scenes["test"]

    def fresh(self, part: str = "all"):
        """A copy of the base model, ready to train."""
        return set_trainable(copy.deepcopy(self.model), part)

    def features(self, scenes: Sequence[Scene]) -> torch.Tensor:
        return embed_images(self.model, self.processor, [draw(scene) for scene in scenes])

    @cached_property
    def test_features(self) -> torch.Tensor:
        return self.features(self.test_scenes)

    def truth(self, split: str) -> list[dict[str, float]]:
        """Per caption, object -> 1.0 if the picture shows it: the oracle's "scores"."""
        return [{noun: float(noun in scene.objects) for noun in OBJECTS} for scene in self.scenes[split]]

    @cached_property
    def scores(self) -> list[dict[str, float]]:
        """Per erasure caption, object -> the tiny CLIP's S(o)."""
        clip = CLIPModel.from_pretrained(judge_folder(self.seed)).eval()
        texts = [f"A photo containing {a(noun)}." for noun in OBJECTS]
        pictures = [draw(scene) for scene in self.scenes["erase"]]
        table = clip_scores(clip, microworld.image_processor(), microworld.build_tokenizer(for_clip=True), pictures, texts)
        return [dict(zip(OBJECTS, row)) for row in table.tolist()]

    @cached_property
    def thresholds(self) -> Thresholds:
        """From the scores of all mentioned objects alone, without a look at the truth: they fall into two clusters (k-means).

        Forget below the middle between the clusters' centres, retain above the middle of what is left up to the upper centre. No
        fixed values, because a score's scale depends on the CLIP: EFUF's belong to ViT-B/32 with a sliding window.
        """
        said = [score[noun] for text, score in zip(self.said["erase"], self.scores, strict=True) for noun, _ in mentions(text, SYNONYMS)]
        centres, _ = kmeans2(np.array(said)[:, None], np.quantile(said, [0.05, 0.95])[:, None], minit="matrix")
        low, high = sorted(centres[:, 0].tolist())
        retain = (low + 3 * high) / 4
        return Thresholds(forget_below=(low + high) / 2, retain_above=retain, sentence_above=retain)

    def spans(self, split: str, masks: str = "oracle") -> list[dict[str, list[Span]]]:
        """What to forget and keep in each caption, by "oracle" or (erasure captions) by "clip"."""
        scores, thresholds = (self.scores, self.thresholds) if masks == "clip" else (self.truth(split), Thresholds(0.5, 0.5, 0.99))
        return curate(self.said[split], scores, SYNONYMS, thresholds)

    def data(self, split: str, masks: str = "oracle") -> Captions:
        """The split's sampled captions, encoded with masks."""
        return encode(self.processor, self.features(self.scenes[split]), self.said[split], self.spans(split, masks))

    @cached_property
    def test_data(self) -> Captions:
        return self.data("test")

    @cached_property
    def stop_data(self) -> Captions:
        """N_STOP hallucinated captions, kept from the attacker and from every reported number: they say when to stop erasing."""
        rows = [i for i, spans in enumerate(self.spans("attack")) if spans["forget"]][:N_STOP]
        spans, scenes = self.spans("attack"), [self.scenes["attack"][i] for i in rows]
        return encode(self.processor, self.features(scenes), [self.said["attack"][i] for i in rows], [spans[i] for i in rows])

    @cached_property
    def attack_data(self) -> Captions:
        """Hallucinated captions of scenes that no erasure saw, whole: what a relearning attacker would fine-tune on."""
        rows = [i for i, spans in enumerate(self.spans("attack")) if spans["forget"]][N_STOP:]
        return encode(self.processor, self.features([self.scenes["attack"][i] for i in rows]), [self.said["attack"][i] for i in rows])

    def marked(self, row: int, text: str) -> dict:
        """A held-out scene with what was said of it, as figures.fig_scenes draws it: each object named and whether it is invented."""
        scene = self.test_scenes[row]
        return {"place": scene.place, "objects": scene.objects, "cells": scene.cells,
                "says": [[noun, noun not in scene.objects] for noun, _ in mentions(text, SYNONYMS)]}

    def describe(self, model) -> list[str]:
        """Greedy captions of the held-out scenes."""
        return generate(model, self.processor, self.test_features, max_new_tokens=MAX_NEW_TOKENS)

    def measure(self, model) -> dict[str, float]:
        """Held-out scenes: CHAIR and recall of greedy captions (shares), NLL of spans of the base model's captions (nats a token)."""
        named = [[noun for noun, _ in mentions(text, SYNONYMS)] for text in self.describe(model)]
        nll = span_nll(model, self.test_data)
        return chair(named, [s.objects for s in self.test_scenes]) | {"nll_forget": nll["forget"], "nll_retain": nll["retain"]}

    def yes_rates(self, model) -> dict[str, float]:
        """Share of "yes" to "Is there a ...?": about an object that is shown, one usual here but absent, one from another place."""
        rng, rates = random.Random(self.seed), {}
        kinds: dict[str, Callable[[Scene], Sequence[str]]] = {
            "shown": lambda s: s.objects, "usual": absent, "foreign": lambda s: [o for o in OBJECTS if o not in PLACES[s.place]]}
        for kind, choices in kinds.items():
            asked = [question(rng.choice(choices(scene))) for scene in self.test_scenes]
            answers = generate(model, self.processor, self.test_features, asked, max_new_tokens=2)
            rates[kind] = sum(answer == "yes" for answer in answers) / len(answers)
        return rates


@lru_cache(maxsize=2)
def kit(seed: int) -> Kit:
    return Kit(seed)


@dataclass(frozen=True)
class Run:
    """One erasure."""

    seed: int
    method: str  # a row of METHODS, or "base": no erasure
    changes: tuple[tuple[str, float], ...] = ()  # settings of the row to change, e.g. (("rho", 0.2),)
    masks: str = "clip"
    part: str = "all"
    training: Training = Training(steps=MAX_STEPS)
    stop_nll: float | None = STOP_NLL


@dataclass(frozen=True)
class Attack:
    """Relearning after an erasure."""

    run: Run
    at: tuple[int, ...]  # relearning samples after which the attacked model is measured
    lr: float = 1e-4
    batch: int = 8


def run(spec: Run) -> dict:
    """Do one erasure, or read it from the cache: {"spec", "log": a row per step, "erased": Kit.measure + {"yes": Kit.yes_rates,
    "stop_level": the NLL, after the cool-down, of the captions that said when to stop}}."""
    return json.loads((_run_folder(spec) / "run.json").read_text())


def erased(spec: Run):
    """The erased model of a run."""
    model = kit(spec.seed).fresh(spec.part)
    weights = torch.load(_run_folder(spec) / "weights.pt", weights_only=True)
    with torch.no_grad():
        for parameter, saved in zip(trainable(model), weights, strict=True):
            parameter.copy_(saved)
    return model


def _run_folder(spec: Run) -> Path:
    return cache.folder("run", spec, RUN_SOURCES, lambda path: _do_run(path, spec))


def _do_run(path: Path, spec: Run) -> None:
    world = kit(spec.seed)
    model, log = world.fresh(spec.part), []
    if spec.method != "base":
        data = world.data("erase", spec.masks)
        if spec.method == "NPO":
            data = with_reference(world.model, data)

        def reached(step: int) -> bool:
            return spec.stop_nll is not None and span_nll(model, world.stop_data)["forget"] >= spec.stop_nll

        method = get_method(spec.method, **dict(spec.changes))
        log = unlearn(model, data, method, spec.training, spec.seed, stop=reached, progress=False)
    torch.save([p.detach() for p in trainable(model)], path / "weights.pt")
    measured = world.measure(model) | {"yes": world.yes_rates(model), "stop_level": span_nll(model, world.stop_data)["forget"]}
    cache.write_json(path / "run.json", {"spec": asdict(spec), "log": log, "erased": measured})


def attack(spec: Attack) -> dict:
    """Attack one erasure, or read it from the cache: the run's result plus {"curve": [{"samples", **Kit.measure}]}."""
    path = cache.folder("attack", spec, RUN_SOURCES, lambda path: _do_attack(path, spec))
    return run(spec.run) | {"curve": json.loads((path / "curve.json").read_text())}


def _do_attack(path: Path, spec: Attack) -> None:
    world, model = kit(spec.run.seed), erased(spec.run)
    steps = relearn(model, world.attack_data, spec.at, spec.lr, spec.batch, spec.run.seed, progress=False)
    cache.write_json(path / "curve.json", [{"samples": n} | world.measure(model) for n in steps])


def attack_all(attacks: dict[str, list[Attack]], progress: bool = True) -> dict[str, list[dict]]:
    """The results under the names of `attacks`, in order: first the missing base models, then erasures and attacks, side by side."""
    specs = [spec for row in attacks.values() for spec in row]
    cache.side_by_side(prepare, sorted({spec.run.seed for spec in specs}), "base models", progress=progress)
    by_seed = sorted(set(specs), key=lambda spec: (spec.run.seed, repr(spec)))  # a worker then loads each seed's kit once
    results = dict(zip(by_seed, cache.side_by_side(attack, by_seed, "erase and attack", progress=progress), strict=True))
    return {name: [results[spec] for spec in row] for name, row in attacks.items()}

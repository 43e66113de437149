"""The experiments that several chapters draw from: one kit a seed (base model and data), one run a
seed and method.

A run erases, measures, and lands in the cache as run.json (schema: `run`) with the erased weights;
attacks.py goes on from there.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from transformers import CLIPModel
from transformers.utils import logging

from sare_min.captions import Captions, base, encode
from sare_min.llava import embed_images, generate, load, save, set_trainable, trainable
from sare_min.losses import npo
from sare_min.metrics import span_nll
from sare_min.sam import targeted_sam
from sare_min.unlearn import Training, get_method, unlearn, with_reference

from . import cache, cheaper, microworld
from .chair import Span, chair, exact
from .cheaper import Step
from .curate import Thresholds, clip_scores, curate
from .last_layer import skip_unread
from .microworld import OBJECTS, PLACES, Scene, World, a, absent, draw, question

RULES = exact(OBJECTS)  # how captions of the microworld name objects, here and in its export
BASE_SOURCES = (
    "sare_min/captions",
    "sare_min/llava",
    "chapters/lab/last_layer",
    "chapters/lab/microworld",
)
RUN_SOURCES = (  # not lab/coco, which lab/chair has for the synonyms: no run reads its files
    *BASE_SOURCES,
    "sare_min/losses",
    "sare_min/sam",
    "sare_min/unlearn",
    "sare_min/metrics",
    "chapters/lab/chair",
    "chapters/lab/cheaper",
    "chapters/lab/curate",
    "chapters/lab/experiments",
)
# Scenes; no two splits share one
SIZES = {"train": World().n_train, "erase": 1536, "attack": 1400, "test": 200}
MAX_NEW_TOKENS = 32
JUDGE = World(clip_steps=800)  # a better CLIP than the tower of LLaVA, trained longer
# Their starts; both are trained on the same scenes, as OpenAI's CLIPs are
JUDGE_SEED, TOWER_SEED = (1000, 1001)
SAID = ("chair_s", "chair_i", "recall", "n")  # what Kit.measure says of greedy captions
NLL = ("nll_forget", "nll_retain")  # and of the spans
# nats a token: every erasure ends when held-out forgotten spans are this unlikely (the base model:
# about 0.5)
STOP_NLL = 8.0
N_STOP = 64  # captions that this is measured on
# Steps: the limit; a run ends before, at STOP_NLL
TRAINING = Training(steps=240, batch_size=24, lr=6e-4, cooldown=10)
logging.disable_progress_bar()
cache.remember(RUN_SOURCES)
cache.one_thread()


@lru_cache(maxsize=1 << 16)  # models say the same of many scenes, and again at every measurement
def named(caption: str) -> tuple[str, ...]:
    """The objects that a caption names, in order, repeats kept."""
    return tuple(RULES.mentions(caption))


def noise_control(job: tuple[int, float]) -> dict[str, float]:
    """Kit.measure of a base model of (seed, noise) whose training captions carry another share of
    noise.
    """
    seed, noise = job
    world = kit(seed)
    model, _ = base_model(seed, World(noise=noise))
    return world.measure(model) | world.yes_rates(model)


def base_folder(seed: int, world: World = World()) -> Path:
    """The cached base model of a seed: a checkpoint, in the folder's own llava/."""
    return (
        cache.folder(
            "base",
            (seed, TOWER_SEED, world, SIZES),
            BASE_SOURCES,
            lambda path: _build_base(path, seed, world),
        )
        / "llava"
    )


def _build_base(path: Path, seed: int, world: World) -> None:
    scenes = microworld.split_scenes(seed, **SIZES)["train"]
    save(
        *microworld.train_llava(CLIPModel.from_pretrained(clip_folder()), scenes, world, seed),
        path / "llava",
    )


def base_model(seed: int, world: World = World()):
    """(model, processor) of a cached base model, ready for many short forwards."""
    model, processor = load(base_folder(seed, world), device="cpu")
    return skip_unread(model), processor


def said_folder(seed: int) -> Path:
    """What the base model of a seed sees and says of all scenes but its own, cached: features.pt,
    said.json (sampled captions).
    """
    return cache.folder(
        "said",
        (seed, World(), SIZES, MAX_NEW_TOKENS),
        (*BASE_SOURCES, "chapters/lab/experiments"),
        lambda path: _hear(path, seed),
    )


def _hear(path: Path, seed: int) -> None:
    scenes, (model, processor) = microworld.split_scenes(seed, **SIZES), base_model(seed)
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
    torch.save(features, path / "features.pt")
    cache.write_json(path / "said.json", said)


def clip_folder(seed: int = TOWER_SEED, world: World = World()) -> Path:
    """A cached CLIP; as it stands, the tower of all base models, as every LLaVA-1.5 sees through
    the one public ViT-L/14.
    """
    settings = (seed, world.clip_steps, world.clip_batch, world.clip_lr)
    return cache.folder("clip", settings, BASE_SOURCES, lambda path: _build_clip(path, seed, world))


def _build_clip(path: Path, seed: int, world: World) -> None:
    microworld.train_clip(microworld.clip_scenes(), world, seed).save_pretrained(path)


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
    cache.side_by_side(_prepare, [None, *sorted(seeds), *noisy], "base models", progress=progress)


def _prepare(job: int | tuple[int, float] | None) -> None:
    if job is None:
        judge_folder()
    elif isinstance(job, int):
        said_folder(job)
    else:
        base_folder(job[0], World(noise=job[1]))


class Kit:
    """The base model of one seed and the data made from it. Nothing here is changed by a run:
    `fresh()` copies the model.
    """

    def __init__(self, seed: int):
        self.seed, path = seed, said_folder(seed)
        self.model, self.processor = base_model(seed)
        said = json.loads((path / "said.json").read_text())
        scenes = microworld.split_scenes(seed, **SIZES)
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
        seen = torch.load(path / "features.pt", weights_only=True)
        self.test_features: torch.Tensor = seen["test"]
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
        path = cache.folder(
            "scores", (self.seed, World(), JUDGE, JUDGE_SEED, SIZES), RUN_SOURCES, self._score
        )
        return [
            dict(zip(OBJECTS, row))
            for row in torch.load(path / "scores.pt", weights_only=True).tolist()
        ]

    def _score(self, path: Path) -> None:
        clip = CLIPModel.from_pretrained(judge_folder()).eval()
        texts = [f"A photo containing {a(noun)}." for noun in OBJECTS]
        pictures = [draw(scene) for scene in self.scenes["erase"]]
        tokenizer = microworld.build_tokenizer(for_clip=True)
        torch.save(
            clip_scores(clip, microworld.image_processor(), tokenizer, pictures, texts),
            path / "scores.pt",
        )

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

    def encode(
        self, split: str, rows: Sequence[int], spans: Sequence[dict[str, list[Span]]] | None = None
    ) -> Captions:
        """Some of the split's sampled captions; spans: of all its captions, or None: each whole."""
        return encode(
            self.processor,
            self.features[split],
            [self.said[split][i] for i in rows],
            spans and [spans[i] for i in rows],
            image=rows,
        )

    def data(self, split: str, masks: str = "oracle") -> Captions:
        """The split's sampled captions, encoded with masks."""
        return self.encode(split, range(len(self.said[split])), self.spans(split, masks))

    @cached_property
    def test_data(self) -> Captions:
        return self.data("test")

    @cached_property
    def attack_rows(self) -> dict[str, list[int]]:
        """Captions of scenes that no erasure saw: "stop" and "hallucinated" hold an object that is
        not there, "clean" none.

        "stop": N_STOP of them, kept from the attacker and from every reported number; they say when
        to stop erasing.
        """
        spans = self.spans("attack")
        wrong = [i for i, kinds in enumerate(spans) if kinds["forget"]]
        return {
            "stop": wrong[:N_STOP],
            "hallucinated": wrong[N_STOP:],
            "clean": [i for i, kinds in enumerate(spans) if kinds["sentence"]],
        }

    @cached_property
    def stop_data(self) -> Captions:
        return self.encode("attack", self.attack_rows["stop"], self.spans("attack"))

    @cached_property
    def attack_data(self) -> Captions:
        """The attacker's hallucinated captions, whole: what he fine-tunes on."""
        return self.encode("attack", self.attack_rows["hallucinated"])

    def marked(self, row: int, text: str) -> dict:
        """A held-out scene with what was said of it, as figures.fig_scenes draws it: each object
        named and whether it is invented.
        """
        scene = self.test_scenes[row]
        return {
            "place": scene.place,
            "objects": scene.objects,
            "cells": scene.cells,
            "says": [[noun, noun not in scene.objects] for noun in named(text)],
        }

    def describe(self, model, **how) -> list[str]:
        """Greedy captions of the held-out scenes; how: generate's question or prefix."""
        return generate(
            model, self.processor, self.test_features, max_new_tokens=MAX_NEW_TOKENS, **how
        )

    def chair(
        self, captions: Sequence[str], places: Sequence[str] = tuple(PLACES)
    ) -> dict[str, float]:
        """CHAIR and recall of captions of the held-out scenes, all or those in some places."""
        chosen = [
            (scene, text)
            for scene, text in zip(self.test_scenes, captions, strict=True)
            if scene.place in places
        ]
        return chair([named(text) for _, text in chosen], [scene.objects for scene, _ in chosen])

    def sampled_chair(self) -> dict[str, float]:
        """CHAIR and recall of the base model's captions of held-out scenes, sampled at temperature
        1.
        """
        return chair(
            [named(text) for text in self.said["test"]],
            [scene.objects for scene in self.scenes["test"]],
        )

    def measure(self, model, apart: str = "", nll: bool = True) -> dict[str, float]:
        """Held-out scenes: CHAIR and recall of greedy captions (shares), NLL of spans of the base
        model's captions (nats a token).

        apart: a place; CHAIR and recall of all others are added, as "chair_s elsewhere" and so on.
        nll: False saves the time for it.
        """
        said = self.describe(model)
        others = self.chair(said, [place for place in PLACES if place != apart]) if apart else {}
        return (
            self.chair(said)
            | (self.nll(model) if nll else {})
            | {f"{key} elsewhere": value for key, value in others.items() if key != "n"}
        )

    def nll(self, model) -> dict[str, float]:
        """The NLL half of `measure`."""
        spans = span_nll(model, self.test_data)
        return {key: spans[key.removeprefix("nll_")] for key in NLL}

    def yes_rates(self, model) -> dict[str, float]:
        """Share of "yes" to "Is there a ...?": about an object that is shown, one usual here but
        absent, one from another place.
        """
        rng, rates = random.Random(self.seed), {}
        kinds: dict[str, Callable[[Scene], Sequence[str]]] = {
            "shown": lambda s: s.objects,
            "usual": absent,
            "foreign": lambda s: [o for o in OBJECTS if o not in PLACES[s.place]],
        }
        for kind, choices in kinds.items():
            asked = [question(rng.choice(choices(scene))) for scene in self.test_scenes]
            answers = generate(model, self.processor, self.test_features, asked, max_new_tokens=2)
            rates[kind] = sum(answer == "yes" for answer in answers) / len(answers)
        return rates


@lru_cache(maxsize=8)
def kit(seed: int) -> Kit:
    return Kit(seed)


@dataclass(frozen=True)
class Run:
    """One erasure."""

    seed: int
    # a row of METHODS; or no erasure: "base", or "honest", a model trained on true captions alone
    method: str
    # Settings of the row to change, e.g. (("rho", 0.2),)
    changes: tuple[tuple[str, object], ...] = ()
    masks: str = "clip"
    part: str = "all"
    training: Training = TRAINING
    stop_nll: float | None = STOP_NLL  # None: train for training.steps
    # share of the forget pieces that a lenient judge misses, and keeps as if they were true
    missed: float = 0.0
    without: str = ""  # a place whose captions the erasure never sees
    step: str = ""  # a key of STEPS: another ascent step than the method's
    hold: bool = False  # train for training.steps, and forget only while below stop_nll
    peak: float | None = (
        None  # forget up to this NLL first, then only retain until stop_nll is reached from above
    )


def _turned(turn: Callable[[Tensor], Tensor]) -> Step:
    return partial(
        targeted_sam, turn=lambda gradient: [g if g is None else turn(g) for g in gradient]
    )


def _random_step(seed: int) -> Step:
    generator = torch.Generator().manual_seed(seed)
    return _turned(lambda g: torch.randn(g.shape, generator=generator))


# (model, seed) -> another ascent step, of the same length rho
STEPS: dict[str, Callable[[nn.Module, int], Step]] = {
    "wrong sign": lambda *_: _turned(torch.neg),
    "random": lambda _, seed: _random_step(seed),
    "kept": lambda *_: cheaper.kept(4),
    "sampled": lambda *_: cheaper.sampled(0.25),
    "projector": lambda model, _: cheaper.over(
        [p for p in base(model).model.multi_modal_projector.parameters() if p.requires_grad]
    ),
}


def missed(
    spans: Sequence[dict[str, list[Span]]], captions: Sequence[str], share: float, seed: int
) -> list[dict[str, list[Span]]]:
    """The spans of a lenient judge: a share of the forget pieces are retained instead; a caption
    with none left is kept whole.
    """
    rng, found = random.Random(seed), []
    for kinds, caption in zip(spans, captions, strict=True):
        lost = [piece for piece in kinds["forget"] if rng.random() < share]
        forget = [piece for piece in kinds["forget"] if piece not in lost]
        sentence = kinds["sentence"] if forget or not lost else [(0, len(caption))]
        found.append({"forget": forget, "retain": kinds["retain"] + lost, "sentence": sentence})
    return found


def run(spec: Run) -> dict:
    """Do one erasure, or read it from the cache: {"spec", "log": a row per step, "erased": {...}}.

    erased: Kit.measure, "stop_level" (NLL, after the cool-down, of the captions that said when to
    stop), "distance" (L2 from the base model) and "forget_share" (of the erasure's captions).
    """
    return json.loads((_run_folder(spec) / "run.json").read_text())


def answers(spec: Run) -> dict[str, float]:
    """Kit.yes_rates after one erasure, cached."""

    def ask(path: Path) -> None:
        cache.write_json(path / "yes.json", kit(spec.seed).yes_rates(erased(spec)))

    return json.loads((cache.folder("answers", spec, RUN_SOURCES, ask) / "yes.json").read_text())


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
    model = world.fresh(spec.part)
    start = [p.detach().clone() for p in trainable(model)]
    if (
        spec.method == "honest"
    ):  # its vision tower is the base model's: CLIP never sees the captions
        model = set_trainable(base_model(spec.seed, World(noise=0.0))[0], spec.part)
    data = erasure_data(world, spec)
    log = [] if spec.method in ("base", "honest") else _erase(model, world, spec, data)
    torch.save([p.detach() for p in trainable(model)], path / "weights.pt")
    moved = torch.cat(
        [(p.detach() - q).reshape(-1) for p, q in zip(trainable(model), start, strict=True)]
    )
    measured = world.measure(model) | {
        "stop_level": _level(model, world),
        "distance": float(moved.norm()),
        "forget_share": float(data.forget.any(1).float().mean()),
    }
    cache.write_json(path / "run.json", {"spec": asdict(spec), "log": log, "erased": measured})


def _level(model, world: Kit) -> float:
    return span_nll(model, world.stop_data)["forget"]


def erasure_data(world: Kit, spec: Run) -> Captions:
    """The captions and masks that a run trains on."""
    return _erasure_data(world, spec.masks, spec.missed, spec.without)


@lru_cache(maxsize=16)
def _erasure_data(world: Kit, masks: str, share: float, without: str) -> Captions:
    rows = [i for i, scene in enumerate(world.scenes["erase"]) if scene.place != without]
    return world.encode(
        "erase", rows, missed(world.spans("erase", masks), world.said["erase"], share, world.seed)
    )


def _erase(model, world: Kit, spec: Run, data: Captions) -> list[dict[str, float]]:
    """Run the method until the held-out forget level says stop; `hold` and `peak` are the controls'
    other ways to end there.
    """
    method, level, has_peaked = get_method(spec.method, **dict(spec.changes)), 0.0, False
    look_again = 0  # the next step after which to look at the level
    seen: tuple = ()  # the last look: its step and its level
    cooled = -1  # the step at which a cool-down ends
    if method.forget_loss is npo:
        data = with_reference(world.model, data)
    if spec.step:
        method = replace(method, step=STEPS[spec.step](model, spec.seed))

    def reached(step: int) -> bool:
        nonlocal look_again, seen, cooled
        if spec.stop_nll is None or step < look_again:
            return False
        now = _level(model, world)
        pace = max(0.1, (now - seen[1]) / (step - seen[0])) if seen else 0.4  # nats a step
        # A cool-down goes on as far as half of its steps at full speed. Where it has ended, a
        # quarter of a nat is near enough.
        missing = (
            spec.stop_nll - now - (0.25 if step == cooled else pace * spec.training.cooldown / 2)
        )
        look_again, seen = step + max(1, int(0.4 * missing / pace)), (step, now)
        cooled = -1 if missing > 0 else step + spec.training.cooldown
        return missing <= 0

    def weights(done: float) -> dict[str, float]:
        is_off = has_peaked or (spec.hold and level >= spec.stop_nll)
        return {"lambda_neg": 0.0 if is_off else method.lambda_neg}

    # Asked after every step, so that `weights` knows the level before the next
    def back_again(step: int) -> bool:
        nonlocal level, has_peaked
        level = _level(model, world)
        has_peaked = has_peaked or (spec.peak is not None and level >= spec.peak)
        return has_peaked and level <= spec.stop_nll

    if spec.hold or spec.peak is not None:
        method, reached = replace(method, schedule=weights), back_again
    return unlearn(model, data, method, spec.training, spec.seed, stop=reached, progress=False)

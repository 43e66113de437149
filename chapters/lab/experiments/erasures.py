"""Erasures: one run a seed and method, stopped at a forget level.

A run erases, measures, and lands in the cache as run.json (schema: `run`) with the erased weights;
attacks.py goes on from there.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sare_min.captions import Captions, base
from sare_min.llava import set_trainable, trainable
from sare_min.losses import npo
from sare_min.metrics import span_nll
from sare_min.sam import targeted_sam
from sare_min.unlearn import Training, get_method, unlearn, with_reference

from .. import files, jobs
from ..metrics.chair import Span
from ..world import encoded, measured
from ..world.bases import base_model
from ..world.kit import SOURCES as KIT_SOURCES
from ..world.kit import Kit, get_kit
from ..world.models import World
from . import cheaper
from .cheaper import Step, passes
from .levels import Held, Watch, at_speed

RUN_SOURCES = (
    *KIT_SOURCES,
    "sare_min/losses",
    "sare_min/sam",
    "sare_min/unlearn",
    "sare_min/metrics",
    "chapters/lab/world/encoded",
    "chapters/lab/world/measured",
    "chapters/lab/experiments/cheaper",
    "chapters/lab/experiments/levels",
    "chapters/lab/experiments/erasures",
)
jobs.remember(RUN_SOURCES)
# nats a token: every erasure ends when held-out forgotten spans are this unlikely (the base model:
# about 0.5)
STOP_NLL = 8.0


ORDERS_APART = 100_000  # between the seeds of two shuffles of one seed's captions

# Steps: the limit; a run ends before, at STOP_NLL
TRAINING = Training(steps=400, batch_size=24, lr=6e-4, cooldown=10)


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
    # forget only while below stop_nll, until so many forward passes are spent; 0: stop there
    work: float = 0.0
    # forget up to this NLL first, then only retain until stop_nll is reached from above
    peak: float | None = None
    order: int = 0  # another shuffle of the same captions

    def __post_init__(self) -> None:
        """Results are kept by a run's repr, and a function's holds an address."""
        for name, value in self.changes:
            if callable(value):
                raise ValueError(
                    f"changes: {name} is a function, by which no result is found again: make it a"
                    " row of METHODS (sare_min/unlearn.py)."
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

    erased: measured.held_out, "stop_level" (NLL of the captions that said when to stop), "reached"
    (does it stand at the level asked?), "landing" (of levels.Watch.land, with what it was before),
    "distance" (L2 from the base model), "forget_share" (of the erasure's captions) and "passes"
    (forward passes over a batch, all steps together).
    """
    return json.loads((_run_folder(spec) / "run.json").read_text())


def cost(spec: Run, share: float) -> float:
    """Forward passes over a batch that one step of the run costs, `share` of the rows holding
    forget tokens.
    """
    return passes(get_method(spec.method, **dict(spec.changes)), share, spec.step)


def cost_without(spec: Run, share: float) -> float:
    """The same for a step whose forget loss is off: without its ascent step, if that is on the
    forget loss alone.
    """
    method = get_method(spec.method, **dict(spec.changes))
    return 3.0 if method.perturb == ("neg",) else cost(spec, share)


def _price(spec: Run, share: float, row: dict[str, float]) -> float:
    """Of a step in the log: one that ascended has a norm."""
    return cost_without(spec, share) if math.isnan(row["norm"]) else cost(spec, share)


def forget_share(data: Captions) -> float:
    """The share of captions that hold something to forget."""
    return float(data.forget.any(1).float().mean())


def answers(spec: Run) -> dict[str, float]:
    """measured.yes_rates after one erasure, cached."""

    def ask(path: Path) -> None:
        files.write_json(path / "yes.json", measured.yes_rates(get_kit(spec.seed), erased(spec)))

    return json.loads((jobs.folder("answers", spec, RUN_SOURCES, ask) / "yes.json").read_text())


def erased(spec: Run):
    """The erased model of a run."""
    model = get_kit(spec.seed).fresh(spec.part)
    weights = load_file(_run_folder(spec) / "weights.safetensors")
    with torch.no_grad():
        for i, parameter in enumerate(trainable(model)):
            parameter.copy_(weights[str(i)])
    return model


def _run_folder(spec: Run) -> Path:
    return jobs.folder("run", spec, RUN_SOURCES, lambda path: _do_run(path, spec))


def _do_run(path: Path, spec: Run) -> None:
    world = get_kit(spec.seed)
    model = world.fresh(spec.part)
    start = [p.detach().clone() for p in trainable(model)]
    if (
        spec.method == "honest"
    ):  # its vision tower is the base model's: CLIP never sees the captions
        model = set_trainable(base_model(spec.seed, World(noise=0.0))[0], spec.part)
    data = erasure_data(world, spec)
    is_erased = spec.method not in ("base", "honest")
    log, landing = _erase(model, world, spec, data) if is_erased else ([], {})
    weights = {str(i): p.detach().contiguous() for i, p in enumerate(trainable(model))}
    save_file(weights, path / "weights.safetensors")
    moved = torch.cat(
        [(p.detach() - q).reshape(-1) for p, q in zip(trainable(model), start, strict=True)]
    )
    share = forget_share(data)
    found = measured.held_out(world, model) | {
        "stop_level": _level(model, world),
        "reached": bool(landing.get("reached", False)),
        "landing": landing,
        "distance": float(moved.norm()),
        "forget_share": share,
        "passes": sum(_price(spec, share, row) for row in log),
    }
    files.write_json(path / "run.json", {"spec": asdict(spec), "log": log, "erased": found})


def _level(model, world: Kit) -> float:
    return span_nll(model, encoded.stop(world))["forget"]


def erasure_data(world: Kit, spec: Run) -> Captions:
    """The captions and masks that a run trains on."""
    return _erasure_data(world, spec.masks, spec.missed, spec.without)


@lru_cache(maxsize=16)
def _erasure_data(world: Kit, masks: str, share: float, without: str) -> Captions:
    rows = [i for i, scene in enumerate(world.scenes["erase"]) if scene.place != without]
    return encoded.rows(
        world,
        "erase",
        rows,
        missed(world.spans("erase", masks), world.said["erase"], share, world.seed),
    )


def _erase(model, world: Kit, spec: Run, data: Captions) -> tuple[list[dict[str, float]], dict]:
    """Run the method until the held-out forget level says stop, and land on it; returns (the log,
    where it ended: of levels.Watch.land, and before it "level before" and so on).
    """
    method = get_method(spec.method, **dict(spec.changes))
    if method.forget_loss is npo:
        data = with_reference(world.model, data)
    if spec.step:
        method = replace(method, step=STEPS[spec.step](model, shuffle(spec)))
    stop, watch = None, None
    if spec.stop_nll is not None:
        watch = Watch(trainable(model), lambda: _level(model, world), spec.stop_nll)
        stop = at_speed(watch, spec.training.cooldown)
        if spec.work or spec.peak is not None:
            share = forget_share(data)
            held = Held(
                watch,
                lambda forgets: cost(spec, share) if forgets else cost_without(spec, share),
                spec.training.cooldown,
                spec.work,
                spec.peak,
            )
            stop, method = held.stop, replace(method, schedule=lambda _: held.weights(method))
    log = unlearn(model, data, method, spec.training, shuffle(spec), stop=stop, progress=False)
    if watch is None:
        return log, {}
    before = measured.held_out(world, model) | {"level": _level(model, world)}
    kept = {f"{key} before": before[key] for key in ("level", "recall", "nll_retain")}
    return log, watch.land() | kept


def shuffle(spec: Run) -> int:
    """The seed of an erasure's order, which its base model's captions are drawn in."""
    return spec.seed + ORDERS_APART * spec.order

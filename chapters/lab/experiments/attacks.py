"""Attacks on an erased model, each a curve over its strength: fine-tuning of several kinds, noise,
rounding, pruning, prompts.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sare_min.attack import relearn
from sare_min.captions import DESCRIBE, Captions, encode
from sare_min.llava import set_trainable, trainable
from sare_min.unlearn import METHODS

from .. import files, jobs
from ..world import encoded, measured
from ..world.bases import prepare
from ..world.kit import Kit, get_kit
from ..world.measured import NLL, SAID
from ..world.scenes import OBJECTS, PLACES, absent, caption, question
from .erasures import ORDERS_APART, RUN_SOURCES, Run, answers, cost, erased, run

ATTACK_SOURCES = (*RUN_SOURCES, "sare_min/attack", "chapters/lab/experiments/attacks")
jobs.remember(ATTACK_SOURCES)


@dataclass(frozen=True)
class Attack:
    """An attack on an erased model, measured at each strength."""

    run: Run
    at: tuple[float, ...]  # strengths; fine-tuning counts samples
    kind: str = "relearn"  # a key of KINDS
    lr: float = 2e-4  # of fine-tuning
    batch: int = 8
    place: str = (
        ""  # fine-tune on captions of this place only; then "elsewhere" measures the others
    )
    nll: bool = False  # measure the NLL of spans, too
    order: int = 0  # another shuffle of the attacker's captions


def tune(
    world: Kit, model, spec: Attack, data: Captions, part: str = "all"
) -> Iterator[tuple[float, dict[str, float]]]:
    """Fine-tune on the data; measure at each sample count."""
    model, seed = set_trainable(model, part), spec.run.seed + ORDERS_APART * spec.order
    for n in relearn(model, data, spec.at, spec.lr, spec.batch, seed, progress=False):
        yield n, measured.held_out(world, model, spec.place, spec.nll)


def hallucinated(world: Kit, place: str = "") -> Captions:
    """The attacker's captions, of one place or of all."""
    rows = [
        i
        for i in encoded.attack_rows(world)["hallucinated"]
        if world.scenes["attack"][i].place == place
    ]
    return encoded.rows(world, "attack", rows) if place else encoded.attack(world)


def honest_answers(world: Kit) -> Captions:
    """Another task, benign: true answers about objects that are shown, or foreign to the place; two
    a scene of the attack split.
    """
    rng, scenes = random.Random(world.seed), world.scenes["attack"]
    shown = [rng.choice(scene.objects) for scene in scenes]
    foreign = [
        rng.choice([noun for noun in OBJECTS if noun not in PLACES[scene.place]])
        for scene in scenes
    ]
    return encode(
        world.processor,
        world.features["attack"],
        ["yes"] * len(scenes) + ["no"] * len(scenes),
        question=[question(noun) for noun in shown + foreign],
        image=[*range(len(scenes))] * 2,
    )


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable weight matrices, embeddings included; vectors (norms, biases) are left alone,
    as quantisers leave them.
    """
    return [parameter for parameter in trainable(model) if parameter.ndim == 2]


@torch.no_grad()
def add_noise(model: nn.Module, scale: float, seed: int = 0) -> None:
    """Add Gaussian noise to each trainable matrix, in place; its standard deviation is `scale`
    times the matrix's own.
    """
    generator = torch.Generator().manual_seed(seed)
    for p in matrices(model):
        p.add_(torch.randn(p.shape, generator=generator).to(p), alpha=scale * float(p.std()))


@torch.no_grad()
def quantize(model: nn.Module, bits: int) -> None:
    """Round each trainable matrix to `bits` bits, in place: symmetric, one scale per output row,
    the largest weight kept (absmax).
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"quantize: bits={bits}: give 2 to 16.")
    top = 2 ** (bits - 1) - 1
    for p in matrices(model):
        scale = (p.abs().amax(1) / top).clamp_min(torch.finfo(p.dtype).tiny)
        p.copy_(
            torch.fake_quantize_per_channel_affine(
                p, scale, torch.zeros(len(p), dtype=torch.int32, device=p.device), 0, -top, top
            )
        )


@torch.no_grad()
def prune(model: nn.Module, share: float) -> None:
    """Zero the `share` of each trainable matrix's weights smallest in magnitude, in place; of equal
    ones, as many as it takes.
    """
    if not 0 <= share < 1:
        raise ValueError(f"prune: share={share}: give a share of 0 up to, not including, 1.")
    for p in matrices(model):
        p.view(-1)[p.abs().flatten().topk(int(share * p.numel()), largest=False).indices] = 0


def weights(
    hurt: Callable, world: Kit, model: nn.Module, spec: Attack
) -> Iterator[tuple[float, dict[str, float]]]:
    """Hurt a copy of the weights at each strength."""
    for strength in spec.at:
        victim = copy.deepcopy(model)
        hurt(victim, strength)
        yield strength, measured.held_out(world, victim, with_nll=spec.nll)


def prefilled(world: Kit, model, spec: Attack) -> Iterator[tuple[float, dict[str, float]]]:
    """Put words into the model's mouth: 1 the true caption without its full stop; 2 and a comma; 3
    and ", a": an opened clause.
    """
    true = [caption(scene).removesuffix(".") for scene in world.test_scenes]
    for strength in spec.at:
        prefixes = [
            " " + text + ("", ",", ", a")[int(strength) - 1] if strength else "" for text in true
        ]
        said = measured.describe(world, model, prefix=prefixes)
        yield (
            strength,
            measured.said_chair(
                world, [f"{start} {rest}" for start, rest in zip(prefixes, said, strict=True)]
            ),
        )


def leading(world: Kit, model, spec: Attack) -> Iterator[tuple[float, dict[str, float]]]:
    """Ask about an absent object, once or more, before asking for a description."""
    rng = random.Random(world.seed)
    asked = [question(rng.choice(absent(scene))) for scene in world.test_scenes]
    for strength in spec.at:
        yield (
            strength,
            measured.said_chair(
                world,
                measured.describe(
                    world,
                    model,
                    question=[" ".join([text] * int(strength) + [DESCRIBE]) for text in asked],
                ),
            ),
        )


KINDS: dict[str, Callable[[Kit, nn.Module, Attack], Iterator[tuple[float, dict[str, float]]]]] = {
    "relearn": lambda world, model, spec: tune(world, model, spec, hallucinated(world, spec.place)),
    "LoRA": lambda world, model, spec: tune(world, model, spec, hallucinated(world), "lora"),
    "projector": lambda world, model, spec: tune(
        world, model, spec, hallucinated(world), "projector"
    ),
    "clean captions": lambda world, model, spec: tune(
        world, model, spec, encoded.rows(world, "attack", encoded.attack_rows(world)["clean"])
    ),
    "answers": lambda world, model, spec: tune(world, model, spec, honest_answers(world)),
    "noise": lambda world, model, spec: weights(
        partial(add_noise, seed=world.seed), world, model, spec
    ),
    "rounding": lambda world, model, spec: weights(quantize, world, model, spec),  # at: bits
    "pruning": lambda world, model, spec: weights(prune, world, model, spec),
    "prefilled": prefilled,
    "leading": leading,
}


def attack(spec: Attack) -> dict:
    """Attack one erasure, or read it from the cache: the run's result plus {"shuffle": the attack's
    order, "curve": [{"at", **measured.held_out}]}.

    Raises ValueError on an unknown kind of attack, naming those there are.
    """
    if spec.kind not in KINDS:
        raise ValueError(f"unknown attack {spec.kind!r}: there are {', '.join(KINDS)}.")
    path = jobs.folder("attack", spec, ATTACK_SOURCES, lambda path: _do_attack(path, spec))
    curve = json.loads((path / "curve.json").read_text())
    return run(spec.run) | {"shuffle": spec.order, "curve": curve}


def _do_attack(path: Path, spec: Attack) -> None:
    world, model, curve = get_kit(spec.run.seed), erased(spec.run), []
    if (
        spec.at[0] == 0 and not spec.place
    ):  # strength 0 leaves the erased model as it is, and its run has measured that
        known = run(spec.run)["erased"]
        curve.append({"at": 0} | {key: known[key] for key in (*SAID, *(NLL if spec.nll else ()))})
    left = replace(spec, at=spec.at[len(curve) :])
    if left.at:
        curve += [
            {"at": strength} | found for strength, found in KINDS[spec.kind](world, model, left)
        ]
    files.write_json(path / "curve.json", curve)


def run_all(runs: dict[str, Sequence[Run]], progress: bool = True) -> dict[str, list[dict]]:
    """The results of erasures under their names, in order: first the missing base models, then the
    erasures, side by side.
    """
    prepare({spec.seed for row in runs.values() for spec in row}, progress=progress)
    return jobs.rows_side_by_side(run, runs, "erase", longest_first, progress)


def by_seed(spec: Run) -> tuple[int, str]:
    """An order of jobs: a worker keeps a seed's kit."""
    return spec.seed, repr(spec)


def longest_first(spec: Run) -> tuple[float, int, str]:
    """An order of erasures, by the most that their steps may cost: a core that is done waits for a
    short last job, not for a long one.
    """
    dearest = spec.training.steps * cost(spec, 1.0) if spec.method in METHODS else 0.0
    return (-dearest, *by_seed(spec))


def answer_all(
    runs: dict[str, Sequence[Run]], progress: bool = True
) -> dict[str, dict[str, list[float]]]:
    """Name -> kind of object ("shown", "usual", "foreign") -> share of "yes" after erasure, one
    value a run.
    """
    found = jobs.rows_side_by_side(answers, runs, "answers", by_seed, progress)
    return {
        name: {kind: [rates[kind] for rates in row] for kind in row[0]}
        for name, row in found.items()
    }


def attack_all(
    attacks: dict[str, Sequence[Attack]], progress: bool = True
) -> dict[str, list[dict]]:
    """The results of attacks under their names, in order: first the erasures, then the attacks,
    side by side.
    """
    run_all({name: [spec.run for spec in row] for name, row in attacks.items()}, progress)
    return jobs.rows_side_by_side(
        attack, attacks, "attack", lambda spec: by_seed(spec.run), progress
    )

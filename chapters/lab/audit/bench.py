"""Where parts are measured: a model is loaded when a part needs it, and let go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from sare_min.captions import Captions
from sare_min.llava import embed_images

from .. import jobs
from ..experiments.attacks import ATTACK_SOURCES
from ..field.photos import Photo, Pictures
from ..llava.speech import generate
from . import attacks, measures, pair, slices
from .material import Material
from .settings import TUNED, Part, Settings

SOURCES = (  # of a part's numbers: an old part is not read under new code
    *ATTACK_SOURCES,
    "chapters/lab/llava/borrowed",
    "chapters/lab/experiments/landscape",
    "chapters/lab/experiments/gauges",
    "chapters/lab/evidence/stats",
    "chapters/lab/metrics/pope",
    "chapters/lab/field/coco",
    "chapters/lab/field/devices",
    "chapters/lab/field/images",
    "chapters/lab/field/photos",
    "chapters/lab/audit/attacks",
    "chapters/lab/audit/bench",
    "chapters/lab/audit/material",
    "chapters/lab/audit/measures",
    "chapters/lab/audit/pair",
    "chapters/lab/audit/settings",
    "chapters/lab/audit/slices",
)
jobs.remember(SOURCES)


@dataclass(frozen=True)
class Held:
    """What one model is measured on and attacked with, seen by its own vision tower."""

    features: Tensor  # of the test images
    level: Captions
    attack: Captions


class Bench:
    """Measures parts. said: the captions of the part "said", once it is known."""

    def __init__(self, checkpoints: pair.Pair, material: Material, settings: Settings):
        self.pair, self.material, self.settings = checkpoints, material, settings
        self.said: list[str] = []
        self._held: dict[str, Held] = {}

    @cached_property
    def processor(self):
        """The base's: `pair.check` has seen that the erased model's is alike."""
        return pair.load_base(self.pair, "cpu")[1]

    def load(self, which: str) -> nn.Module:
        """A fresh "base" or "erased" model."""
        if which == "base":
            return pair.load_base(self.pair)[0]
        return pair.load_erased(self.pair)

    def see(self, model: nn.Module, photos: Sequence[Photo]) -> Tensor:
        """Image features, pictures opened a batch at a time."""
        rows = measures.rows_that_fit(model)
        return embed_images(model, self.processor, Pictures(photos), batch_size=rows)

    def held(self, which: str, model: nn.Module) -> Held:
        """A model's view of the material; kept, as the tower stays frozen in every attack."""
        if which not in self._held:
            m = self.material
            seen = self.see(model, m.train)
            judged = self.said, m.train_truth, m.rules, self.settings.level
            found = measures.attackers(self.processor, seen, *judged)
            self._held[which] = Held(self.see(model, m.test), *found)
        return self._held[which]

    def describe(self, model: nn.Module, features: Tensor, prefix="") -> dict:
        """CHAIR and recall on the test images."""
        how = {"max_new_tokens": self.settings.tokens, "batch_size": measures.rows_that_fit(model)}
        shown = self.material.truth, self.material.rules
        return measures.described(model, self.processor, features, *shown, prefix, **how)

    def do(self, part: Part) -> dict:
        """Measure one part; numbers and texts alone."""
        return DO[part.kind](self, part)

    def n_weights(self) -> int:
        """Weights that an attack on all of them trains."""
        named = self.load("erased").named_parameters()
        return sum(p.numel() for name, p in named if "vision_tower" not in name)


def _said(bench: Bench, part: Part) -> dict:
    model = bench.load("base")
    features = bench.see(model, bench.material.train)
    how = {"max_new_tokens": bench.settings.tokens, "batch_size": measures.rows_that_fit(model)}
    return {"captions": generate(model, bench.processor, features, temperature=1.0, seed=0, **how)}


def _before(bench: Bench, part: Part) -> dict:
    model = bench.load(part.kind)
    held, rows = bench.held(part.kind, model), measures.rows_that_fit(model)
    found = bench.describe(model, held.features)
    found |= measures.answered(model, bench.processor, held.features, bench.material.asked, rows)
    return found | measures.levels(model, held.level, rows)


def _attacked(bench: Bench, part: Part) -> dict:
    model, own = bench.load("erased"), part.own
    held = bench.held("erased", model)

    def measure(model: nn.Module) -> dict:
        found = bench.describe(model, held.features)
        return found | measures.levels(model, held.level, measures.rows_that_fit(model))

    if part.kind in TUNED:
        how = {name: own[name] for name in ("lr", "at", "seed")}
        curve = attacks.tuned(model, held.attack, measure, part.kind, **how)
    else:
        curve = attacks.hurt(model, measure, part.kind, own["at"], own.get("seed", 0))
    return {"lr": own.get("lr"), "seed": own.get("seed"), "curve": curve}


def _prefilled(bench: Bench, part: Part) -> dict:
    model, curve = bench.load("erased"), []
    held = bench.held("erased", model)
    for strength in part.own["at"]:
        words = attacks.put_in(bench.processor, bench.material.told, strength)
        curve.append({"at": strength} | bench.describe(model, held.features, words))
    return {"lr": None, "seed": None, "curve": curve}


def _sliced(bench: Bench, part: Part) -> dict:
    model = bench.load("erased")
    level, base = bench.held("erased", model).level, pair.load_base(bench.pair, "cpu")[0]
    return slices.measure(model, base, level, part.own["radii"])


DO: dict[str, Callable[[Bench, Part], dict]] = {
    "said": _said,
    "base": _before,
    "erased": _before,
    "relearn": _attacked,
    "lora": _attacked,
    "noise": _attacked,
    "rounding": _attacked,
    "prefill": _prefilled,
    "slices": _sliced,
}

"""What a lenient judge costs: erasure with a share of the hallucinations missed by the curation, and kept as if they were true."""
from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from sare_min.captions import encode
from sare_min.curate import Span
from sare_min.metrics import span_nll
from sare_min.unlearn import get_method, unlearn

from . import cache
from .experiments import RUN_SOURCES, Run, kit

cache.remember(("chapters/lab/lenient",))
SHARES = (0.0, 0.2, 0.4)


@dataclass(frozen=True)
class Lenient:
    """An erasure with masks from the truth, of which a share of the forget pieces is missed."""

    run: Run
    share: float


def missed(spans: list[dict[str, list[Span]]], captions: list[str], share: float, seed: int) -> list[dict[str, list[Span]]]:
    """The spans with each forget piece turned into a retained one with probability `share`; a caption with none left is kept whole."""
    rng, found = random.Random(seed), []
    for kinds, caption in zip(spans, captions, strict=True):
        lost = [piece for piece in kinds["forget"] if rng.random() < share]
        forget = [piece for piece in kinds["forget"] if piece not in lost]
        sentence = kinds["sentence"] if forget or not lost else [(0, len(caption))]
        found.append({"forget": forget, "retain": kinds["retain"] + lost, "sentence": sentence})
    return found


def erase(spec: Lenient) -> dict[str, float]:
    """Kit.measure after the erasure, plus "steps"; cached."""
    path = cache.folder("lenient", spec, (*RUN_SOURCES, "chapters/lab/lenient"), lambda path: _do_erase(path, spec))
    return json.loads((path / "erased.json").read_text())


def _do_erase(path: Path, spec: Lenient) -> None:
    world, run = kit(spec.run.seed), spec.run
    spans = missed(world.spans("erase", "oracle"), world.said["erase"], spec.share, run.seed)
    data, model = encode(world.processor, world.features(world.scenes["erase"]), world.said["erase"], spans), world.fresh()

    def reached(step: int) -> bool:
        return span_nll(model, world.stop_data)["forget"] >= run.stop_nll

    log = unlearn(model, data, get_method(run.method), run.training, run.seed, stop=reached, progress=False)
    cache.write_json(path / "erased.json", world.measure(model) | {"steps": len(log)})

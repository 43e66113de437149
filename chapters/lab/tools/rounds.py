"""What the benchmarks share: cases that take turns, and captions to time them on.

No more is imported than torch, transformers and peft bring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from transformers import ProcessorMixin

from ..metrics.chair import Span, exact
from ..world import models
from ..world.curate import Thresholds, curate
from ..world.scenes import OBJECTS, Scene, absent, caption

FIND = exact(OBJECTS).find
BY_TRUTH = Thresholds(0.5, 0.5, 0.99)  # a score of 1 is kept, of 0 forgotten
FORGET_SHARE = (
    0.66  # of the microworld's sampled captions, the share that names an object that is not there
)
Step = Callable[[], object]


def processor_for(side: int, patch: int) -> ProcessorMixin:
    """The microworld's processor for pictures and patches of another size, in pixels."""
    processor = models.build_processor()
    processor.patch_size = patch
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    return processor


def sampled(scenes: Sequence[Scene]) -> tuple[list[str], list[dict[str, list[Span]]]]:
    """Captions with the shape of sampled ones (2 or 3 objects, FORGET_SHARE of them with one more
    that is not there), with spans.
    """
    n_forget = round(FORGET_SHARE * len(scenes))
    texts = [
        caption(scene, absent(scene)[:1] if i < n_forget else ()) for i, scene in enumerate(scenes)
    ]
    return texts, curate(
        texts,
        [{noun: float(noun in scene.objects) for noun in OBJECTS} for scene in scenes],
        FIND,
        BY_TRUTH,
    )


def quartiles(values: Sequence[float]) -> dict[str, object]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "spread": [low, high]}


def compare(
    cases: Mapping[str, Step],
    rounds: int,
    pairs: Mapping[str, tuple[str, str]],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Run the cases in turn, A B A B, and return (seconds of each case, ratio of each pair whose
    cases are here), as quartiles.

    A ratio is taken within each round, so that a machine that grows slower on the way slows both of
    its sides.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, step in cases.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    ratios = {
        name: quartiles(np.divide(times[over], times[under]))
        for name, (over, under) in pairs.items()
        if {over, under} <= set(cases)
    }
    return {name: quartiles(seconds) for name, seconds in times.items()}, ratios

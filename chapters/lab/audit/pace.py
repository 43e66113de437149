"""How long the parts of an audit will take here: a few captions, answers and steps, timed."""

from __future__ import annotations

import time
from collections.abc import Collection

import torch
from torch import nn

from sare_min.attack import relearn
from sare_min.captions import Captions, encode
from sare_min.llava import set_trainable

from ..field import devices
from ..field.photos import ANSWER_TOKENS
from ..llava.speech import generate
from .attacks import PARTS
from .bench import Bench
from .measures import rows_that_fit
from .settings import BATCH, TUNED, Pace


def probe(bench: Bench, kinds: Collection[str]) -> Pace:
    """Seconds of a caption, an answer, a step and a load, from one batch of each on the erased
    model; kinds: of the parts to come, whose steps are timed.
    """
    start = _now()
    model, m = bench.load("erased"), bench.material
    load, n = _now() - start, min(rows_that_fit(model), len(m.test))
    features, seconds = bench.see(model, m.test[:n]), []
    questions = [question["text"] for asked, _ in m.asked.values() for question in asked]
    for asked, tokens in ((None, bench.settings.tokens), (questions[0], ANSWER_TOKENS)):
        words = {} if asked is None else {"question": asked}
        start = _now()
        generate(model, bench.processor, features, max_new_tokens=tokens, **words)
        seconds.append((_now() - start) / n)
    rows = [row % n for row in range(2 * BATCH)]
    data = encode(bench.processor, features, [m.told[row] for row in rows], image=rows)
    timed = {"relearn" if kind == "slices" else kind for kind in kinds}  # steps of all weights
    step = {kind: _seconds_of_step(model, data, kind) for kind in TUNED if kind in timed}
    return Pace(*seconds, step.get("relearn", 0.0), step.get("lora", 0.0), load)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds_of_step(model: nn.Module, data: Captions, kind: str) -> float:
    """Of the second of two steps: the first one sets up."""
    model = set_trainable(model, PARTS[kind])
    if rows_that_fit(model) < 64:
        devices.recompute(model)
    at, clock = (0, BATCH, 2 * BATCH), {}
    for n in relearn(model, data, at, lr=1e-9, batch_size=BATCH, progress=False):
        clock[n] = _now()
    return clock[2 * BATCH] - clock[BATCH]

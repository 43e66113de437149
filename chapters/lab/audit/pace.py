"""How long the parts of an audit will take here: a batch of images, captions, answers and steps,
timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial

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
from .settings import BATCH, Pace


def probe(bench: Bench, kinds: Collection[str]) -> Pace:
    """Seconds of one of each, from a batch of each; kinds: of the parts to come, whose steps are
    timed.

    Captions are timed on both models, and the slower counts: an erased one may say less, and says
    more again while it is attacked. What else the machine will have to do nobody knows.
    """
    start = _now()
    model = bench.load("erased")
    load = _now() - start
    photos = bench.material.test[: rows_that_fit(model)]
    n, features = len(photos), bench.see(model, photos)
    questions = [q["text"] for asked, _ in bench.material.asked.values() for q in asked]

    def spoken(model: nn.Module, n_tokens: int, **words) -> float:
        how = {"max_new_tokens": n_tokens} | words
        return _seconds(partial(generate, model, bench.processor, features, **how)) / n

    image = _seconds(partial(bench.see, model, photos)) / n
    answer = spoken(model, ANSWER_TOKENS, question=questions[0])
    own = spoken(model, bench.settings.tokens)
    caption = max(own, spoken(bench.load("base"), bench.settings.tokens))
    rows = [row % n for row in range(2 * BATCH)]
    data = encode(bench.processor, features, [bench.material.told[row] for row in rows], image=rows)
    step = adapter_step = 0.0
    adapter_caption = caption
    if {"relearn", "slices"} & {*kinds}:  # steps of all weights
        step = _seconds_of_step(set_trainable(model, PARTS["relearn"]), data)
    if "lora" in kinds:
        adapted = set_trainable(model, PARTS["lora"])
        adapter_step = _seconds_of_step(adapted, data)
        adapter_caption = caption * spoken(adapted, bench.settings.tokens) / own  # the same words
    return Pace(image, caption, answer, step, adapter_caption, adapter_step, load)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(do: Callable[[], object]) -> float:
    """Of the second of two calls: the first one sets up."""
    do()
    start = _now()
    do()
    return _now() - start


def _seconds_of_step(model: nn.Module, data: Captions) -> float:
    """Of the second of two steps, likewise."""
    if rows_that_fit(model) < 64:
        devices.recompute(model)
    at, clock = (0, BATCH, 2 * BATCH), {}
    for n in relearn(model, data, at, lr=1e-9, batch_size=BATCH, progress=False):
        clock[n] = _now()
    return clock[2 * BATCH] - clock[BATCH]

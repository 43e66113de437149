"""One short erasure of the microworld by each of EFUF and SARE, and its relearning attack, on a
device: does the whole road run there, and does it go the same way?

Far smaller than the book's runs, with masks by the truth, and the two stop at the first step past
a forget level, so not at the same one: its numbers decide no claim.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sare_min.attack import relearn
from sare_min.captions import Captions, encode
from sare_min.llava import embed_images, set_trainable
from sare_min.metrics import span_nll
from sare_min.unlearn import METHODS, Training, unlearn

from .. import jobs
from ..llava.speech import generate
from ..metrics.chair import chair, exact
from ..world.curate import curate
from ..world.models import World, train_clip, train_llava
from ..world.scenes import OBJECTS, Scene, clip_scenes, draw, split_scenes
from .rounds import BY_TRUTH, FIND

MENTIONS = exact(OBJECTS).mentions


@dataclass(frozen=True)
class Size:
    """How long it takes; by default about a minute for the base model, less for the rest."""

    world: World = World(n_train=3000, llava_steps=600)
    erase: int = 512  # scenes
    attack: int = 512
    test: int = 100
    steps: int = 96  # of the erasure, at most
    batch: int = 64
    forget: float = 3.0  # nats a token that it has to add to the forget spans' NLL
    at: tuple[int, ...] = (0, 64, 128)  # samples of the attack


HARDLY = World(
    n_train=200, clip_steps=2, clip_batch=16, llava_steps=60, caption_batch=8, answer_batch=8
)
TINY = Size(HARDLY, erase=48, attack=32, test=16, steps=8, batch=8, forget=0.01, at=(0, 8))


@dataclass(frozen=True)
class Heard:
    """Scenes, what the base model sees of them (n, N, D), and what it says."""

    scenes: Sequence[Scene]
    features: Tensor
    said: list[str]

    def encoded(self, processor) -> Captions:
        """With masks by the truth."""
        truth = [{noun: float(noun in scene.objects) for noun in OBJECTS} for scene in self.scenes]
        return encode(processor, self.features, self.said, curate(self.said, truth, FIND, BY_TRUTH))


def hear(model: nn.Module, processor, scenes: Sequence[Scene]) -> Heard:
    """Sampled captions; scenes of which no object is named are left out, nothing marks them."""
    features = embed_images(model, processor, [draw(scene) for scene in scenes])
    said = generate(model, processor, features, temperature=1.0, max_new_tokens=32)
    kept = [i for i, text in enumerate(said) if MENTIONS(text)]
    return Heard([scenes[i] for i in kept], features[kept], [said[i] for i in kept])


def trained(size: Size):
    """(a small base model, its processor, scenes by split); trained on the CPU, on one thread."""
    jobs.one_thread()
    world, splits = size.world, {name: getattr(size, name) for name in ("erase", "attack", "test")}
    scenes = split_scenes(0, train=world.n_train, **splits)
    clip = train_clip(clip_scenes()[: world.n_train], world, 0)
    return *train_llava(clip, scenes["train"], world, 0), scenes


def greedy_chair(model: nn.Module, processor, heard: Heard) -> dict[str, float]:
    """CHAIR and recall of greedy captions, in shares."""
    said = generate(model, processor, heard.features, max_new_tokens=32)
    found = chair([MENTIONS(text) for text in said], [scene.objects for scene in heard.scenes])
    return {name: found[name] for name in ("chair_s", "recall")}


def erase_and_attack(device: str, size: Size) -> Iterator[tuple[str, dict]]:
    """Rows: the base model, then each method after its erasure and along the relearning attack.

    ok: the erasure has reached its forget level, and greedy captions hallucinate no more than
    before. level: the forget spans' NLL on held-out scenes, nats a token.
    """
    started = time.perf_counter()
    model, processor, scenes = trained(size)
    model = model.to(device)
    heard = {k: hear(model, processor, scenes[k]) for k in ("erase", "attack", "test")}
    data, held_out = (heard[k].encoded(processor) for k in ("erase", "test"))
    before = greedy_chair(model, processor, heard["test"])
    level = span_nll(model, held_out)["forget"]
    seconds = time.perf_counter() - started
    yield "base", before | {"level": level, "seconds": seconds, "ok": math.isfinite(level)}
    wrong = heard["attack"].encoded(processor).forget.any(1).nonzero()[:, 0].tolist()
    whole = encode(
        processor, heard["attack"].features, [heard["attack"].said[i] for i in wrong], image=wrong
    )
    at = [n for n in size.at if n <= len(whole)]
    for name in ("EFUF", "SARE"):
        started = time.perf_counter()
        erased = set_trainable(copy.deepcopy(model), "all")

        def stop(_: int, erased=erased) -> bool:
            return span_nll(erased, held_out)["forget"] > level + size.forget

        training = Training(size.steps, size.batch, cooldown=min(10, size.steps // 4))
        log = unlearn(erased, data, METHODS[name], training, stop=stop, progress=False)
        row = {"steps": len(log), "level": span_nll(erased, held_out)["forget"], "curve": []}
        for n in relearn(erased, whole, at, progress=False):
            row["curve"].append({"at": n} | greedy_chair(erased, processor, heard["test"]))
        is_no_worse = row["curve"][0]["chair_s"] <= before["chair_s"]
        is_ok = is_no_worse and row["level"] >= level + size.forget
        yield name, row | {"seconds": time.perf_counter() - started, "ok": is_ok}

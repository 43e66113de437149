"""A learning rate, a rho and a forget level for a model that nobody has erased from yet, read off
its first steps.

A learning rate and a rho are lengths in weights, and an adapter on seven billion weights has other
lengths than a microworld's. What carries over is what they *do*, in nats. So the rule, on one batch
of captions that have something to forget:

    level   where to stop: the forget NLL as it is, plus FURTHER nats a token
    lr      STEPS steps of AdamW on L_neg alone go half of that way
    rho     from there, one ascent step, rho * g / ||g||, takes half of those nats back; where the
            way bends so soon that none does, the step that takes most, if that is a quarter

Each length is doubled or halved from a low guess until two of them enclose the wanted effect, and
then bisected. The model comes back bit for bit, its gradients too. rho is not read at the start:
what a base model says is already about as likely as its captions can make it, so a step towards it
shows little there.

What the rule cannot do. It sees one batch and one point of the way. The further an erasure is, the
longer the step that takes half of it back (severalfold between the first steps and the last, on the
microworld). A fresh adapter's second half is zero, so rho is mostly a length in that half.
L_neg alone is faster than a method that also keeps the grounded text. And it says nothing of
quality: look at recall and POPE after a run. It gives settings of the right order of magnitude, the
same for every method that is compared, and no best ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from sare_min.captions import Captions, base
from sare_min.llava import trainable
from sare_min.losses import Method
from sare_min.metrics import span_nll
from sare_min.sam import perturbed
from sare_min.unlearn import METHODS, Training, gradient, unlearn

from .. import files
from ..llava.borrowed import borrowed
from ..llava.remembering import known_as
from .devices import scaled

T = TypeVar("T")
FURTHER = 3.0  # nats a token: less likely by a factor of twenty
STEPS = 8  # enough for AdamW's second moments to be more than the first gradient's
HALF = 0.5  # of the way, and of what the ascent step takes back: a full share may not be had
DOUBLINGS = 24  # of a guess, or halvings: seven orders of magnitude
FALL = 0.1  # of the wanted effect: less than this below its best is noise
WITHIN = 1.1  # a factor: the effect of a tenth is smaller than that of another batch


@dataclass(frozen=True)
class Found:
    """What the rule says. lr: AdamW's. rho: L2, in the weights that train. nll: nats a forget
    token, where the batch stands now. back: nats of them that the ascent step takes back.
    """

    lr: float
    rho: float
    nll: float
    back: float


class TooLittle(ValueError):
    """No length has the wanted effect. length, effect: where most of it was seen."""

    def __init__(self, length: float, effect: float, wanted: float):
        super().__init__(f"the effect is {effect:.3g} at best, at {length:.3g}, not {wanted:.3g}.")
        self.length, self.effect = length, effect


def first_reaching(
    effect: Callable[[float], float], wanted: float, start: float, within: float = WITHIN
) -> float:
    """The x near which effect(x) first reaches `wanted`, to a factor of `within`; the x returned
    is on the near side. effect rises from 0 with x, at least until it gets there; nan and infinity
    count as too much. start: x > 0, better below it than above.

    Raises TooLittle if the effect falls again before it gets there, is not finite where it would,
    or stays below within DOUBLINGS; ValueError if it is too much everywhere.
    """
    seen: dict[float, float] = {}

    def too_little() -> TooLittle:
        finite = {x: value for x, value in seen.items() if math.isfinite(value)}
        most = max(finite, key=lambda x: finite[x])
        return TooLittle(most, finite[most], wanted)

    def is_short(x: float) -> bool:
        seen[x] = effect(x)
        return seen[x] < wanted  # nan is not short

    low = high = start
    for _ in range(DOUBLINGS):
        if is_short(low):
            break
        low, high = low / 2, low
    else:
        raise ValueError(f"the effect is {seen[high]:.3g} even at {high:.1g}, not below {wanted}.")
    for _ in range(DOUBLINGS):
        if high > low and not is_short(high):
            break
        if max(seen.values()) - seen[high] > FALL * wanted:  # what comes behind is no sign
            raise too_little()
        low, high = high, 2 * high
    else:
        raise too_little()
    while high / low > within:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_short(middle) else (low, middle)
    if not math.isfinite(seen[high]):
        raise too_little()
    return low


def probe(
    model: nn.Module,
    data: Captions,
    rows: int = 16,
    micro_batch: int = 64,
    start: tuple[float, float] = (1e-5, 0.01),
    keep: Path | None = None,
) -> Found:
    """The rule above on the first `rows` captions that have a forget token.

    model: what trains is set (set_trainable). data: with forget masks. micro_batch: captions in one
    forward. start: a low guess of (lr, rho); far beyond the mark an effect may be small again, and
    is then taken for too short. keep: a JSON file for each length that was tried: a run that goes
    on tries none twice, and has its own settings to the last bit. What was tried on other weights
    or captions is tried anew. Raises ValueError if `keep` is another file, nothing trains, nothing
    is to be forgotten, the forget NLL is not finite (weights in fp16 that overflow), or no length
    has the wanted effect, as where the model cannot forget in so few steps.
    """
    if not trainable(model):
        raise ValueError("nothing trains: call sare_min.llava.set_trainable(model, part) first.")
    chosen = data.forget.any(1).nonzero()[:rows, 0]
    if not len(chosen):
        raise ValueError(f"no forget token in {len(data)} captions: raise the forget threshold.")
    batch = data[chosen].to(trainable(model)[0].device)
    nll = span_nll(model, batch, micro_batch)["forget"]
    if not math.isfinite(nll):
        raise ValueError(
            f"the forget NLL is {nll} before any step: the weights overflow in this dtype. Load in"
            " bf16 or fp32."
        )
    tried = _Tried(keep, known_as(model, batch))
    lr = _named("lr", _lr, tried, model, batch, micro_batch, nll, start[0])
    rho, back = _named("rho", _rho, tried, model, batch, micro_batch, nll, lr, start[1])
    return Found(*(float(f"{value:.6g}") for value in (lr, rho, nll, back)))


class _Tried:
    """The effects of lengths that were tried, in a file if there is one."""

    def __init__(self, keep: Path | None, of: str):
        self.keep, self.of, self.seen = keep, of, {}
        if keep and keep.exists():
            self.seen = _read_tried(keep, of)

    def effect(self, name: str, measure: Callable[[float], float]) -> Callable[[float], float]:
        """`measure`, which is not asked twice for the same length."""

        def look(x: float) -> float:
            key = f"{name} {x!r}"
            if key not in self.seen:
                self.seen[key] = measure(x)
                if self.keep:  # not write_json, which rounds: a bisection may hang on a last digit
                    self.keep.parent.mkdir(parents=True, exist_ok=True)
                    content = {"of": self.of, "tried": self.seen}
                    files.write_text(self.keep, json.dumps(content, indent=1) + "\n")
            return self.seen[key]

        return look


def _read_tried(keep: Path, of: str) -> dict[str, float]:
    """What stands in the file, if it was tried on the same; ValueError if it is another file."""
    content = files.read_json(keep, "Delete it.")
    try:
        tried = {str(key): float(value) for key, value in content["tried"].items()}
        return tried if content["of"] == of else {}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{keep}: not what a probe has tried. Delete it.") from error


def _named(name: str, search: Callable[..., T], *given) -> T:
    try:
        return search(*given)
    except ValueError as error:
        raise ValueError(f"probe: no {name} does it: {error} Give one of your own.") from error


def _alone(model: nn.Module) -> Method:
    """L_neg and nothing else, scaled where the frozen weights are fp16."""
    return scaled(METHODS["GA"], base(model).dtype)


def _first_steps(model: nn.Module, batch: Captions, micro_batch: int, lr: float) -> float:
    """Take STEPS steps; the forget NLL after them, or infinity if a loss was not finite."""
    how = Training(STEPS, len(batch), micro_batch, lr, cooldown=0)
    try:
        unlearn(model, batch, _alone(model), how, progress=False)
    except ValueError:  # probe has checked what else could be wrong
        return math.inf
    return span_nll(model, batch, micro_batch)["forget"]


def _lr(
    tried: _Tried, model: nn.Module, batch: Captions, micro_batch: int, nll: float, start: float
) -> float:
    def rise(lr: float) -> float:
        with borrowed(trainable(model)):
            return _first_steps(model, batch, micro_batch, lr) - nll

    return first_reaching(tried.effect("lr", rise), HALF * FURTHER, start)


def _rho(
    tried: _Tried,
    model: nn.Module,
    batch: Captions,
    micro_batch: int,
    nll: float,
    lr: float,
    start: float,
) -> tuple[float, float]:
    """(rho, the nats that it takes back)."""
    params = trainable(model)
    with borrowed(params):
        there = _first_steps(model, batch, micro_batch, lr)
        gradient(model, batch, _alone(model), micro_batch)
        direction = tuple(p.grad for p in params)  # no list: perturbed would empty it

        def drop(rho: float) -> float:
            with perturbed(params, direction, rho):
                return there - span_nll(model, batch, micro_batch)["forget"]

        effect, wanted = tried.effect("rho", drop), HALF * (there - nll)
        try:
            rho = first_reaching(effect, wanted, start)
        except TooLittle as error:
            if error.effect < HALF * wanted:
                raise
            rho = error.length
        return rho, effect(rho)

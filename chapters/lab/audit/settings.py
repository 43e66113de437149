"""What an audit measures, how much of it, and in which order of worth; no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ..metrics.chair import SYNONYMS

ATTACKS = ("relearn", "lora", "noise", "rounding", "prefill")
TUNED = (
    "relearn",
    "lora",
)  # the attacks that fine-tune: they have learning rates and sample counts
BATCH = 8  # captions a step of the attacker
FOR = {"said": ("base",), "base": ("base",)}  # a kind of part -> the models that it depends on
ALWAYS = ("said", "base", "erased")  # without these there is no report


@dataclass(frozen=True)
class Settings:
    """How much is measured. The sweep of rates spans what LLaVAs of 1 million to 7 billion weights
    relearn by; strengths are chapter 04's.
    """

    attacks: tuple[str, ...] = ATTACKS
    seeds: int = 3  # orders of the attacker's captions, draws of noise and of a fresh adapter
    test: int = 200  # captioned at each measurement: the first of the images that POPE asks about
    train: int = 1024  # training images that the base model captions for the attacker
    skip: int = 0  # training images before those: give what the erasure saw
    level: int = 32  # hallucinated captions kept from the attacker: they measure the forget level
    at: tuple[int, ...] = (0, 32, 64, 128, 256, 512)  # relearning samples
    relearn: tuple[float, ...] = (2e-4, 5e-5, 1e-3, 1e-5)  # learning rates, the worthiest first
    lora: tuple[float, ...] = (1e-3, 2e-4, 5e-3)
    noise: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)  # standard deviations of each matrix
    rounding: tuple[int, ...] = (8, 6, 5, 4, 3)  # bits a weight
    prefill: tuple[int, ...] = (1, 2, 3)  # see attacks.put_in
    # Of the slices: L2, as shares of the length of the base model's weights, which is the same for
    # all erasures of one base
    radii: tuple[float, ...] = (0.003, 0.01, 0.02, 0.05)
    tokens: int = 64  # of a caption, at most
    convention: str = "efuf"  # of CHAIR: which words name an object
    synonyms: str = str(SYNONYMS)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.attacks if name not in ATTACKS]:
            raise ValueError(
                f"--attacks {unknown[0]!r}: no such attack: there are {', '.join(ATTACKS)}."
            )
        if not self.attacks or len(set(self.attacks)) != len(self.attacks):
            raise ValueError(f"--attacks {','.join(self.attacks)!r}: give each once, one at least.")
        least = {"seeds": 1, "test": 1, "train": 1, "skip": 0, "level": 1, "tokens": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number from {low}.")
        if (
            self.at[:1] != (0,)
            or any(n % BATCH for n in self.at)
            or [*self.at] != sorted({*self.at})
        ):
            raise ValueError(f"at={self.at}: give 0, then rising multiples of {BATCH}.")
        for name in TUNED:
            rates = getattr(self, name)
            if name in self.attacks and (not rates or not all(0 < lr < 1 for lr in rates)):
                raise ValueError(f"{name}: learning rates {rates}: give some between 0 and 1.")


@dataclass(frozen=True)
class Work:
    """What a part costs, in counts that a probe turns into seconds: images seen, images captioned,
    questions answered, steps of 8 captions; said and trained with an adapter or without.
    """

    images: int = 0
    captions: int = 0
    answers: int = 0
    steps: int = 0
    adapter_captions: int = 0
    adapter_steps: int = 0
    copies: float = 0.0  # fp32 numbers held for each weight that trains


@dataclass(frozen=True)
class Part:
    """One result of its own, measured at once and kept as one file. how: its own settings."""

    kind: str
    how: tuple[tuple[str, object], ...] = ()
    work: Work = Work()

    @property
    def name(self) -> str:
        """ "relearn lr 0.0002 seed 1": of the part, and of its file."""
        told = [f"{k} {v:g}" for k, v in self.how if k in ("lr", "seed") and v is not None]
        return " ".join([self.kind, *told])

    @property
    def own(self) -> dict:
        return dict(self.how)


def parts(settings: Settings, n_questions: int) -> list[Part]:
    """All parts, the worthiest first; a budget drops them from the end.

    First the two models themselves; then each attack once, with all of its learning rates, the one
    that breaks most erasures first; then the slices; then further seeds.
    """
    seen = settings.test + settings.train
    answered = replace(_measured(settings), images=seen, answers=n_questions)
    found = [Part("said", work=Work(images=settings.train, captions=settings.train))]
    found += [Part("base", work=answered), Part("erased", work=answered)]
    for seed in range(settings.seeds):
        for kind in ATTACKS:
            if kind in settings.attacks:
                found += _attack(settings, kind, seed)
        if seed == 0:
            # A gradient for the relapse direction; the worst point, a few at each radius; two lines
            steps = 4 + 6 * len(settings.radii)
            found.append(Part("slices", (("radii", settings.radii),), Work(steps=steps, copies=7)))
    return found


def _attack(settings: Settings, kind: str, seed: int) -> list[Part]:
    """One seed of an attack: a part a learning rate; of one without chance, only the first."""
    strengths = getattr(settings, kind)
    if kind in TUNED:
        work = _measured(settings, len(settings.at), settings.at[-1] // BATCH)
        if kind == "relearn":
            work = replace(work, copies=4)
        else:
            work = Work(adapter_captions=work.captions, adapter_steps=work.steps)
        own = [(("lr", lr), ("seed", seed), ("at", settings.at)) for lr in strengths]
        return [Part(kind, how, work) for how in own]
    if seed and kind != "noise":
        return []
    work = replace(_measured(settings, len(strengths)), copies=2 if kind != "prefill" else 0)
    own = (("seed", seed),) if kind == "noise" else ()
    return [Part(kind, (*own, ("at", strengths)), work)]


def _measured(settings: Settings, times: int = 1, steps: int = 0) -> Work:
    """Captions and forget level, so many times, beside an attack's own steps. The level is a
    forward pass, about a third of a step.
    """
    return Work(captions=settings.test * times, steps=steps + times * settings.level // (3 * BATCH))


@dataclass(frozen=True)
class Pace:
    """Seconds that one of each takes on this machine, as probed; load: reading a checkpoint."""

    image: float
    caption: float
    answer: float
    step: float
    adapter_caption: float
    adapter_step: float
    load: float

    def seconds(self, part: Part) -> float:
        """What a part takes by this pace."""
        work = part.work
        return (
            self.load
            + work.images * self.image
            + work.captions * self.caption
            + work.answers * self.answer
            + work.steps * self.step
            + work.adapter_captions * self.adapter_caption
            + work.adapter_steps * self.adapter_step
        )


def choose(
    parts: Sequence[Part], pace: Pace, budget: float | None, done: Collection[str] = ()
) -> tuple[list[Part], list[Part]]:
    """(kept, dropped) parts, in order: the least worthy are dropped until the seconds left to do
    fit the budget. Never those of ALWAYS, nor what is done already.
    """
    left = sum(pace.seconds(part) for part in parts if part.name not in done)
    dropped = []
    for part in reversed(parts):
        if budget is None or left <= budget:
            break
        if part.kind not in ALWAYS and part.name not in done:
            dropped.insert(0, part)
            left -= pace.seconds(part)
    return [part for part in parts if part not in dropped], dropped


def read_budget(text: str) -> float:
    """Seconds of "90s", "20m", "1h30m"; raises ValueError for another text."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not found or not text:
        raise ValueError(f"--budget {text!r}: give a time as 90s, 20m or 1h30m.")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60 * minutes + seconds


def spell_time(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

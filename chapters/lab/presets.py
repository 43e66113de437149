"""How much of the same code runs: the fast and the full preset, and the rows that the book compares."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .experiments import Attack, Run


@dataclass(frozen=True)
class Preset:
    """How much of the same code runs."""

    seeds: tuple[int, ...]
    at: tuple[int, ...]  # relearning samples after which the attacked model is measured
    noise: tuple[float, ...]  # caption noise of the control models (chapter 00)
    n_noise_seeds: int

    def few(self) -> Preset:
        """The first five seeds, for comparisons that are no headline."""
        return replace(self, seeds=self.seeds[:5])


PRESETS = {
    "fast": Preset(seeds=(21, 22), at=(0, 64, 128, 256, 512), noise=(0.0, 0.65), n_noise_seeds=1),
    "full": Preset(seeds=(21, 22, 23, 24, 25, 26), at=(*range(0, 256, 32), *range(256, 641, 64)), noise=(0.0, 0.35, 0.65),
                   n_noise_seeds=2),
}


def get_preset(name: str, seeds: Sequence[int] = ()) -> Preset:
    """PRESETS[name], on other seeds if some are given; raises ValueError naming the presets there are, or the seed that is no number."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: there are {', '.join(PRESETS)}.")
    wrong = [seed for seed in seeds if not str(seed).isdigit()]
    if wrong or len(set(map(int, seeds))) != len(seeds):
        raise ValueError(f"seeds {' '.join(map(str, seeds))!r}: give distinct whole numbers, separated by spaces.")
    return replace(PRESETS[name], seeds=tuple(int(seed) for seed in seeds)) if seeds else PRESETS[name]


def book_attacks(preset: Preset, *names: str, **changes) -> dict[str, list[Attack]]:
    """The named rows of the book's comparison, one attack a seed: "base", or a method, alone (CLIP masks) or followed by " oracle".

    All end at the same forget level, STOP_NLL, on the same data in the same order, and meet the same attack; changes: Attack's fields.
    """
    return {name: [Attack(Run(seed, name.split()[0], masks="oracle" if "oracle" in name else "clip"), **{"at": preset.at} | changes)
                   for seed in preset.seeds] for name in names}

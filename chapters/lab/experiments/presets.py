"""How much of the same code runs: the fast and the full preset, and the rows that the book
compares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sare_min.unlearn import METHODS

from ..files import BOOK_SEEDS
from .attacks import Attack, run_all
from .erasures import STOP_NLL, TRAINING, Run, run


@dataclass(frozen=True)
class Preset:
    """How much of the same code runs."""

    seeds: tuple[int, ...]
    orders: int  # erasures a seed where a primary claim is asked, each with its own shuffle
    shuffles: int  # attacks an erasure, the same
    at: tuple[int, ...]  # relearning samples after which the attacked model is measured
    coarse: tuple[int, ...]  # the same for comparisons that are exploratory
    # control models (chapter 00): caption noise, number of seeds
    noise: tuple[tuple[float, int], ...]
    lambdas: tuple[float, ...]  # the front's lambda_neg
    rhos: tuple[float, ...]  # and rho
    n_side_seeds: int  # seeds of comparisons that are exploratory
    rivals: tuple[str, ...]  # baselines beside EFUF (chapter 02)
    causes: tuple[str, ...]  # rivals of claim C8 beside EFUF and SARE (chapter 04)
    controls: tuple[str, ...]  # exploratory ones (chapter 04): of CONTROLS and PARTNERS
    lrs: tuple[float, ...]  # learning rates of the attacker's sweep
    kinds: tuple[str, ...]  # other attacks: of STRENGTHS
    methods: tuple[str, ...]  # rows of METHODS that meet the attack (chapter 04)
    compared: tuple[str, ...]  # those whose text quality is measured (chapter 03)
    map_points: int  # a side of the map of chapter 02; odd
    # shares of the hallucinated pieces that a lenient judge misses (chapter 02)
    missed: tuple[float, ...]
    levels: tuple[float, ...]  # unequal forget levels (chapter 04)
    cheaper: tuple[str, ...]  # approximate ascent steps: of CHEAPER

    def few(self) -> Preset:
        """The first seeds, for comparisons that are exploratory."""
        return replace(self, seeds=self.seeds[: self.n_side_seeds])

    def with_honest(self) -> Preset:
        """The seeds that have a model which never hallucinated (captions without noise)."""
        return replace(self, seeds=self.seeds[: dict(self.noise)[0.0]])


# What else could make SARE robust? A rival cause each, and how it differs from a row of METHODS
CONTROLS: dict[str, tuple[str, dict]] = {
    "SARE, random step": ("SARE", {"step": "random"}),
    "SARE, wrong sign": ("SARE", {"step": "wrong sign"}),
    "SARE, step on retain": ("SARE", {"changes": (("perturb", ("pos", "sent")),)}),
    "EFUF, from above": (
        "EFUF",
        # Without a cool-down, or it would fall on past the level
        {"peak": STOP_NLL + 1.5, "training": replace(TRAINING, cooldown=0)},
    ),
    "SARE, eps kept 4 steps": ("SARE", {"step": "kept"}),
    "SARE, eps from a quarter": ("SARE", {"step": "sampled"}),
    "SARE, eps of the projector": ("SARE", {"step": "projector"}),
}
# These take their level or their work from other runs of the same seed and order: (a row of
# METHODS, the others)
PARTNERS = {
    "EFUF, SARE's work": ("EFUF", ("SARE",)),
    "EFUF+SAM, equal work": ("EFUF+SAM", ("SARE", "EFUF+SAM")),
    "SARE, equal work": ("SARE", ("SARE", "EFUF+SAM")),
    "EFUF, honest level": ("EFUF", ("honest",)),
    "SARE, honest level": ("SARE", ("honest",)),
}
LONG = 2000  # steps, where the work that was given ends a run
CHEAPER = tuple(name for name in CONTROLS if "eps" in name)
STRENGTHS: dict[str, dict] = {  # other attacks than full relearning: Attack's fields
    "LoRA": {"kind": "LoRA", "at": (0, 64, 128, 256), "lr": 1e-3},
    "projector": {"kind": "projector", "at": (0, 64, 128, 256), "lr": 1e-3},
    "one place": {"place": "kitchen", "at": (0, 64, 128)},
    "clean captions": {"kind": "clean captions", "at": (0, 128, 320)},
    "answers": {"kind": "answers", "at": (0, 128, 512)},
    "noise": {"kind": "noise", "at": (0, 0.1, 0.3, 0.5)},
    "rounding": {"kind": "rounding", "at": (16, 8, 5, 4, 3)},
    "pruning": {"kind": "pruning", "at": (0, 0.1, 0.3, 0.5)},
    "prefilled": {"kind": "prefilled", "at": (0, 1, 2, 3)},
    "leading": {"kind": "leading", "at": (0, 1, 2)},
}
# Else: samples
UNITS = {  # a template of an attack's first and last strength, where those are no samples
    "noise": "{first:g} to {last:g} standard deviations",
    "rounding": "{first:g} to {last:g} bits a weight",
    "pruning": "{first:g} to {last:g} of the weights",
    "prefilled": "a caption, a comma, “a”",
    "leading": "one question, two questions",
}


PRESETS = {
    "fast": Preset(
        seeds=BOOK_SEEDS[:2],
        orders=1,
        shuffles=1,
        at=(0, 64, 128, 256, 640),
        coarse=(0, 128, 256, 640),
        noise=((0.0, 1), (0.7, 1)),
        lambdas=(0.1,),
        rhos=(0.0, 0.2),
        n_side_seeds=1,
        rivals=("NPO",),
        causes=("SARE, random step",),
        controls=("EFUF, SARE's work",),
        lrs=(1e-4, 4e-4),
        kinds=("noise", "prefilled"),
        methods=("EFUF", "SARE"),
        compared=("EFUF", "SARE"),
        map_points=9,
        missed=(0.0, 0.4),
        levels=(4.0, STOP_NLL),
        cheaper=CHEAPER[:1],
    ),
    "full": Preset(
        seeds=BOOK_SEEDS,
        orders=2,
        shuffles=2,
        at=(0, 32, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768),
        coarse=(0, 64, 128, 256, 384, 512, 768),
        noise=((0.0, 6), (0.7, 6)),
        lambdas=(0.1, 0.2),
        rhos=(0.0, 0.1, 0.2, 0.3),
        n_side_seeds=5,
        rivals=("GA", "GradDiff", "EFUF released", "NPO", "SimNPO"),
        causes=("SARE, random step", "EFUF+SAM", "EFUF+SAM, equal work", "SARE, equal work"),
        controls=(
            "EFUF, SARE's work",
            "EFUF, from above",
            "SARE, step on retain",
            "SARE, wrong sign",
        ),
        lrs=(3e-5, 5e-5, 1e-4, 1.5e-4, 3e-4, 4.5e-4, 6e-4, 1e-3),
        kinds=tuple(STRENGTHS),
        methods=tuple(METHODS),
        compared=("EFUF", "EFUF+SAM", "NPO", "NPO+Targeted-SAM", "SARE"),
        map_points=17,
        missed=(0.0, 0.2, 0.4),
        levels=(4.0, STOP_NLL, 12.0),
        cheaper=CHEAPER,
    ),
}
# What the primary claims need, and next to nothing of the rest: do they hold on other seeds?
PRESETS["headline"] = replace(
    PRESETS["full"],
    n_side_seeds=1,
    lambdas=(0.1,),
    rhos=(0.0, 0.2),
    rivals=(),
    controls=(),
    lrs=(),
    methods=("EFUF", "SARE"),
    compared=("SARE",),
    missed=(0.0,),
    levels=(STOP_NLL,),
    cheaper=(),
)


def get_preset(name: str, seeds: Sequence[int] = ()) -> Preset:
    """PRESETS[name], on other seeds if some are given; raises ValueError naming the presets there
    are, or the seed that is no number.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: there are {', '.join(PRESETS)}.")
    # Of more digits than torch's generator takes: it would end a run of minutes
    wrong = [seed for seed in seeds if not re.fullmatch("[0-9]{1,9}", str(seed))]
    if wrong or len(set(map(int, seeds))) != len(seeds):
        raise ValueError(
            f"seeds {' '.join(map(str, seeds))!r}: give distinct whole numbers of at most nine"
            " digits, separated by spaces."
        )
    return (
        replace(PRESETS[name], seeds=tuple(int(seed) for seed in seeds)) if seeds else PRESETS[name]
    )


def book_run(name: str, seed: int, order: int = 0, **changes) -> Run:
    """One erasure of the book: "base", "honest", a row of METHODS or of CONTROLS with CLIP's masks
    or, followed by " oracle", with those of the truth, or a row of PARTNERS.

    All land on one forget level, STOP_NLL, with the same data; "honest level" is that of the model
    that never hallucinated. At another's "work" a run goes on for as many passes, and forgets only
    while below the level; at "equal work" only the one that had less does. The released schedule of
    EFUF, two passes over the captions long, ends by itself, where it ends.
    """
    if name in PARTNERS:
        method, others = PARTNERS[name]
        found = [run(book_run(n, seed, order if n in METHODS else 0))["erased"] for n in others]
        if others == ("honest",):
            changes = {"stop_nll": found[0]["stop_level"]} | changes
        else:
            work = dict(zip(others, (result["passes"] for result in found), strict=True))
            if max(work, key=lambda n: work[n]) == method:  # the other one gets its work
                return book_run(method, seed, order, **changes)
            long = replace(TRAINING, steps=LONG)
            changes = {"work": max(work.values()), "training": long} | changes
    else:
        method, wanted = CONTROLS.get(name, (name.removesuffix(" oracle"), {}))
        changes = wanted | changes
    if method in METHODS and METHODS[method].schedule:
        changes = {"training": replace(TRAINING, steps=128), "stop_nll": None} | changes
    masks = "oracle" if name.endswith(" oracle") else "clip"
    return Run(seed, method, masks=masks, order=order, **changes)


def book_runs(preset: Preset, *names: str, orders: int = 1, **changes) -> dict[str, list[Run]]:
    """The named rows of the book's comparison, `orders` book_runs a seed; changes: Run's fields.

    What others take their level or work from is erased first.
    """
    orders_of = {name: orders if name not in ("base", "honest") else 1 for name in names}
    wanted = [other for name in names if name in PARTNERS for other in PARTNERS[name][1]]
    if wanted:
        run_all(book_runs(preset, *dict.fromkeys(wanted), orders=orders))
    return {
        name: [
            book_run(name, seed, order, **changes)
            for seed in preset.seeds
            for order in range(orders_of[name])
        ]
        for name in names
    }


def book_attacks(
    preset: Preset, *names: str, orders: int = 1, shuffles: int = 1, **changes
) -> dict[str, list[Attack]]:
    """The named rows of the book's comparison (book_runs), `shuffles` attacks an erasure; changes:
    Attack's fields. Measured at the preset's `at`.
    """
    how = {"at": preset.at, "nll": True} | changes
    return {
        name: [Attack(spec, order=shuffle, **how) for spec in row for shuffle in range(shuffles)]
        for name, row in book_runs(preset, *names, orders=orders).items()
    }


def attacks_on(
    runs: Mapping[object, Sequence[Run]], preset: Preset, **changes
) -> dict[object, list[Attack]]:
    """Attacks on the given runs; changes: Attack's fields."""
    how = {"at": preset.coarse, "nll": True} | changes
    return {name: [Attack(spec, **how) for spec in row] for name, row in runs.items()}


def other_attacks(preset: Preset, *names: str) -> dict[tuple[str, str], list[Attack]]:
    """The preset's other updates and prompts on the named methods: {(kind of attack, method): [an
    attack a seed]}.
    """
    return {
        (kind, name): row
        for kind in preset.kinds
        for name, row in book_attacks(preset, *names, nll=False, **STRENGTHS[kind]).items()
    }


def sweep(preset: Preset, *names: str) -> dict[float, dict[str, list[Attack]]]:
    """The relearning attack at each learning rate, the fixed one among them, a run a seed."""
    rates = sorted({*preset.lrs, Attack.lr})
    how = {"at": preset.coarse, "nll": False}
    return {lr: book_attacks(preset, *names, lr=lr, **how) for lr in rates}


def by_level(preset: Preset) -> dict[str, dict[str, str]]:
    """{method: {forget level in nats: the row's name}} of `unequal_levels`."""
    return {
        method: {f"{level:g}": f"{method}, {level:g} nats" for level in preset.levels}
        for method in ("EFUF", "SARE")
    }


def unequal_levels(preset: Preset) -> dict[str, list[Run]]:
    """EFUF and SARE, landed on each of the preset's forget levels, a run a seed."""
    return {
        name: [book_run(method, seed, stop_nll=float(level)) for seed in preset.seeds]
        for method, row in by_level(preset).items()
        for level, name in row.items()
    }


def front(preset: Preset) -> dict[tuple[float, float], list[Run]]:
    """lambda_neg x rho: SARE at every pair, a run a seed; at rho = 0 it is EFUF. The book's own two
    settings are the same runs.
    """

    def spec(seed: int, lambda_neg: float, rho: float) -> Run:
        method = "SARE" if rho else "EFUF"
        wanted = (("lambda_neg", lambda_neg), ("rho", rho))
        return Run(
            seed,
            method,
            changes=tuple((k, v) for k, v in wanted if getattr(METHODS[method], k) != v),
        )

    return {
        (x, y): [spec(seed, x, y) for seed in preset.seeds]
        for x in preset.lambdas
        for y in preset.rhos
    }

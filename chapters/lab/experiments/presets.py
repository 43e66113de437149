"""How much of the same code runs: the fast and the full preset, and the rows that the book
compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sare_min.unlearn import METHODS

from ..files import BOOK_SEEDS
from .attacks import Attack
from .cheaper import COST
from .erasures import STOP_NLL, TRAINING, Run


@dataclass(frozen=True)
class Preset:
    """How much of the same code runs."""

    seeds: tuple[int, ...]
    at: tuple[int, ...]  # relearning samples after which the attacked model is measured
    coarse: tuple[int, ...]  # the same where many attacks are compared
    # control models (chapter 00): caption noise, number of seeds
    noise: tuple[tuple[float, int], ...]
    lambdas: tuple[float, ...]  # the front's lambda_neg
    rhos: tuple[float, ...]  # and rho
    n_side_seeds: int  # seeds of comparisons that are no headline
    rivals: tuple[str, ...]  # baselines beside EFUF (chapter 02)
    controls: tuple[str, ...]  # of CONTROLS (chapter 04)
    # relearning: learning rate, batch size, last sample count
    attackers: tuple[tuple[float, int, int], ...]
    kinds: tuple[str, ...]  # other attacks: of STRENGTHS
    attacked: tuple[str, ...]  # the methods that meet all of these
    compared: tuple[str, ...]  # the methods whose text quality is measured (chapter 03)
    map_points: int  # a side of the map of chapter 01; odd
    # shares of the hallucinated pieces that a lenient judge misses (chapter 02)
    missed: tuple[float, ...]
    levels: tuple[float, ...]  # unequal forget levels (chapter 04)
    cheaper: tuple[str, ...]  # approximate ascent steps: of CHEAPER
    # Drawn in chapter 03
    gauges: tuple[str, ...] = (
        "gradient_norm",
        "top_eigenvalue",
        "trace",
        "worst_ball_0.5",
        "relapse_radius_worst",
        "random_loss",
        "distance",
        "steps",
    )

    def few(self) -> Preset:
        """The first seeds, for comparisons that are no headline."""
        return replace(self, seeds=self.seeds[: self.n_side_seeds])


CONTROLS = (
    "EFUF, SARE's level",
    "EFUF, SARE's level and compute",
    "EFUF, from above",
    "SARE, random step",
    "SARE, wrong sign",
    "SARE, step on retain",
)
CHEAPER = {
    "SARE, eps kept 4 steps": "kept",
    "SARE, eps from a quarter": "sampled",
    "SARE, eps of the projector": "projector",
}
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
UNITS = {
    "noise": "noise, standard deviations",
    "rounding": "bits a weight",
    "pruning": "share of weights",
    "prefilled": "words put in",
    "leading": "questions before",
}


PRESETS = {
    "fast": Preset(
        seeds=BOOK_SEEDS[:2],
        at=(0, 64, 128, 256, 512),
        coarse=(0, 128, 256, 512),
        noise=((0.0, 1), (0.7, 1)),
        lambdas=(0.1,),
        rhos=(0.0, 0.2),
        n_side_seeds=1,
        rivals=("NPO",),
        controls=CONTROLS[3:4],
        attackers=((6e-4, 8, 256),),
        kinds=("noise", "prefilled"),
        attacked=("EFUF", "SARE"),
        compared=("EFUF", "SARE"),
        map_points=9,
        missed=(0.0, 0.4),
        levels=(4.0, STOP_NLL),
        cheaper=tuple(CHEAPER)[:1],
    ),
    "full": Preset(
        seeds=BOOK_SEEDS,
        at=(*range(0, 128, 32), *range(128, 385, 64), 512, 640),
        coarse=(0, 64, 128, 256, 384, 640),
        noise=((0.0, 5), (0.7, 5)),
        lambdas=(0.1, 0.2, 0.3),
        rhos=(0.0, 0.05, 0.1, 0.2, 0.3),
        n_side_seeds=5,
        rivals=("GA", "GradDiff", "EFUF released", "NPO", "SimNPO"),
        controls=CONTROLS,
        attackers=((1e-4, 8, 640), (6e-4, 8, 384), (2e-4, 32, 640), (6e-4, 32, 640)),
        kinds=tuple(STRENGTHS),
        attacked=tuple(METHODS),
        compared=("GradDiff", "EFUF", "EFUF+SAM", "NPO", "NPO+Targeted-SAM", "SARE"),
        map_points=17,
        missed=(0.0, 0.2, 0.4),
        levels=(4.0, STOP_NLL, 12.0),
        cheaper=tuple(CHEAPER),
    ),
}
# The full preset's headline and its attackers alone, at a third of the time: do the claims C1 to C6
# hold on other seeds?
PRESETS["headline"] = replace(
    PRESETS["full"],
    lambdas=(0.1,),
    rhos=(0.0, 0.2),
    rivals=(),
    controls=(),
    kinds=("noise",),
    attacked=("EFUF", "SARE"),
    compared=("EFUF", "SARE"),
    missed=(0.0, 0.4),
    levels=(STOP_NLL,),
    cheaper=(),
)


def get_preset(name: str, seeds: Sequence[int] = ()) -> Preset:
    """PRESETS[name], on other seeds if some are given; raises ValueError naming the presets there
    are, or the seed that is no number.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: there are {', '.join(PRESETS)}.")
    wrong = [seed for seed in seeds if not str(seed).isdigit()]
    if wrong or len(set(map(int, seeds))) != len(seeds):
        raise ValueError(
            f"seeds {' '.join(map(str, seeds))!r}: give distinct whole numbers, separated by"
            " spaces."
        )
    return (
        replace(PRESETS[name], seeds=tuple(int(seed) for seed in seeds)) if seeds else PRESETS[name]
    )


def book_run(name: str, seed: int, **changes) -> Run:
    """One erasure of the book: "base", or a row of METHODS with CLIP's masks or, followed by "
    oracle", with those of the truth.

    All stop at the same forget level, STOP_NLL, on the same data in the same order. The released
    schedule of EFUF, two passes over the captions long, ends by itself, where it ends.
    """
    method = name.removesuffix(" oracle")
    if method in METHODS and METHODS[method].schedule:
        changes = {"training": replace(TRAINING, steps=128), "stop_nll": None} | changes
    return Run(seed, method, masks="oracle" if name.endswith(" oracle") else "clip", **changes)


def book_runs(preset: Preset, *names: str, **changes) -> dict[str, list[Run]]:
    """The named rows of the book's comparison, one book_run a seed; changes: Run's fields."""
    return {name: [book_run(name, seed, **changes) for seed in preset.seeds] for name in names}


def book_attacks(preset: Preset, *names: str, **changes) -> dict[str, list[Attack]]:
    """The named rows of the book's comparison (book_run), one attack a seed; changes: Attack's
    fields.

    At the preset's own sample counts, the headline's, the NLL of the spans is measured too.
    """
    how = changes if "at" in changes else {"at": preset.at, "nll": True} | changes
    return {name: [Attack(book_run(name, seed), **how) for seed in preset.seeds] for name in names}


def attacks_on(
    runs: dict[str, Sequence[Run]], preset: Preset, **changes
) -> dict[str, list[Attack]]:
    """Attacks on the given runs; changes: Attack's fields."""
    return {
        name: [Attack(run, **{"at": preset.coarse} | changes) for run in row]
        for name, row in runs.items()
    }


def other_attacks(preset: Preset) -> dict[tuple[str, str], list[Attack]]:
    """The preset's other updates and prompts on the methods that meet them all: {(kind of attack,
    method): [an attack a seed]}.
    """
    return {
        (kind, name): row
        for kind in preset.kinds
        for name, row in book_attacks(preset, *preset.attacked, **STRENGTHS[kind]).items()
    }


def rough_steps(preset: Preset) -> dict[str, list[Run]]:
    """SARE with the preset's approximate ascent steps, a run a seed: {a key of CHEAPER: row}."""
    return {
        name: [book_run("SARE", seed, step=CHEAPER[name]) for seed in preset.seeds]
        for name in preset.cheaper
    }


def unequal_levels(preset: Preset) -> dict[str, list[Run]]:
    """EFUF, told to stop at each of the preset's forget levels, a run a seed."""
    return {
        f"EFUF, stopped at {level:g} nats": [
            book_run("EFUF", seed, stop_nll=level) for seed in preset.seeds
        ]
        for level in preset.levels
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


def controls(preset: Preset, sare: Sequence[dict]) -> dict[str, list[Run]]:
    """What else could make SARE robust? One row a rival cause. sare: SARE's results, one a seed,
    whose level and compute they get.

    Work is counted in passes (cheaper.COST): EFUF gets more steps by as much as a step of SARE
    costs more.
    """
    rows: dict[str, list[Run]] = {name: [] for name in CONTROLS}
    for seed, result in zip(preset.seeds, sare, strict=True):
        level, share = result["erased"]["stop_level"], result["erased"]["forget_share"]
        steps = round(len(result["log"]) * COST["SARE"](share) / COST["EFUF"](share))
        matched = (
            Run(seed, "EFUF", stop_nll=level),
            Run(seed, "EFUF", stop_nll=level, hold=True, training=replace(TRAINING, steps=steps)),
            Run(
                seed,
                "EFUF",
                stop_nll=level,
                peak=level + 1.5,
                training=replace(TRAINING, cooldown=0),
            ),  # or it would fall on past it
            Run(seed, "SARE", step="random"),
            Run(seed, "SARE", step="wrong sign"),
            Run(seed, "SARE", changes=(("perturb", ("pos", "sent")),)),
        )
        for row, spec in zip(rows.values(), matched, strict=True):
            row.append(spec)
    return rows

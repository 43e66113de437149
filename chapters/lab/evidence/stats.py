"""Means and intervals over seeds, paired where methods share seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high): Student's t interval of the mean of independent values, one a seed;
    infinite for a single value.

    Raises ValueError on no values, or on one that is not finite (a lost seed must be seen, not
    averaged away).
    """
    values = np.asarray(values, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"interval of {values.tolist()}: give one finite value per seed.")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, -math.inf, math.inf
    half = float(
        student.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    )
    return mean, mean - half, mean + half


def paired(one: Sequence[float], other: Sequence[float], level: float = 0.95) -> dict:
    """The difference one - other, seed by seed: {"differences", "diff": mean, "ci95": [low, high],
    "n_seeds", "seeds_agreeing"}.

    seeds_agreeing: in how many seeds the difference has the sign of the mean. Raises ValueError if
    the lists differ in length.
    """
    if len(one) != len(other):
        raise ValueError(f"paired: {len(one)} and {len(other)} values: pair them by seed.")
    differences = [x - y for x, y in zip(one, other, strict=True)]
    mean, low, high = interval(differences, level)
    return {
        "differences": differences,
        "diff": mean,
        "ci95": [low, high],
        "n_seeds": len(differences),
        "seeds_agreeing": sum(d * mean > 0 for d in differences),
    }


def band(
    curves: Sequence[Sequence[float]], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[list[float], list[float], list[float]]:
    """(mean, low, high) at each point of curves that share their x axis, one curve a seed; clipped
    to a metric's own bounds.
    """
    low_bound, high_bound = bounds
    points = [interval([curve[i] for curve in curves]) for i in range(len(curves[0]))]
    return (
        [m for m, _, _ in points],
        [max(low, low_bound) for _, low, _ in points],
        [min(high, high_bound) for _, _, high in points],
    )


def relapse_samples(
    samples: Sequence[float], chair_s: Sequence[float], level: float = 0.5
) -> float:
    """Relearning samples until CHAIR_s first passes `level`, by linear interpolation; the last
    sample count if it never does (censored).
    """
    for i, value in enumerate(chair_s):
        if value > level:
            if i == 0:
                return float(samples[0])
            step = (level - chair_s[i - 1]) / (value - chair_s[i - 1])
            return samples[i - 1] + step * (samples[i] - samples[i - 1])
    return float(samples[-1])


def area(samples: Sequence[float], chair_s: Sequence[float]) -> float:
    """Mean CHAIR_s over the attack: the area under the relapse curve divided by its length
    (trapezoids).
    """
    return float(np.trapezoid(chair_s, samples) / (samples[-1] - samples[0]))


def rank_correlation(
    gauge: Sequence[float], outcome: Sequence[float], seeds: Sequence[int]
) -> dict:
    """Does a gauge predict an outcome? Spearman's rank correlation over all runs, and within seeds,
    where every run shares its data.

    {"all": over all runs, "within": one a seed with at least three runs, "mean", "ci95": interval
    of the mean of "within" over seeds}. A seed whose values are all equal counts as 0: nothing is
    predicted there. Raises ValueError if the lists differ in length.
    """
    if not len(gauge) == len(outcome) == len(seeds):
        raise ValueError(
            f"rank_correlation: {len(gauge)}, {len(outcome)} and {len(seeds)} values: give one of"
            " each a run."
        )

    def rank(rows: Sequence[int]) -> float:
        x, y = ([values[i] for i in rows] for values in (gauge, outcome))
        return float(spearmanr(x, y).statistic) if len(set(x)) > 1 and len(set(y)) > 1 else 0.0

    groups = [[i for i, s in enumerate(seeds) if s == seed] for seed in sorted(set(seeds))]
    within = [rank(rows) for rows in groups if len(rows) > 2]
    mean, low, high = interval(within) if within else (0.0, -math.inf, math.inf)
    return {"all": rank(range(len(seeds))), "within": within, "mean": mean, "ci95": [low, high]}


def spell(values: Sequence[float], digits: int = 1) -> str:
    """ "12.3 [10.1, 14.5] (n = 8)": mean, 95 % interval, seeds; "12.3 (one seed)"."""
    mean, low, high = interval(values)
    if len(values) == 1:
        return f"{mean:.{digits}f} (one seed)"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] (n = {len(values)})"


def spell_paired(one: Sequence[float], other: Sequence[float], digits: int = 2) -> str:
    """ "+1.23 [0.20, 2.26], sign in 7 of 8 seeds": the paired difference one - other."""
    return spell_difference(paired(one, other), digits)


def spell_difference(found: Mapping, digits: int = 2) -> str:
    """The words of spell_paired for what `paired` returned, or for a row of the ledger."""
    low, high = found["ci95"]
    if found["n_seeds"] == 1:
        return f"{found['diff']:+.{digits}f} (one seed)"
    sign = f"sign in {found['seeds_agreeing']} of {found['n_seeds']} seeds"
    return f"{found['diff']:+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}], {sign}"


def verdict(one: Sequence[float], other: Sequence[float], want: int, margin: float = 0.0) -> str:
    """ "supported" if the 95 % interval of the paired difference lies wholly on the claim's side
    (want = +1: one > other; -1: less), "not supported" if wholly on the other side, else
    "undecided".

    margin: what a claim that something is *kept* may lose and still hold: its side then begins at
    -margin instead of zero.
    """
    bounds = [want * bound + margin for bound in paired(one, other)["ci95"]]
    low, high = min(bounds), max(bounds)
    return "supported" if low > 0 else "not supported" if high < 0 else "undecided"

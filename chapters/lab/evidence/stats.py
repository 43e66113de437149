"""Means and intervals over seeds, paired where methods share seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import chi2, nct, spearmanr
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


# What the plan's verdicts are made of.


def above(values: Sequence[float], at: float = 0.0) -> float:
    """The p of "their mean is not above `at`": one-sided Student t test, one value a seed.

    1 for a single value, which decides nothing. Raises ValueError as `interval` does.
    """
    mean = interval(values)[0]
    if len(values) == 1:
        return 1.0
    se = standard_error(values)
    if se == 0:  # no spread: the mean is what it is
        return 0.0 if mean > at else 1.0
    return float(student.sf((mean - at) / se, len(values) - 1))


def two_sided(values: Sequence[float], at: float = 0.0) -> float:
    """The p of "their mean is `at`": two-sided Student t test, one value a seed."""
    below = above([-value for value in values], -at)
    return min(1.0, 2 * min(above(values, at), below))


def tost(values: Sequence[float], margin: float) -> float:
    """The p of "their mean lies outside +-margin": the larger of two one-sided t tests (Schuirmann
    1987), one value a seed.
    """
    return max(above(values, -margin), above([-value for value in values], -margin))


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values, one a seed; infinite for a single one."""
    if len(values) == 1:
        return math.inf
    values = np.asarray(values, dtype=float)
    if np.ptp(values) == 0:  # the rounding of equal values is no spread
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def holm(ps: Sequence[float], n: int) -> list[float]:
    """Holm's adjusted ps, in the order given; n: the tests planned, of which missing ones count as
    p = 1 (Holm 1979). Raises ValueError if more are given.
    """
    if len(ps) > n:
        raise ValueError(f"holm: {len(ps)} ps of {n} tests: count all tests.")
    found, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (n - rank) * ps[i]))
        found[i] = highest
    return found


def half_life(samples: Sequence[float], nll: Sequence[float]) -> tuple[float, bool]:
    """(relearning samples until the NLL has fallen to half of its first value, by linear
    interpolation; whether the attack ended before, and its last sample stands instead).

    Raises ValueError on curves of unequal length or a first NLL that is not positive.
    """
    _check_curve("half_life", samples, nll)
    if not nll[0] > 0:
        raise ValueError(f"half_life: the first NLL is {nll[0]}: give nats above 0.")
    falling = [-value for value in nll]
    return _crossing(samples, falling, -nll[0] / 2)


def relapse(
    samples: Sequence[float], chair_s: Sequence[float], level: float = 0.5
) -> tuple[float, bool]:
    """(relapse_samples; whether CHAIR_s never passed the level, so that the last sample count
    stands instead).
    """
    _check_curve("relapse", samples, chair_s)
    return relapse_samples(samples, chair_s, level), not any(value > level for value in chair_s)


def at_sample(samples: Sequence[float], values: Sequence[float], n: float) -> float:
    """The curve's value after n samples, by linear interpolation; ValueError outside the curve."""
    _check_curve("at_sample", samples, values)
    if not samples[0] <= n <= samples[-1]:
        raise ValueError(
            f"at_sample: {n} samples, the curve has {samples[0]} to {samples[-1]}: ask within."
        )
    return float(np.interp(n, samples, values))


def _check_curve(who: str, samples: Sequence[float], values: Sequence[float]) -> None:
    if not len(samples) or len(samples) != len(values):
        raise ValueError(f"{who}: {len(samples)} samples, {len(values)} values: give one of each.")


def _crossing(
    samples: Sequence[float], values: Sequence[float], level: float
) -> tuple[float, bool]:
    """Where values first reach the level from below, and False; the last sample and True if they
    never do.
    """
    for i, value in enumerate(values):
        if value >= level:
            if i == 0:
                return float(samples[0]), False
            share = (level - values[i - 1]) / (value - values[i - 1])
            return float(samples[i - 1] + share * (samples[i] - samples[i - 1])), False
    return float(samples[-1]), True


def components(values: Mapping[tuple[int, int, int], float]) -> dict[str, float]:
    """Variance components {"seed", "erasure", "attack"} of {(seed, order, attack): value}, by the
    method of moments; in the value's unit, squared.

    Orders are nested in seeds, attacks in orders. A factor of a single level gets 0: its spread is
    in the factor above. Negative estimates become 0. Raises ValueError unless every seed has as
    many orders, and every order as many attacks.
    """
    tree: dict[int, dict[int, list[float]]] = {}
    for (seed, order, _), value in values.items():
        tree.setdefault(seed, {}).setdefault(order, []).append(float(value))
    shapes = {tuple(len(attacks) for attacks in orders.values()) for orders in tree.values()}
    if len(shapes) != 1 or len(set(next(iter(shapes)))) != 1:
        raise ValueError(
            "components: the design is not balanced: give each seed as many orders, and each order"
            " as many attacks."
        )
    cube = np.array([list(orders.values()) for orders in tree.values()])
    n_seeds, n_orders, n_attacks = cube.shape
    by_order, by_seed = cube.mean(axis=2), cube.mean(axis=(1, 2))
    within = cube - by_order[:, :, None]
    attack = (within**2).sum() / max(1, n_seeds * n_orders * (n_attacks - 1))
    across = by_order - by_seed[:, None]
    order = (across**2).sum() / max(1, n_seeds * (n_orders - 1))  # of means of attacks
    seed = by_seed.var(ddof=1) if n_seeds > 1 else 0.0  # of means of orders
    return {
        "seed": max(0.0, float(seed - (order if n_orders > 1 else attack / n_attacks) / n_orders)),
        "erasure": max(0.0, float(order - attack / n_attacks)) if n_orders > 1 else 0.0,
        "attack": float(attack),
    }


def of_all(
    means: Sequence[float], ses: Sequence[float], counts: Sequence[int]
) -> tuple[float, float, float, float]:
    """(mean, low, high, p) of all values of several sets as one sample, with its 95 % t interval,
    from each set's mean, standard error and number of values (2 or more).

    p: of "the sets have one mean", by Cochran's Q. Raises ValueError unless each set has a
    positive, finite standard error and at least two values.
    """
    given = np.asarray(means, float), np.asarray(ses, float), np.asarray(counts, int)
    means, ses, counts = given
    if not len({len(row) for row in given}) == 1 or not len(means) or (counts < 2).any():
        raise ValueError(f"of_all: {counts.tolist()} values: give two or more a set.")
    if not (np.isfinite(ses) & (ses > 0)).all():
        raise ValueError(f"of_all: errors {ses.tolist()}: give each set a positive one.")
    n, mean = int(counts.sum()), float((counts * means).sum() / counts.sum())
    squares = (counts - 1) * counts * ses**2 + counts * (means - mean) ** 2
    half = float(student.ppf(0.975, n - 1) * math.sqrt(squares.sum() / (n - 1) / n))
    weights = ses**-2.0
    apart = (weights * (means - (weights * means).sum() / weights.sum()) ** 2).sum()
    p = float(chi2.sf(apart, len(means) - 1)) if len(means) > 1 else 1.0
    return mean, mean - half, mean + half, p


def n_for_power(sd: float, effect: float, power: float = 0.9, alpha: float = 0.05) -> int:
    """How many seeds a paired two-sided t test needs to find `effect` with this power.

    sd: of the differences, one a seed, in the effect's unit. Raises ValueError unless sd and effect
    are positive.
    """
    if not (sd > 0 and effect > 0):
        raise ValueError(f"n_for_power: sd {sd}, effect {effect}: give positive numbers.")

    def reached(n: int) -> bool:
        limit, shift = student.ppf(1 - alpha / 2, n - 1), effect / sd * math.sqrt(n)
        tails = (float(nct.sf(limit, n - 1, side)) for side in (shift, -shift))
        return sum(0.0 if math.isnan(tail) else tail for tail in tails) >= power

    high = 2
    while not reached(high):
        high *= 2
    low = high // 2
    while high - low > 1:  # low is too few, high is enough
        middle = (low + high) // 2
        low, high = (low, middle) if middle > 1 and reached(middle) else (middle, high)
    return high

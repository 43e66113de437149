"""What verdicts are made of, against values from elsewhere: by hand, scipy, published tables."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from lab.evidence import stats

VALUES = [-3.0, -1.0, -2.5, 0.4, -1.7, -2.2]


@pytest.mark.parametrize("at", [-3.0, -1.0, 0.0, 2.0])
def test_t_tests_are_scipys(at):
    """Fails if a side, the spread or the degrees of freedom are wrong."""
    assert stats.above(VALUES, at) == pytest.approx(
        ttest_1samp(VALUES, at, alternative="greater").pvalue
    )
    assert stats.two_sided(VALUES, at) == pytest.approx(ttest_1samp(VALUES, at).pvalue)


def test_what_has_no_spread_or_one_seed():
    """Fails on a division by nothing, or if one seed can decide."""
    assert (stats.above([0.3] * 3, 0), stats.above([0.3] * 3, 0.3)) == (0.0, 1.0)
    assert (stats.two_sided([0.3] * 3), stats.two_sided([0.0] * 3)) == (0.0, 1.0)
    assert (stats.above([5.0]), stats.two_sided([5.0]), stats.tost([0.0], 9)) == (1.0, 1.0, 1.0)
    assert stats.standard_error([0.1] * 3) == 0 and stats.standard_error([1.0]) == math.inf


def test_tost_is_the_worse_side():
    lower = ttest_1samp(VALUES, -3, alternative="greater").pvalue
    upper = ttest_1samp(VALUES, 3, alternative="less").pvalue
    assert stats.tost(VALUES, 3) == pytest.approx(max(lower, upper)) and lower > upper
    assert stats.tost([-value for value in VALUES], 3) == pytest.approx(lower)
    assert stats.tost(VALUES, 0.1) > 0.5


def test_holm_by_hand():
    """Fails if the order is lost, the ps may fall again, or missing tests do not count."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.01, 0.2], 9) == pytest.approx([0.09, 1.0]) and stats.holm([], 9) == []
    with pytest.raises(ValueError, match="2 ps of 1 tests"):
        stats.holm([0.1, 0.2], 1)


@pytest.mark.parametrize(
    "nll, expected",
    [
        ([8.0, 6.0, 2.0], (96.0, False)),
        ([8.0, 4.0, 5.0], (64.0, False)),  # half is reached
        ([8.0, 7.0, 4.1], (128.0, True)),
    ],
)
def test_half_life_by_hand(nll, expected):
    assert stats.half_life([0, 64, 128], nll) == (pytest.approx(expected[0]), expected[1])


def test_curves_that_cannot_be_read_are_named():
    with pytest.raises(ValueError, match="half_life: 3 samples, 2 values"):
        stats.half_life([0, 1, 2], [1.0, 0.5])
    with pytest.raises(ValueError, match="half_life: the first NLL is 0.0"):
        stats.half_life([0, 1], [0.0, 0.0])
    with pytest.raises(ValueError, match="relapse: 0 samples, 0 values"):
        stats.relapse([], [])
    with pytest.raises(ValueError, match="at_sample: 200 samples, the curve has 0 to 128"):
        stats.at_sample([0, 64, 128], [0.0, 1.0, 2.0], 200)


def test_relapse_tells_when_it_never_came():
    """Fails if the last sample count stands for a relapse that was not seen."""
    assert stats.relapse([0, 64, 128], [0.0, 0.2, 0.8]) == (pytest.approx(96), False)
    assert stats.relapse([0, 64, 128], [0.0, 0.2, 0.5]) == (128.0, True)
    assert stats.relapse([0, 64, 128], [0.0, 0.2, 0.8], level=0.1) == (32.0, False)


def test_at_sample_by_hand():
    assert stats.at_sample([0, 64, 256], [0.0, 0.4, 1.0], 128) == pytest.approx(0.6)
    assert stats.at_sample([0, 64, 256], [0.0, 0.4, 1.0], 256) == 1.0


def nested(n, seed_sd, order_sd, attack_sd, orders=2, attacks=2):
    rng, found = np.random.default_rng(0), {}
    for seed in range(n):
        of_seed = rng.normal(0, seed_sd)
        for order in range(orders):
            of_order = of_seed + rng.normal(0, order_sd)
            for attack in range(attacks):
                found[seed, order, attack] = of_order + rng.normal(0, attack_sd)
    return found


def test_components_are_found_again():
    """Fails if a level's spread is put down to another: what to repeat would be chosen wrongly."""
    found = stats.components(nested(4000, 3, 2, 1))
    assert found == pytest.approx({"seed": 9, "erasure": 4, "attack": 1}, rel=0.1)


def test_components_by_hand():
    """Fails if the means of a level keep the spread of those below it."""
    values = [0, math.sqrt(2), 2 * math.sqrt(2), 3 * math.sqrt(2)]
    cells = [(order, attack) for order in (0, 1) for attack in (0, 1)]
    found = {(seed, *cell): 10 * seed + v for seed in (0, 1) for cell, v in zip(cells, values)}
    # attacks: variance 1; means of orders: variance 4; means of seeds: variance 50
    assert stats.components(found) == pytest.approx({"attack": 1, "erasure": 3.5, "seed": 48})


def test_a_factor_of_one_level_has_none():
    found = stats.components(nested(4000, 3, 0, 1, orders=1))
    assert found == pytest.approx({"seed": 9, "erasure": 0, "attack": 1}, rel=0.1)
    found = stats.components(nested(4000, 3, 2, 0, attacks=1))
    assert found == pytest.approx({"seed": 9, "erasure": 4, "attack": 0}, rel=0.1)
    # Clipped: orders that differ more than their seeds do
    assert stats.components({(0, 0, 0): 0, (0, 1, 0): 9, (1, 0, 0): 9, (1, 1, 0): 0})["seed"] == 0


@pytest.mark.parametrize("lost", [(1, 0, 0), (1, 0, 1)])
def test_unbalanced_designs_are_refused(lost):
    found = nested(3, 1, 1, 1)
    for attack in (0, 1) if lost[2] == 0 else (1,):
        del found[1, 0, attack]
    with pytest.raises(ValueError, match="the design is not balanced"):
        stats.components(found)
    with pytest.raises(ValueError, match="the design is not balanced"):
        stats.components({})


def test_all_seeds_are_one_sample():
    """Fails if the interval is not that of the values themselves, put together, or if sets that
    contradict one another go unseen.
    """
    sets = [[1.0, 2.0, 4.0, 3.5], [0.5, 2.5], [3.0, 3.5, 2.0]]
    facts = [(np.mean(x), stats.standard_error(x), len(x)) for x in sets]
    mean, low, high, p = stats.of_all(*zip(*facts, strict=True))
    assert (mean, low, high) == pytest.approx(stats.interval([v for x in sets for v in x]))
    assert p > 0.4
    # Errors of 1: Q = 8 on one degree of freedom
    assert stats.of_all([0.0, 4.0], [1.0, 1.0], [6, 6])[3] == pytest.approx(0.004678, rel=1e-3)
    for means, ses, counts in (
        ([1.0, 2.0], [1.0, 0.0], [4, 4]),
        ([1.0], [math.inf], [4]),
        ([1.0], [1.0], [1]),
        ([1.0], [1.0, 1.0], [4]),
        ([], [], []),
    ):
        with pytest.raises(ValueError, match="of_all: .*: give"):
            stats.of_all(means, ses, counts)


@pytest.mark.parametrize(
    "sd, effect, power, n",
    [(1, 1, 0.9, 13), (1, 1, 0.8, 10), (2, 1, 0.8, 34), (1, 0.2, 0.8, 199), (1, 30, 0.9, 2)],
)
def test_n_for_power_is_what_the_tables_say(sd, effect, power, n):
    """Fails if the normal stands for Student's t: 11, 8 and 32 seeds would seem enough."""
    assert stats.n_for_power(sd, effect, power) == n


def test_n_for_power_needs_an_effect():
    with pytest.raises(ValueError, match="sd 1, effect 0: give positive"):
        stats.n_for_power(1, 0)

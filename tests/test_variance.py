"""The study of variance, on made-up rows whose components are known: nothing is trained."""

import math

import numpy as np
import pytest

from lab.experiments import variance

SEEDS, N_ORDERS, N_ATTACKS = (1, 2, 3), 2, 3
PAIR = ("SARE", "EFUF")
# Of the difference: seeds 10 apart, orders 4 apart within a seed, attacks 1 apart
GAP = {
    (seed, order, attack): 100 + 10 * seed + 4 * order + attack
    for seed in SEEDS
    for order in range(N_ORDERS)
    for attack in range(N_ATTACKS)
}
FIRST = {key: value for key, value in GAP.items() if key[1:] == (0, 0)}


def rows(gap=GAP, more=0.0):
    """As variance.measure gives them: EFUF anywhere, every other arm further by the gap."""
    return [
        {"arm": arm, "seed": key[0], "order": key[1], "attack": key[2]}
        | dict.fromkeys(variance.ENDPOINTS, 7.0 * key[0] + (arm in ahead) * (value + more))
        for arm in variance.ARMS
        for ahead in [("SARE", "SARE, equal work")]
        for key, value in gap.items()
    ]


def test_differences_pair_each_run_with_its_own():
    """Fails if an arm is taken from another run, from another arm, or with the other sign."""
    shuffled = [rows()[i] for i in np.random.default_rng(0).permutation(len(rows()))]
    assert variance.differences(shuffled, PAIR, "relapse") == GAP
    assert variance.differences(shuffled, PAIR[::-1], "relapse") == {k: -v for k, v in GAP.items()}
    with pytest.raises(KeyError):  # a run that only one arm has is no pair
        lost = [row for row in rows() if row["arm"] != "EFUF" or row["seed"] != 2]
        variance.differences(lost, PAIR, "relapse")


def test_shares_by_hand():
    """Fails if a component is read at another depth, or an interval is not over seeds' means."""
    found = variance.shares(rows(), {"AVX2": rows(FIRST)})
    assert list(found) == list(variance.PAIRS)
    assert all(list(parts) == list(variance.ENDPOINTS) for parts in found.values())
    part = found["SARE - EFUF"]["mean_chair_s"]
    # Attacks 0, 1, 2: variance 1. Means of orders, 4 apart: 8, less 1 / 3 of it. Seeds: 100 less 4
    assert part["attack"] == pytest.approx(1)
    assert part["erasure"] == pytest.approx(8 - 1 / 3)
    assert part["seed"] == pytest.approx(100 - 8 / 2)
    # 123 on the mean: 100 + 20 + 2 + 1; 4.303 is Student's t of 2 degrees of freedom
    assert (part["mean"], part["sd"]) == (pytest.approx(123), pytest.approx(10))
    half = 4.3027 * 10 / math.sqrt(3)
    assert part["ci95"] == pytest.approx([123 - half, 123 + half], rel=1e-4)


def test_kernels_are_the_spread_between_paths():
    """Fails if other orders, or the seeds, count as rounding; or if a pair that was not run on the
    paths gets a share.
    """
    paths = {name: rows(FIRST, more) for name, more in (("AVX2", 3.0), ("no vectors", 6.0))}
    found = variance.shares(rows(), paths)
    assert found["SARE - EFUF"]["relapse"]["kernels"] == pytest.approx(9)  # of 0, 3 and 6
    assert all("kernels" not in found[pair]["relapse"] for pair in list(found)[1:])
    same = variance.shares(rows(), {name: rows(FIRST) for name in paths})
    assert same["SARE - EFUF"]["relapse"]["kernels"] == 0


def test_half_width_by_hand():
    """Fails if orders or attacks divide another component than their own."""
    parts = {"seed": 5.0, "erasure": 4.0, "attack": 12.0}
    # (5 + 4 / 2 + 12 / 6) / 9 = 1, and Student's t of 8 degrees of freedom is 2.306
    assert variance.half_width(parts, 9, orders=2, shuffles=3) == pytest.approx(2.306, abs=1e-3)
    alone = {"seed": 4.0, "erasure": 0.0, "attack": 0.0}
    assert variance.half_width(alone, 4, 1, 1) == pytest.approx(3.1824, abs=1e-3)
    assert variance.half_width(alone, 4, 9, 9) == variance.half_width(alone, 4, 1, 1)


@pytest.mark.parametrize("component", ["seed", "erasure", "attack"])
def test_more_work_is_never_wider(component):
    """Fails if a design with more seeds, orders or attacks has a wider interval; or if attacks
    narrow what orders alone do.
    """
    parts = {"seed": 0.0, "erasure": 0.0, "attack": 0.0} | {component: 3.0}
    base = variance.half_width(parts, 4, 1, 1)
    more = {
        "seed": variance.half_width(parts, 5, 1, 1),
        "erasure": variance.half_width(parts, 4, 2, 1),
        "attack": variance.half_width(parts, 4, 1, 2),
    }
    narrowed = {"seed": {"seed"}, "erasure": {"seed", "erasure"}, "attack": set(more)}[component]
    assert {name for name, width in more.items() if width < base - 1e-9} == narrowed
    assert max(more.values()) <= base


def test_costs_are_of_two_arms_on_one_base_model():
    """Fails if a design is billed without its second arm, with a base model too many, or with
    another endpoint's width.
    """
    one = {"seed": 1.0, "erasure": 2.0, "attack": 3.0, "mean": -4.0}
    names = {endpoint for endpoint, _, _ in variance.DESIGNS.values()}
    parts = {name: one | {"mean": -4.0 * (i + 1)} for i, name in enumerate(sorted(names))}
    found = variance.costs(parts, {"base": 10.0, "erasure": 3.0, "attack": 2.0})
    assert list(found) == list(variance.DESIGNS)
    for label, (endpoint, orders, attacks) in variance.DESIGNS.items():
        line = found[label]
        a_seed = {(1, 1): 10 + 2 * (3 + 2), (2, 2): 10 + 2 * 2 * (3 + 2 * 2)}[orders, attacks]
        assert line["seconds"] == [n * a_seed for n in line["seeds"]]
        width = variance.half_width(parts[endpoint], 8, orders, attacks)
        at_eight = line["half_width"][line["seeds"].index(8)]
        assert at_eight == pytest.approx(width / abs(parts[endpoint]["mean"]))
        assert line["half_width"] == sorted(line["half_width"], reverse=True)

"""Titles say what the results say, whichever way they fall out."""

import inspect
import json

import pytest

from lab import files
from lab.evidence import figures, tables, titles

FIGURES = files.ROOT / "figures"


def line(*curves, method="EFUF"):
    return {"method": method, "chair_s": [list(curve) for curve in curves]}


def test_who_lasts_longer_is_read_off_the_data():
    """Fails if a title names a winner that the next run may not have."""
    slow, fast = line([0, 0.1, 0.6]), line([0, 0.6, 0.9])
    drawn = {"at": [0, 100, 200], "lines": {"EFUF": fast, "SARE": slow, "base": line([1, 1, 1])}}
    ahead = titles.lasting(drawn)
    start = "SARE keeps captions clean longer: half of its captions hallucinate after 180"
    assert ahead.startswith(start) and ahead.endswith("half of EFUF's after 83")
    assert "base" not in ahead
    drawn["lines"] |= {"EFUF": slow, "SARE": fast}
    assert titles.lasting(drawn).startswith("EFUF keeps captions clean longer")
    drawn["lines"] |= {"SARE": slow}
    assert "longer" not in titles.lasting(drawn)


def test_never_is_said():
    """Fails if an erasure that outlasts the attack gets the attack's length as its time."""
    drawn = {"at": [0, 100], "lines": {"EFUF": line([0, 0.9]), "SARE": line([0, 0.2])}}
    words = titles.lasting(drawn)
    end = "fewer than half of its captions hallucinate by the end, half of EFUF's after 56"
    assert words.endswith(end)
    assert titles.halves_of(drawn).endswith("after 56 samples (EFUF) and never (SARE)")


def test_without_an_erasure_nothing_lasts():
    """Fails if a figure of the base model alone cannot be titled."""
    drawn = {"at": [0, 100], "lines": {"base": line([1, 0.9])}}
    for title in (titles.lasting, titles.halves_of):
        assert title(drawn) == "After 100 relearning samples CHAIR_s is: base 90 %"


def test_only_fair_arms_are_ranked():
    """Fails if an arm elsewhere, or one that names nothing any more, is called the best."""
    arms = {
        "EFUF": {"values": [60.0], "recall": [0.99]},
        "SARE": {"values": [40.0], "recall": [0.99]},
        "GA": {"values": [1.0], "recall": [0.03]},
        "SimNPO": {"values": [2.0], "recall": [1.0], "note": "does not reach the level"},
    }
    assert titles.least({"arms": arms}).endswith(": SARE (40.0 %), then EFUF (60.0 %)")
    assert "No arm" in titles.least({"arms": {"GA": arms["GA"]}})


def test_two_minima_may_be_one():
    """Fails if a toy whose deepest point is also the safest is told as the other story."""
    toy = {"x": [0, 1], "loss": [0, 1], "worst": [1, 0.5], "rho": 0.25}
    assert "in another minimum than the lowest loss" in titles.minima(toy)
    assert titles.minima(toy | {"worst": [0.5, 1]}).endswith("lies where the lowest loss lies")


def test_only_what_moves_is_said_to_move():
    """Fails if a direction that hardly moves the words is named, or one that lowers them is not."""
    ends = {"forget": 4.0, "remember": 0.9, "random": 1.1}
    lines = {name: {"curves": [[1.0, end]]} for name, end in ends.items()}
    words = titles.around({"words": {"distances": [0, 0.5], "lines": lines}})
    assert words == "Only forget moves the words within L2 0.5"
    lines["remember"] = {"curves": [[1.0, 0.5]]}
    words = titles.around({"words": {"distances": [0, 0.5], "lines": lines}})
    assert words == "Only forget and remember move the words within L2 0.5"


def test_an_interval_with_zero_is_no_find():
    """Fails if a gauge is named that may as well predict nothing."""
    ranks = {"a": {"mean": -0.5, "ci95": [-0.9, -0.1]}, "b": {"mean": 0.5, "ci95": [-0.1, 0.9]}}
    words = titles.ranks(ranks, {"a": "the slope"})
    assert words.endswith("1 of 2: the slope (-0.50)")
    assert titles.ranks({"b": ranks["b"]}, {}).endswith("0 of 1: none")


def test_what_is_left_of_a_gain_is_said():
    """Fails if the title of the way travelled tells another line than the data's."""
    pair = {"x": [0.0, 1.0, 2.0], "y": [-3.0, -8.0, -13.0]}
    drawn = {"pairs": {"a": pair}, "fit": tables.fitted(**pair)}
    words = titles.along(drawn)
    assert "Over 3 seeds" in words and "(r -1.00)" in words and words.endswith("-3 points")


def test_what_robustness_costs_names_both_methods():
    """Fails if a level's arm is told with another's work."""
    arms = {
        name: {"values": [y], "passes": [x]}
        for name, x, y in (("e4", 90, 89), ("e12", 240, 54), ("s8", 585, 44), ("s12", 700, 40))
    }
    joined = {"EFUF": {"4": "e4", "12": "e12"}, "SARE": {"8": "s8", "12": "s12"}}
    words = titles.work({"arms": arms, "joined": joined})
    assert words == (
        "Over the attack EFUF to 12 nats 54 % for 240 passes, SARE to 8 nats 44 % for 585 passes"
        " and SARE to 12 nats 40 % for 700 passes"
    )


MADE = {  # committed figure -> how its chapter makes the title
    "00_scenes": titles.scenes,
    "00_base": titles.base,
    "00_noise": titles.noise,
    "01_two_minima": titles.minima,
    "01_slices": titles.around,
    "02_scores": titles.scores,
    "02_training": titles.training,
    "02_relapse": titles.lasting,
    "02_honest": titles.where_it_ends,
    "02_slices": titles.steps,
    "02_planes": titles.plane,
    "02_methods": titles.least,
    "02_lenient": titles.lenient,
    "03_bf16": titles.bf16,
    "03_geometry": titles.geometry,
    "03_erasure": titles.differences,
    "03_slices": titles.flatter,
    "03_front": titles.front,
    "03_gauges": titles.ranks,
    "03_beaches": titles.places,
    "04_strip": titles.strip,
    "04_relearning": titles.lasting,
    "04_survival": titles.survival,
    "04_methods": titles.least,
    "04_causes": titles.least,
    "04_controls": titles.least,
    "04_sweep": titles.sweep,
    "04_attacks": titles.others,
    "04_work": titles.work,
    "04_distance": titles.along,
    "04_variance": titles.variance,
    "05_real_thing": titles.halves_of,
}


def test_every_committed_figure_has_its_title_from_here():
    """Fails if a figure is added whose title nobody checks."""
    contents = {path.stem: json.loads(path.read_text()) for path in FIGURES.glob("*.json")}
    drawn = {name for name, facts in contents.items() if "drawn_by" in facts}
    assert drawn == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_the_title_is_what_the_results_say(name):
    """Fails if the committed title was not made from the committed results, or is too long to be
    read at a glance (two lines).
    """
    facts = json.loads((FIGURES / f"{name}.json").read_text())
    how, takes = facts["drawn_by"]["how"], list(inspect.signature(MADE[name]).parameters)[1:]
    given = {key: how[key] for key in takes if key in how}
    assert facts["title"] == MADE[name](facts["results"], **given)
    assert len(facts["title"]) <= 2 * 10 * figures.WIDTH

"""What chapters 00, 01, 02 and 05 read off results, on results small enough to read by eye."""

import subprocess
import sys
from types import SimpleNamespace

import jupytext
import pytest

from lab import files
from lab.evidence import figures, plan, readings
from lab.evidence.observations import Observation
from lab.tools import execute

CONTROLS = [(21, 0.0), (22, 0.0), (21, 0.7)]


def test_readings_need_no_torch():
    """Fails if results can no longer be read without torch."""
    code = "import sys, lab.evidence.readings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=files.CHAPTERS).returncode == 0


def test_setup_cells_are_equal():
    """Fails if a chapter finds the book, or installs it on Colab, in another way than the
    others.
    """
    found = []
    for name in execute.NAMES:
        cells = jupytext.read(files.CHAPTERS / f"{name}.py").cells
        found += [c.source for c in cells if c.cell_type == "code" and "google.colab" in c.source]
    ends = "\nfrom lab import jobs"
    assert len(found) == len(execute.NAMES)
    assert len({source.split(ends)[0].strip() for source in found}) == 1


def test_first_of_each_keeps_the_order_of_places():
    """Fails if rows come in the scenes' order, or a later scene of a place is taken."""
    scenes = [SimpleNamespace(place=place) for place in ("office", "kitchen", "office")]
    assert readings.first_of_each(["kitchen", "office"], scenes) == [1, 0]


def test_true_scene_invents_nothing():
    """Fails if a figure would mark an object that is there, or could not draw the scene."""
    scene = SimpleNamespace(place="office", objects=("book", "clock"), cells=(0, 5))
    shown = readings.true_scene(scene)
    assert shown["says"] == [["book", False], ["clock", False]]
    assert len(figures.fig_scenes([shown, shown]).axes[0].images) == 2


def test_by_noise_keeps_seeds_apart_from_noise():
    """Fails if a value lands at another share of noise, or a metric under another's label."""
    trained = [{"chair_s": x, "usual": 1 - x} for x in (0.1, 0.2, 0.9)]
    values, labels = readings.by_noise(CONTROLS, trained, {"chair_s": "CHAIR_s", "usual": "yes"})
    assert values["chair_s at 0.0"] == [0.1, 0.2] and values["chair_s at 0.7"] == [0.9]
    assert list(values) == list(labels)
    assert labels["usual at 0.7"] == "yes, 70 % of captions noisy"


def test_seeds_at_counts_controls():
    """Fails if the caption of a control names other numbers of seeds than were trained."""
    assert readings.seeds_at(CONTROLS) == "2 at 0 %, 1 at 70 %"


def test_slices_are_drawn_one_line_a_way():
    """Fails if a direction's line shows another direction's numbers."""
    row = [{"random": [{"nll_forget": 8.0}], "relapse": [{"nll_forget": 2.0}]}]
    drawn = readings.slices_drawn(row, (0.0,), ("random", "relapse"))
    assert drawn["distances"] == (0.0,)
    assert list(drawn["lines"]) == ["random", "relapse"]
    assert drawn["lines"]["relapse"] == {"method": "relapse", "curves": [[2.0]]}


def test_first_past_is_strict():
    """Fails if a curve that only touches the level counts, or one that never passes has a
    place.
    """
    curves = [[0.1, 0.5, 0.6], [0.1, 0.2, 0.3]]
    assert readings.first_past((0, 1, 2), curves, 0.5) == [2, None]


def test_planes_name_their_seed():
    """Fails if a map is shown under another seed, or one of them is dropped unsaid."""
    maps = [{"axis": [0.0, 1.0], "loss": [[1.0, 2.0], [3.0, 4.0]], "ends": [[1, 0], [2, 3]]}]
    assert readings.planes([22], maps, ["a", "b"])["seed 22"] == {
        "x": [0.0, 1.0],
        "y": [0.0, 1.0],
        "values": [[1.0, 2.0], [3.0, 4.0]],
        "names": ["a", "b"],
        "end": [2, 3],  # of the attacker's way, which is the second
    }
    with pytest.raises(ValueError):
        readings.planes([21, 22], maps, ["a", "b"])


def test_share_lost_is_of_the_nll_at_home():
    """Fails if the share is of another number, or the other gauges are changed on the way."""
    row = [{"worst_ball_0.5": 2.0, "ce": 8.0}, {"worst_ball_0.5": 3.0, "ce": 6.0}]
    assert readings.gauge(row, "share lost") == [0.25, 0.5]
    assert readings.gauge(row, "worst_ball_0.5") == [2.0, 3.0]


def test_training_keeps_each_run_whole():
    """Fails if a run is cut where another ends, or the forget loss is drawn as it falls."""
    logs = [{"neg": -1.0}, {"neg": -2.0}], [{"neg": -4.0}]
    row = [{"spec": {"stop_nll": 8.0}, "log": log} for log in logs]
    drawn = readings.training({"EFUF": row}, "EFUF")
    assert drawn == {"level": 8.0, "lines": {"EFUF": [[1.0, 2.0], [4.0]]}}


def test_spell_change_says_before_first():
    """Fails if before and after change places."""
    text = readings.spell_change("recall", [90.0], [80.0])
    assert text == "recall      before 90.0 (one seed) %   after 80.0 (one seed) %"


def test_at_last_is_after_the_attack():
    """Fails if the number before the attack, or half way, is taken for the end."""
    results = {"EFUF": [{"curve": [{"chair_s": 0.0}, {"chair_s": 0.5}, {"chair_s": 0.9}]}]}
    assert readings.at_last(results, "EFUF", "chair_s", 100) == [90.0]


def test_spell_scores_weighs_neither_by_questions():
    """Fails if a small set of questions counts as much as a large one, or a kind is left out."""
    found = {
        "chair": {"chair_s": 0.5, "chair_i": 0.25, "recall": 1.0, "n": 2},
        "random": {"accuracy": 0.9, "neither": 0.0, "n": 30},
        "popular": {"accuracy": 0.8, "neither": 1.0, "n": 10},
    }
    assert readings.spell_scores(found) == (
        "chair_s 50.0 %, chair_i 25.0 %, recall 100.0 %, POPE random 90.0 %, POPE popular 80.0 %,"
        " neither yes nor no 25.0 %"
    )


def test_the_judge_is_judged_by_mentions():
    """Fails if a noun that is said twice counts once, or a caption is held to another's truth."""
    scored = [{"cup": 9.0, "fork": 1.0}, {"cup": 2.0, "fork": 8.0}]
    named, true = [["cup", "fork", "fork"], ["cup", "fork"]], [{"cup"}, {"cup"}]
    assert readings.mentions(scored, named) == [9.0, 1.0, 1.0, 2.0, 8.0]
    found = readings.judged(scored, named, true, forget_below=5.0)
    assert found == {"forget": 3, "wrong": 3, "both": 2}


def attacked(seed, chair, order=0, shuffle=0, method="SARE"):
    """As attacks.attack gives it, over 0, 64 and 128 samples."""
    curve = [
        {"at": at, "n": 200, "chair_s": c, "nll_forget": 8.0 - at / 16}
        for at, c in zip((0, 64, 128), chair)
    ]
    erased = {"chair_s": chair[0], "recall": 0.9, "nll_retain": 0.25, "stop_level": 8.0}
    return {
        "spec": {"seed": seed, "order": order, "method": method},
        "shuffle": shuffle,
        "erased": erased | {"reached": True},
        "curve": curve,
    }


def test_what_is_read_off_one_result():
    """Fails if an endpoint is read off another metric, or not in its unit."""
    found = {name: read(attacked(1, (0.0, 0.25, 0.75))) for name, read in readings.READ.items()}
    assert found == {
        "chair_s": 0.0,
        "recall": 90.0,
        "nll_retain": 0.25,
        "mean_chair_s": 31.25,
        "relapse": 96.0,
        "half_life": 64.0,
        "chair_128": 75.0,
    }
    assert set(found) <= set(plan.ENDPOINTS)
    assert readings.last_chair_s(attacked(1, (0.0, 0.25, 0.5))) == 50.0
    assert readings.is_censored(attacked(1, (0.0, 0.25, 0.5)))
    assert not readings.is_censored(attacked(1, (0.0, 0.25, 0.75)))


@pytest.mark.parametrize(
    "method, reached, level, is_there",
    [
        ("SARE", True, 8.0, True),
        ("SARE", False, 8.0, False),
        ("base", False, None, True),  # nothing was asked of these two
        ("honest", False, 8.0, True),
    ],
)
def test_an_observation_says_where_it_stands(method, reached, level, is_there):
    """Fails if a run that fell short passes for one that did not, or a model that was not erased
    is held to a level.
    """
    result = attacked(3, (0.0, 0.5, 1.0), order=1, shuffle=2, method=method)
    result["erased"]["reached"] = reached
    expected = Observation(3, 1, 2, 7.0, level, is_there)
    assert readings.observe([result], lambda r: 7) == [expected]
    assert readings.zipped([result], [7]) == [expected]
    del result["shuffle"]  # of an erasure that was not attacked
    assert readings.observed(result, 7.0) == expected._replace(attack=0)


def test_values_beside_the_results_are_one_each():
    """Fails if a value too few moves all others to the run before."""
    with pytest.raises(ValueError):
        readings.zipped([attacked(1, (0.0, 0.5, 1.0))] * 2, [7])


RUNS = [  # two seeds, two orders each, two attacks each
    attacked(seed, (0.0, 0.1 * seed, 0.2 * seed + 0.1 * order + 0.01 * shuffle), order, shuffle)
    for seed in (2, 1)
    for order in (0, 1)
    for shuffle in (0, 1)
]


def test_a_seed_is_the_mean_of_its_runs():
    """Fails if runs count as seeds, seeds change places, or an erasure counts once an attack."""
    ends = readings.by_seed(RUNS, readings.last_chair_s)
    assert ends == pytest.approx([45.5, 25.5])
    firsts = readings.first_of(RUNS)
    assert [(r["spec"]["seed"], r["spec"]["order"]) for r in firsts] == [
        (2, 0),
        (2, 1),
        (1, 0),
        (1, 1),
    ]
    assert {r["shuffle"] for r in firsts} == {0}
    row = [r | {"erased": {"recall": r["spec"]["order"] + 10 * r["shuffle"]}} for r in RUNS]
    assert readings.of_seeds(row, "recall") == [0.5, 0.5]


def test_curves_are_one_a_seed():
    """Fails if a curve is one run's, or the number of scenes is drawn as a metric."""
    drawn = readings.curves({"SARE": RUNS}, "SARE")
    line = drawn["lines"]["SARE"]
    assert drawn["at"] == [0, 64, 128] and set(line) == {"method", "chair_s", "nll_forget"}
    assert line["chair_s"] == [
        pytest.approx([0.0, 0.2, 0.455]),
        pytest.approx([0.0, 0.1, 0.255]),
    ]
    assert line["nll_forget"] == [[8.0, 4.0, 0.0]] * 2
    assert readings.areas(drawn)["SARE"][1] == pytest.approx(100 * (0.05 + 0.1775) / 2)
    uneven = [RUNS[0], RUNS[0] | {"curve": RUNS[0]["curve"][:2]}]
    with pytest.raises(ValueError):
        readings.curves({"SARE": uneven}, "SARE")


def test_curves_of_runs_without_a_spec_stand_alone():
    """Fails if chapter 05's runs, which are no runs of the microworld, are averaged or refused."""
    bare = [{"curve": [{"at": 0, "chair_s": x}, {"at": 8, "chair_s": 1.0}]} for x in (0.0, 0.5)]
    drawn = readings.curves({"SARE": bare}, "SARE")
    assert drawn["lines"]["SARE"]["chair_s"] == [[0.0, 1.0], [0.5, 1.0]]

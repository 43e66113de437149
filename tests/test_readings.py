"""What chapters 00, 01, 02 and 05 read off results, on results small enough to read by eye."""

import subprocess
import sys
from types import SimpleNamespace

import jupytext
import pytest

from lab import files
from lab.evidence import figures, readings
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
    """Fails if a figure would bracket an object that is there, or could not draw the scene."""
    scene = SimpleNamespace(place="office", objects=("book", "clock"), cells=(0, 5))
    shown = readings.true_scene(scene)
    assert shown["says"] == [["book", False], ["clock", False]]
    assert len(figures.fig_scenes([shown, shown]).axes) == 2


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
    maps = [{"axis": [0.0, 1.0], "loss": [[1.0, 2.0], [3.0, 4.0]]}]
    assert readings.planes([22], maps, ["a", "b"])["seed 22"] == {
        "x": [0.0, 1.0],
        "y": [0.0, 1.0],
        "values": [[1.0, 2.0], [3.0, 4.0]],
        "names": ["a", "b"],
    }
    with pytest.raises(ValueError):
        readings.planes([21, 22], maps, ["a", "b"])


def test_share_lost_is_of_the_nll_at_home():
    """Fails if the share is of another number, or the other gauges are changed on the way."""
    row = [{"worst_ball_0.5": 2.0, "ce": 8.0}, {"worst_ball_0.5": 3.0, "ce": 6.0}]
    assert readings.gauge(row, "share lost") == [0.25, 0.5]
    assert readings.gauge(row, "worst_ball_0.5") == [2.0, 3.0]


def test_training_ends_with_the_shortest_run():
    """Fails if seeds' curves differ in length, or the forget loss is drawn as it falls."""
    long, short = [{"neg": -1.0, "pos": 0.1}, {"neg": -2.0, "pos": 0.2}], [{"neg": -4, "pos": 0.3}]
    drawn = readings.training({"EFUF": [{"log": long}, {"log": short}]}, "EFUF")
    assert drawn["step"] == [1]
    assert drawn["lines"] == {"EFUF": {"forget": [[1.0], [4]], "retain": [[0.1], [0.3]]}}


def test_spell_change_says_before_first():
    """Fails if before and after change places."""
    text = readings.spell_change("recall", [90.0], [80.0])
    assert text == "recall      before 90.0 (one seed) %   after 80.0 (one seed) %"


def test_at_last_is_after_the_attack():
    """Fails if the number before the attack, or half way, is taken for the end."""
    results = {"EFUF": [{"curve": [{"chair_s": 0.0}, {"chair_s": 0.5}, {"chair_s": 0.9}]}]}
    assert readings.at_last(results, "EFUF", "chair_s", 100) == [90.0]


def test_lenient_gives_a_curve_a_seed():
    """Fails if a curve runs over seeds instead of over the shares that are missed."""
    found = {
        str(share): [{"erased": {"chair_s": share + seed}} for seed in (1, 2)]
        for share in (0.0, 0.5)
    }
    drawn = readings.lenient(found, (0.0, 0.5))
    assert drawn["distances"] == [0.0, 50.0]
    assert drawn["lines"]["EFUF"] == {"method": "EFUF", "curves": [[1.0, 1.5], [2.0, 2.5]]}


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

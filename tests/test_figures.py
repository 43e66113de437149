"""Every figure function drawn from a tiny fixture; what is saved is whole, repeatable and in its
place.
"""

import json

import matplotlib.pyplot as plt
import pytest

from lab import files
from lab.evidence import figures
from lab.experiments import presets

SCENE = {
    "place": "office",
    "objects": ["book", "clock"],
    "cells": [0, 5],
    "says": [["book", False], ["mouse", True]],
}
CURVES = {
    "method": "EFUF",
    "chair_s": [[0.0, 0.5, 1.0], [0.1, 0.4, 0.9], [0.0, 0.2, 0.8]],
    "nll_forget": [[6.0, 3.0, 1.0]] * 3,
}
RELAPSE = {"at": [0, 64, 128], "lines": {"EFUF": CURVES, "SARE": CURVES | {"method": "SARE"}}}
FIXTURES = {
    "fig_scenes": [SCENE, SCENE],
    "fig_dots": ({"chair_s": [0.9, 1.0, 0.95]}, "%", {"chair_s": "captions"}, 100, (0, 100)),
    "fig_late": ({"EFUF": [10.0, 200.0, 30.0], "SARE": [640.0, 300.0, 640.0]}, 640),
    "fig_front": [
        {
            "lambda_neg": x,
            "rho": y,
            "recall": [1.0, 0.9, 0.9],
            "nll_retain": [0.1, 0.2, 0.1],
            "stop_level": [6.5, 6.6, 6.7],
            "relapse": [200.0, 300.0, 250.0],
            "area": [30.0, 20.0, 25.0],
        }
        for x in (0.1, 0.3)
        for y in (0.0, 0.2)
    ],
    "fig_gauges": {
        "robustness": [100.0, 200.0, 300.0],
        "group": ["rho 0", "rho 0", "rho 0.2"],
        "gauges": {"slope": {"values": [3.0, 2.0, 1.0], "text": "rank correlation -1"}},
    },
    "fig_cost": {
        "EFUF": {"cost": [300.0, 310.0, 290.0], "relapse": [200.0, 150.0, 300.0]},
        "SARE": {"cost": [600.0], "relapse": [400.0]},
    },
    "fig_plane": {
        "EFUF": {
            "x": [-1.0, 0.0, 1.0],
            "y": [-1.0, 0.0, 1.0],
            "values": [[6.0, 3.0, 1.0]] * 3,
            "names": ["relapse", "random"],
        }
    },
    "fig_scores": {
        "present": [10.0, 11.0, 10.5],
        "absent": [5.0, 6.0],
        "forget_below": 7.0,
        "retain_above": 9.0,
    },
    "fig_two_minima": {
        "x": [-1.0, 0.0, 1.0],
        "loss": [0.0, 1.0, 0.2],
        "worst": [1.0, 1.0, 0.4],
        "rho": 0.5,
    },
    "fig_slices": {
        "distances": [0, 1, 2],
        "lines": {"relapse": {"method": "EFUF", "curves": [[6, 3, 1], [6, 2, 1], [5, 4, 3]]}},
    },
    "fig_training": {
        "step": [1, 2],
        "lines": {"EFUF": {"forget": [[1, 2], [1, 3]], "retain": [[0.1, 0.1], [0.2, 0.1]]}},
    },
    "fig_relapse": RELAPSE,
    "fig_attacks": (
        {"noise": RELAPSE, "rounding": RELAPSE | {"at": [8, 4, 2]}},
        {"noise": "chair_s", "rounding": "chair_s"},
        {},
    ),
    "fig_geometry": {
        "x": [0, 1],
        "y": [0, 1],
        "neg": [[0.0, 1.0], [1.0, 2.0]],
        "theta": [0.2, 0.2],
        "eps": [0.3, 0.4],
        "gradients": {"plain step": [0.1, 0.1], "Targeted-SAM step": [0.1, 0.2]},
    },
    "fig_paired": (
        {"recall": {"differences": [1.0, 2.0, 0.5], "diff": 1.2, "ci95": [0.1, 2.3]}},
        "SARE - EFUF",
    ),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def draw(name):
    fixture = FIXTURES[name]
    return (
        getattr(figures, name)(*fixture)
        if isinstance(fixture, tuple)
        else getattr(figures, name)(fixture)
    )


def test_every_figure_function_has_a_fixture():
    assert set(FIXTURES) == {name for name in vars(figures) if name.startswith("fig_")}


@pytest.mark.parametrize("name", FIXTURES)
def test_figure_draws(name):
    """Fails if a figure needs more than its JSON, or draws nothing."""
    figure = draw(name)
    assert all(ax.has_data() for ax in figure.axes if ax.get_visible())
    figure.canvas.draw()


@pytest.mark.parametrize("name", ["fig_slices", "fig_relapse", "fig_training"])
def test_axes_name_their_unit(name):
    for ax in draw(name).axes:
        assert ax.get_xlabel() and any(unit in ax.get_ylabel() for unit in ("%", "nats"))


def test_an_interval_of_samples_stays_within_what_was_sampled():
    """Fails if a bar reaches below no samples at all, or beyond the attack's last count."""
    bars = [
        line.get_xdata() for line in draw("fig_late").axes[0].lines if line.get_linewidth() == 4
    ]
    assert len(bars) == 2 and min(map(min, bars)) == 0 and max(map(max, bars)) == 640


def test_two_seeds_get_no_band_three_do():
    """Fails if an interval of two seeds is drawn as if it said something."""
    two = {
        "at": [0, 64, 128],
        "lines": {"EFUF": {"method": "EFUF", "chair_s": CURVES["chair_s"][:2]}},
    }
    assert not figures.fig_relapse(two, keys=("chair_s",)).axes[0].collections
    three = {
        "at": [0, 64, 128],
        "lines": {"EFUF": {"method": "EFUF", "chair_s": CURVES["chair_s"]}},
    }
    assert figures.fig_relapse(three, keys=("chair_s",)).axes[0].collections


def test_saved_twice_is_equal_bytes(tmp_path, monkeypatch):
    """Fails if a date, a version of matplotlib's own or float noise gets into a file."""
    monkeypatch.setattr(files, "figures_folder", lambda preset, seeds: tmp_path)
    contents = []
    for _ in range(2):
        path = figures.save(draw("fig_relapse"), "trial", RELAPSE, "fast", (1, 2), "A caption.")
        contents.append((path.read_bytes(), path.with_suffix(".json").read_bytes()))
    assert contents[0] == contents[1]
    facts = json.loads(contents[0][1])
    assert (
        facts["results"]["at"] == [0, 64, 128]
        and facts["seeds"] == [1, 2]
        and facts["versions"]["torch"]
    )


def test_only_the_book_writes_figures(monkeypatch):
    """Fails if a run without KEEP=1, or on other seeds, would overwrite the book's figures."""
    book = presets.get_preset("full").seeds
    built, figures_of_the_book = files.ROOT / "build/figures", files.ROOT / "figures"
    for keep, folder in (("1", figures_of_the_book), ("0", built / "full"), ("", built / "full")):
        monkeypatch.setenv("KEEP", keep)
        assert files.figures_folder("full", book) == folder
        # Comparisons on the first few seeds belong to the book
        assert files.figures_folder("full", book[:5]) == folder
        trials = {
            files.figures_folder("full", (1, 2)),
            files.figures_folder("fast", book),
            files.figures_folder("full", (101, 102)),
        }
        assert len(trials) == 3 and all(trial.parent == built for trial in trials)
    monkeypatch.delenv("KEEP")
    assert files.figures_folder("full", book) == built / "full"


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="unknown preset 'slow': there are fast, full"):
        presets.get_preset("slow")
    assert presets.get_preset("full", ["3", "4"]).seeds == (3, 4)
    for seeds in (["3", "x"], ["3", "3"]):
        with pytest.raises(ValueError, match="distinct whole numbers"):
            presets.get_preset("full", seeds)

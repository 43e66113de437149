"""Every figure function drawn from a tiny fixture; what is saved is whole, repeatable and in its
place.
"""

import inspect
import json
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from lab import files
from lab.evidence import figures, looks
from lab.experiments import presets

METHODS = ("base", "honest", "EFUF", "SARE")  # the names whose hue means them
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
PAIR = {"differences": [1.0, 2.0, 0.5], "diff": 1.2, "ci95": [0.1, 2.3]}
TOKENS = [
    [" a", 0.9, "plain"],
    [" cup", 0.8, "true"],
    [",", 1, "plain"],
    [" fork", 0.6, "invented"],
]
STRIP = {
    "seed": 1001,
    "at": [0, 128, 640],
    "scenes": [
        {"place": place, "objects": [noun], "cells": [i]}
        for place, noun in (("kitchen", "cup"), ("office", "book"))
        for i in range(3)
    ],
    "chair_s": {"base": [1.0], "EFUF": [0.02, 0.3, 0.97], "SARE": [0.01, 0.1, 0.85]},
    "says": {
        name: [[TOKENS if scene % 2 else TOKENS[:2] for scene in range(6)]] * n
        for name, n in (("base", 1), ("EFUF", 3), ("SARE", 3))
    },
}
RELAPSE = {"at": [0, 64, 128], "lines": {"EFUF": CURVES, "SARE": CURVES | {"method": "SARE"}}}
RECALL = {"recall": [[1.0, 0.9, 0.4], [1.0, 0.9, 0.2], [1.0, 0.9, 0.3]]}
ATTACKED = RELAPSE | {"lines": {name: line | RECALL for name, line in RELAPSE["lines"].items()}}
FIXTURES = {
    "fig_scenes": [SCENE, SCENE],
    "fig_dots": ({"chair_s": [0.9, 1.0, 0.95]}, "%", {"chair_s": "captions"}, 100, (0, 100)),
    "fig_front": [
        {
            "lambda_neg": x,
            "rho": y,
            "area": [30.0, 20.0, 25.0],
            "half_life": [200.0, 300.0, 250.0],
            "passes": [300.0, 310.0, 290.0],
            "reached": [True, True, y == 0],
        }
        for x in (0.1, 0.3)
        for y in (0.0, 0.2)
    ],
    "fig_ranks": {
        "slope": {"within": [-0.5, -0.3, -0.4], "mean": -0.4, "ci95": [-0.65, -0.15]},
        "radius": {"within": [0.5], "mean": 0.5, "ci95": [float("-inf"), float("inf")]},
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
    "fig_slices_panels": {
        way: {"distances": [0, 1], "lines": {"SARE": {"method": "SARE", "curves": [[6, 3]] * 2}}}
        for way in ("relapse", "attack")
    },
    "fig_training": {"level": 3, "lines": {"EFUF": [[1, 2], [1, 2, 3]]}},
    "fig_relapse": RELAPSE,
    "fig_relearning": RELAPSE
    | {
        "pair": ["SARE", "EFUF"],
        "pairs": {"half-life": PAIR | {"better": "right is better"}, "%": PAIR | {"better": ""}},
    },
    "fig_strip": STRIP,
    "fig_groups": {
        place: {
            name: {"chair_s": [0.1, 0.2, 0.3], "recall": [0.9, 1.0, 0.9]}
            for name in ("base", "SARE")
        }
        for place in ("beaches", "elsewhere")
    },
    "fig_attacks": (
        {"noise": ATTACKED, "rounding": ATTACKED | {"at": [8, 4, 2]}},
        {"noise": "chair_s", "rounding": "chair_s"},
        {},
    ),
    "fig_work": {
        "arms": {
            name: {"values": [60.0, 50.0, 55.0], "passes": [n, n], "recall": [r, r]}
            for name, n, r in (
                ("EFUF, 4 nats", 90, 1.0),
                ("EFUF, 8 nats", 180, 1.0),
                ("GA", 50, 0.1),
            )
        },
        "joined": {"EFUF": {"4": "EFUF, 4 nats", "8": "EFUF, 8 nats"}},
    },
    "fig_along": {
        "x": "distance, L2",
        "pairs": {
            "SARE - EFUF": {"x": [0.5, 1.0, 1.5], "y": [-5.0, -12.0, -20.0]},
            "EFUF, longer - EFUF": {"x": [0.9, 1.1], "y": [-2.0, 3.0]},
        },
        "fit": {"r": -1.0, "slope": -15.0, "intercept": 2.7, "half": 1.0},
    },
    "fig_geometry": {
        "x": [0, 1],
        "y": [0, 1],
        "neg": [[0.0, 1.0], [1.0, 2.0]],
        "theta": [0.2, 0.2],
        "eps": [0.3, 0.4],
        "gradients": {"plain step": [0.1, 0.1], "Targeted-SAM step": [0.1, 0.2]},
    },
    "fig_arms": {
        "endpoint": "relearning samples",
        "bounds": [0, 640],
        "arms": {
            "EFUF": {
                "values": [200.0, 250.0, 225.0],
                "level": [8.0, 8.01, 7.99],
                "recall": [0.99, 1.0, 0.98],
                "passes": [900.0, 1100.0, 1000.0],
            },
            "SARE, random step": {
                "values": [600.0, 630.0, 640.0],
                "level": [8.0, 8.0, 8.4],
                "recall": [0.97, 0.97, 0.97],
                "passes": [2000.0, 2100.0, 2200.0],
            },
            "EFUF+SAM, equal work": {
                "values": [20.0, 0.0, 100.0],
                "note": "does not reach 8 nats in 3 of 6 seeds",
            },
        },
    },
    "fig_survival": {
        "end": 640,
        "arms": {
            name: {
                "samples": [200.0, 100.0, 300.0, 640.0],
                "censored": [False, False, True, True],
                "n_seeds": 2,
            }
            for name in ("EFUF", "SARE", "EFUF, SARE's work")
        },
    },
    "fig_sweep": {
        "lr": [1e-4, 2e-4, 6e-4, 2e-3],
        "recall_bound": 0.95,
        "arms": {
            name: {
                "chair": [[5, 60, 50, 90], [5, 70, 40, 99]],
                "recall": [[1, 0.96, 0.96, 0.8]] * 2,
            }
            for name in ("EFUF", "SARE")
        },
    },
    "fig_variance": {
        "components": {
            "samples until relapse": {"seed": 1, "erasure": 2, "attack": 1, "kernels": -0.1},
            "CHAIR_s": {"seed": 0, "erasure": 0, "attack": 0, "kernels": 0},
        },
        "cost": {"more seeds": {"seconds": [10, 100, 1000], "half_width": [2, 0.9, 0.4]}},
    },
    "fig_paired": (
        {"recall": PAIR},
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
    assert set(FIXTURES) == set(figures.DRAW)


@pytest.mark.parametrize("name", FIXTURES)
def test_figure_draws(name):
    """Fails if a figure needs more than its JSON, or draws nothing."""
    figure = draw(name)
    assert all(ax.has_data() for ax in figure.axes if ax.get_visible())
    figure.canvas.draw()


@pytest.mark.parametrize(
    "name", ["fig_slices", "fig_relapse", "fig_training", "fig_survival", "fig_sweep", "fig_front"]
)
def test_axes_name_their_unit_and_which_way_is_better(name):
    """Fails if a reader must guess what an axis counts, or whether up is good."""
    for ax in draw(name).axes:
        words = ax.get_ylabel()
        assert ax.get_xlabel() and any(unit in words for unit in ("%", "nats", "samples", "passes"))
        assert "better" in words or "forgotten" in words


def test_an_interval_of_samples_stays_within_what_was_sampled():
    """Fails if a bar reaches below no samples at all, or beyond the attack's last count."""
    bars = [
        line.get_xdata() for line in draw("fig_arms").axes[0].lines if line.get_linewidth() == 4
    ]
    assert len(bars) == 3 and min(map(min, bars)) == 0 and max(map(max, bars)) == 640


def texts(ax):
    """{text: its box in pixels} of what is written in or beside the axes."""
    ax.figure.canvas.draw()
    written = [text for text in ax.texts if text.get_text()]
    return {text.get_text(): Text.get_window_extent(text) for text in written}  # no hair line


@pytest.mark.parametrize("name", ["fig_arms", "fig_survival", "fig_sweep", "fig_relapse"])
def test_no_text_covers_another(name):
    """Fails if names at lines that end together, or columns beside rows, run into each other."""
    for ax in draw(name).axes:
        boxes = list(texts(ax).values())
        assert len(boxes) > 1
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_names_of_lines_stay_below_the_top():
    """Fails if the names of lines that all end at the top pile up above the axes."""
    line = {"method": "EFUF", "chair_s": [[0.0, 1.0]]}
    many = {"at": [0, 64], "lines": {f"row {i}": line for i in range(4)}}
    ax = figures.fig_relapse(many, keys=("chair_s",)).axes[0]
    boxes = texts(ax)
    middle = [(box.y0 + box.y1) / 2 for box in boxes.values()]
    assert len(boxes) == 4 and max(middle) <= ax.get_window_extent().y1 + 1


def test_a_name_without_a_style_is_neutral():
    """Fails if a control that nobody gave a colour to cannot be drawn."""
    line = CURVES | {"method": "a control of yours"}
    ax = figures.fig_relapse(RELAPSE | {"lines": {"mine": line}}).axes[0]
    colours = {name: look[0] for name, look in looks.STYLE.items()}
    assert ax.lines[-2].get_color() == looks.SPARE[0][0]  # the last marks 50 %
    assert ax.lines[-2].get_color() not in {colours[name] for name in METHODS}


def test_arms_say_what_they_cost_and_which_are_off():
    """Fails if a column shows another arm's number, an arm off the common level does not say so, or
    an arm with a note looks like the others.
    """
    ax = draw("fig_arms").axes[0]
    written = texts(ax)
    for text in ("225", "8.00", "99.0", "1,000", "8.13 (off 0.40)", "97.0", "2,100"):
        assert text in written, (text, list(written))
    same_row = [written[text].y0 for text in ("EFUF", "225", "8.00", "99.0", "1,000")]
    assert max(same_row) - min(same_row) < 3
    marks = [line.get_color() for line in ax.lines if line.get_markersize() == 7]
    assert marks == [looks.STYLE["EFUF"][0], looks.INK, looks.PALE]


def test_a_column_that_no_arm_fills_is_left_out():
    bare = {"endpoint": "%", "bounds": None, "arms": {"EFUF": {"values": [1.0, 2.0]}}}
    assert set(texts(figures.fig_arms(bare).axes[0])) == {"EFUF", "mean", "1.5"}


def test_survival_is_kaplan_meier():
    """Fails if a censored run counts as a relapse, or leaves the runs at risk too early."""
    ax = draw("fig_survival").axes[0]
    line, ticks = ax.lines[:2]
    assert line.get_drawstyle() == "steps-post"
    steps = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert steps == {0: 100, 100: 75, 200: 50, 300: 50, 640: 50}
    assert list(ticks.get_xdata()) == [300, 640] and list(ticks.get_ydata()) == [50, 50]
    # a run that is censored before a relapse: two are left, and one of them relapses
    arm = {"samples": [100.0, 50.0, 640.0], "censored": [False, True, True], "n_seeds": 3}
    ax = figures.fig_survival({"end": 640, "arms": {"SARE": arm}}).axes[0]
    assert list(ax.lines[0].get_ydata()) == [100, 100, 50, 50, 50]
    at_risk = [text.get_text() for text in ax.texts if text.get_text().isdigit()]
    assert at_risk == ["3", "1", "1", "1", "1", "1"]  # at 0, 128, ...: censored at 50, back at 100
    assert "tick: one that ends without" in ax.get_xlabel()
    ends = {"samples": [100.0, 50.0], "censored": [False, False], "n_seeds": 2}
    assert (
        "tick" not in figures.fig_survival({"end": 640, "arms": {"a": ends}}).axes[0].get_xlabel()
    )


def test_a_rate_that_ruins_recall_is_hollow_and_never_the_worst():
    """Fails if an attack that leaves no captions counts as the strongest."""
    by_look = {}
    for line in draw("fig_sweep").axes[0].lines:
        key = "ring" if line.get_markersize() == 14 else line.get_markerfacecolor()
        by_look.setdefault(key, []).append(list(line.get_xdata()))
    assert by_look["white"] == [[2e-3]] * 2  # the highest CHAIR_s, but not allowed
    assert by_look["ring"] == [[2e-4]] * 2


def test_shares_of_variance_fill_a_bar_or_none():
    """Fails if an estimate below zero shifts the others, or a row of zeros divides by zero."""
    left, right = draw("fig_variance").axes
    widths = [bar.get_width() for bar in left.patches]
    assert widths == [25, 50, 25, 0, 0, 0, 0, 0]
    assert [bar.get_x() for bar in left.patches][:4] == [0, 25, 75, 100]
    assert right.get_xscale() == right.get_yscale() == "log"


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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where `publish` writes to."""
    monkeypatch.setitem(plt.rcParams, "figure.max_open_warning", 0)
    monkeypatch.setattr(files, "figures_folder", lambda preset, seeds: tmp_path)
    return tmp_path


def publish(name, as_name=None):
    """The fixture of a function, published as a chapter does it: settings by keyword."""
    fixture = FIXTURES[name]
    results, *values = fixture if isinstance(fixture, tuple) else (fixture,)
    keys = list(inspect.signature(getattr(figures, name)).parameters)[1 : 1 + len(values)]
    how = dict(zip(keys, values, strict=True))
    caption = "A caption."
    return figures.publish(name, as_name or name, results, "fast", (1, 2), caption, **how)


def width(path):
    """Pixels."""
    with Image.open(path) as picture:
        return picture.width


def test_every_figure_is_as_wide_as_the_book_and_legible(folder):
    """Fails if a chapter's figures differ in width, letters are smaller than 7.5 pt where the page
    is 900 pixels wide, or words are cut off at a side.
    """
    for name in FIXTURES:
        path = publish(name)
        assert width(path) == round(looks.WIDTH * plt.rcParams["savefig.dpi"])
        figure = plt.gcf()
        figure.set_dpi(150)
        figure.draw_without_rendering()
        words = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
        shown = [t for t in words if t.axes is None or t.axes.get_visible()]
        assert min(t.get_fontsize() for t in shown) >= 7.5, name
        box = figure.get_tightbbox()
        assert box.x0 >= -0.01 and box.x1 <= looks.WIDTH + 0.01, (name, box)
        plt.close("all")


def test_a_title_stands_on_top_and_is_kept(folder):
    """Fails if what a figure says is lost on the way to the file, or runs over the edge."""
    title = "A result in words. " * 12
    caption = "Median and quartiles of 5 rounds by a LLaVA with 576 image tokens in turn. " * 6
    path = figures.publish("fig_relapse", "trial", RELAPSE, "full", (1, 2), caption, title=title)
    assert json.loads(path.with_suffix(".json").read_text())["title"] == title
    figure = plt.gcf()
    figure.set_dpi(150)  # as it is saved
    (written,) = (t for t in figure.texts if t.get_text().startswith("A result"))
    inside = [ax.get_tightbbox().y1 for ax in figure.axes]
    assert written.get_window_extent().y0 >= max(inside) and "\n" in written.get_text()
    edge = looks.WIDTH * figure.dpi
    assert all(text.get_window_extent().x1 <= edge for text in figure.texts)


def test_numbers_are_kept_without_a_picture(folder):
    """Fails if results that prose quotes cannot be found, or redrawing stumbles over them."""
    path = figures.numbers("trial", {"a": [1 / 3]}, "full", (1, 2), "What they are.")
    facts = json.loads(path.read_text())
    assert facts["results"] == {"a": [0.333333]} and facts["caption"] == "What they are."
    assert figures.redraw(folder) == [] and [p.name for p in folder.iterdir()] == ["trial.json"]


def test_the_step_moves_and_ends_where_the_figure_does(folder):
    """Fails if the film is large, differs from run to run, or does not open with the whole step."""
    publish("fig_geometry")
    film = folder / "03_step.gif"
    before = film.read_bytes()
    assert figures.redraw(folder) == ["fig_geometry"] and film.read_bytes() == before
    assert len(before) < 400_000
    with Image.open(film) as moving:
        assert moving.n_frames > 10 and moving.info["loop"] == 0
        frames = [np.asarray(moving.convert("RGB")) for _ in [moving.seek(0)]]
        for i in (1, moving.n_frames - 1):
            moving.seek(i)
            frames.append(np.asarray(moving.convert("RGB")))
    assert (frames[0] == frames[2]).all() and (frames[0] != frames[1]).any()
    for name in ("EFUF", "SARE"):  # a palette of greys would lose the arrows' colours
        meant = 255 * np.asarray(to_rgb(looks.STYLE[name][0]))
        assert np.abs(frames[0].astype(float) - meant).max(-1).min() < 16


def test_what_is_invented_needs_no_colour():
    """Fails if a grey print of the strip cannot tell invented words from true ones."""
    ax = draw("fig_strip").axes[0]
    words = {t.get_text(): t for t in ax.texts}
    assert words["fork"].get_fontweight() == "bold" != words["a cup,"].get_fontweight()
    underlined = [line for line in ax.lines if line.get_color() == words["fork"].get_color()]
    n_said = sum(t.get_text() == "fork" for t in ax.texts)
    assert len(underlined) == n_said == 7  # of the second place, in each of the seven rows
    assert words["30 %"] and words["97 %"] and len(ax.images) == 2


def test_the_strip_names_a_count_that_was_not_measured():
    with pytest.raises(ValueError, match="at: 64 samples were not measured: there are 0, 128, 640"):
        figures.fig_strip(STRIP, at=(0, 64))


def test_an_attack_is_a_row_with_its_difference_and_its_recall():
    """Fails if the difference has another sign, is of other curves than the marks, or if recall is
    read before the attack's end, so that one which silences the model looks harmless.
    """
    better = {"chair_s": [[0.0, 0.1, 0.2], [0.0, 0.1, 0.2], [0.0, 0.0, 0.1]]}
    lines = ATTACKED["lines"] | {"SARE": ATTACKED["lines"]["SARE"] | better}
    drawn = {"LoRA": {"at": [0, 64, 128], "lines": lines}, "bits": ATTACKED | {"at": [8, 4, 2]}}
    units = {"bits": "{first:g} to {last:g} bits"}
    ax = figures.fig_attacks(drawn, dict.fromkeys(drawn, "chair_s"), units).axes[0]
    marks = {
        line.get_label(): line.get_xdata()[0] for line in ax.lines if line.get_marker() != "None"
    }
    assert marks["EFUF"] == pytest.approx(100 * (0.5 + 0.45 + 0.3) / 3)
    assert marks["SARE"] == pytest.approx(100 * (0.1 + 0.1 + 0.025) / 3)
    words = [text.get_text() for text in ax.texts]
    assert "64 to 128 samples" in words and "8 to 2 bits" in words
    assert words.count("30 and 30") == 2 and "recall at the\nstrongest, %" in words
    assert any(text.startswith("-34.2 [") for text in words) and "SARE − EFUF, points" in words


def test_what_robustness_costs_is_joined_by_method():
    """Fails if levels of one method are not joined, or an arm that names little looks fair."""
    ax = figures.fig_work(FIXTURES["fig_work"]).axes[0]
    path = next(line for line in ax.lines if line.get_linewidth() == 1.4)
    assert list(path.get_xdata()) == [90, 180] and list(path.get_ydata()) == [55, 55]
    fills = {
        line.get_xdata()[0]: line.get_markerfacecolor()
        for line in ax.lines
        if line.get_marker() not in ("None", "")
    }
    assert fills[50] == "white" != fills[90]
    assert [text.get_text() for text in ax.texts] == ["EFUF, 4 nats", "EFUF, 8 nats"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["GA"]


def test_nll_lost_starts_at_zero():
    """Fails if two erasures that start at other levels are compared by where they stand."""
    drawn = {"distances": [0, 1], "lines": {"EFUF": {"method": "EFUF", "curves": [[6, 3], [8, 4]]}}}
    ax = figures.fig_slices(drawn, "nll_lost").axes[0]
    assert [list(line.get_ydata()) for line in ax.lines] == [[0, 3], [0, 4], [0, 3.5]]


def test_names_of_panels_stand_at_their_lines_ends():
    """Fails if names are placed before the last panel has moved the limits that all share."""
    low, high = (
        {"distances": [0, 1], "lines": {"SARE": {"method": "SARE", "curves": [[x, x]] * 2}}}
        for x in (1, 30)
    )
    for ax in figures.fig_slices_panels({"low": low, "high": high}).axes:
        (box,) = texts(ax).values()
        end = ax.transData.transform((1, ax.lines[-1].get_ydata()[-1]))
        assert box.y0 < end[1] < box.y1


def test_each_run_is_drawn_to_its_own_end():
    """Fails if a longer run is cut where the shortest ends, or the mean goes on with fewer."""
    lines = draw("fig_training").axes[0].lines
    assert [2, 3] in [list(line.get_ydata()) for line in lines]
    assert max(lines, key=lambda line: line.get_linewidth()).get_xdata()[-1] == 2


def test_what_is_left_of_the_deepest_minimum_is_said():
    """Fails if the number is another than the worst case's at the lowest loss."""
    words = [text.get_text() for text in draw("fig_two_minima").axes[0].texts]
    assert "here the worst case is 1.00" in words


def test_committed_figures_say_what_they_show():
    """Fails if a committed figure has no title, or was drawn for another width."""
    for path in sorted((files.ROOT / "figures").glob("*.json")):
        facts = json.loads(path.read_text())
        if isinstance(facts, dict) and "drawn_by" in facts:
            assert facts["title"] and facts["caption"].endswith("."), path
            assert width(path.with_suffix(".png")) == 1350, path


def test_a_run_that_is_not_the_books_says_so(folder, capsys):
    """Fails if a reader could take the fast preset's figure for the book's, or the book's own run
    would print a line that differs from what is stored.
    """
    results, *_ = (
        FIXTURES["fig_two_minima"]
        if isinstance(FIXTURES["fig_two_minima"], tuple)
        else (FIXTURES["fig_two_minima"],)
    )
    for preset, seeds in (("fast", (1001, 1002)), ("full", (5, 6)), ("full", files.BOOK_SEEDS)):
        figures.publish("fig_two_minima", "01_x", results, preset, seeds, "A caption.")
    said = capsys.readouterr().out
    assert said == (
        "fast preset, 2 seeds; the book's own: figures/01_x.png\n"
        "full preset, 2 seeds; the book's own: figures/01_x.png\n"
    )


def test_published_twice_is_equal_bytes(folder):
    """Fails if a date, a version of matplotlib's own or float noise gets into a file."""
    contents = []
    for _ in range(2):
        path = publish("fig_relapse", "trial")
        contents.append((path.read_bytes(), path.with_suffix(".json").read_bytes()))
    assert contents[0] == contents[1]
    facts = json.loads(contents[0][1])
    assert facts["results"]["at"] == [0, 64, 128] and facts["seeds"] == [1, 2]
    assert facts["versions"]["torch"] and facts["caption"] == "A caption."
    assert facts["drawn_by"] == {"function": "fig_relapse", "how": {}}


@pytest.mark.parametrize("name", FIXTURES)
def test_redrawn_is_equal_bytes(name, folder):
    """Fails if a figure shows what its JSON does not hold, or its caption gets a second stamp."""
    path = publish(name)
    before = path.read_bytes()
    path.unlink()
    assert figures.redraw(folder) == [name]
    assert path.read_bytes() == before


def test_what_is_drawn_is_what_is_stored(folder):
    """Fails if a figure is drawn from digits that its JSON does not keep."""
    rough = {"a": [0.1234567891, 0.7, 0.9]}
    path = figures.publish("fig_dots", "trial", rough, "full", (1, 2, 3), "", xlabel="%")
    drawn = plt.gcf().axes[0].lines[0].get_xdata()
    assert drawn[0] == json.loads(path.with_suffix(".json").read_text())["results"]["a"][0]


def test_redrawing_needs_no_torch(folder):
    """Fails if a figure can no longer be drawn where only numpy, scipy and matplotlib are."""
    for name in FIXTURES:
        publish(name)
    code = (
        "import sys, pathlib; from lab.evidence import figures;"
        "names = figures.redraw(pathlib.Path(sys.argv[1]));"
        f"sys.exit(len(names) != {len(FIXTURES)} or bool({{'torch', 'transformers'}} & "
        "sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    assert subprocess.run(command, cwd=files.CHAPTERS).returncode == 0


def test_a_broken_figure_file_is_named(folder):
    """Fails if a torn or foreign JSON passes, or ends in an error that does not say which it is."""
    for name, other in (("claims", "[1, 2]"), ("bench", '{"rows": 1}')):  # no figure: left alone
        (folder / f"{name}.json").write_text(other)
    assert figures.redraw(folder) == []
    path = publish("fig_arms").with_suffix(".json")
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(ValueError, match="fig_arms.json: the file is no JSON.*chapter again"):
        figures.redraw(folder)
    path.write_text(whole.replace('"function": "fig_arms"', '"function": "fig_lost"'))
    with pytest.raises(ValueError, match="fig_arms.json.*unknown function 'fig_lost': there are"):
        figures.redraw(folder)
    path.write_text(whole.replace('"results"', '"lost"'))
    with pytest.raises(ValueError, match="fig_arms.json.*KeyError: 'results'.*chapter again"):
        figures.redraw(folder)


def test_what_cannot_be_redrawn_is_not_published(folder):
    """Fails if a figure is written that its JSON cannot draw again."""

    def offer(function, results, **how):
        figures.publish(function, "trial", results, "full", (1, 2), "A caption.", **how)

    dots = {"a": [1.0, 2.0]}
    with pytest.raises(ValueError, match="unknown function 'fig_dot': there are .*fig_dots"):
        offer("fig_dot", dots)
    with pytest.raises(ValueError, match="trial: ax: JSON cannot hold it"):
        offer("fig_dots", dots, xlabel="%", ax=plt.subplots()[1])
    with pytest.raises(ValueError, match="trial: bounds: JSON cannot hold it"):
        offer("fig_dots", dots, xlabel="%", bounds=(0, float("inf")))
    with pytest.raises(ValueError, match="trial: results: JSON cannot hold it"):
        offer("fig_dots", {"a": {1.0, 2.0}}, xlabel="%")
    with pytest.raises(ValueError, match="fig_dots takes no 'xlable': there are xlabel, labels"):
        offer("fig_dots", dots, xlable="%")
    assert not list(folder.iterdir())


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

"""Colours, dashes and markers: each means one thing, and can be told apart by every reader."""

import json
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from lab import files
from lab.evidence import figures, looks

METHODS = ("base", "honest", "EFUF", "SARE")
PAIRS = [pair for names in looks.TOGETHER for pair in combinations(names, 2)]
SEEN_AS = {  # Machado et al. 2009, "A Physiologically-based Model ...", severity 1, linear RGB
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(  # of linear sRGB, white D65
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour) -> np.ndarray:
    """Linear RGB of a colour."""
    rgb = np.asarray(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    x, y, z = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(1)
    f = [np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def colour(name: str) -> str:
    return looks.STYLE[name][0]


def test_the_simulation_confuses_what_it_should():
    """Fails if the matrices are applied to the wrong colour space: red and green of one lightness
    are far apart for most readers, near for two in a hundred.
    """
    red, green = "#c04040", "#507a30"
    apart = {
        seen: np.linalg.norm(lab(np.asarray(m) @ linear(red)) - lab(np.asarray(m) @ linear(green)))
        for seen, m in SEEN_AS.items()
    }
    assert apart["all cones"] > 70 and apart["deuteranopia"] < 25 and apart["tritanopia"] > 40


@pytest.mark.parametrize("seen", SEEN_AS)
@pytest.mark.parametrize("one, other", PAIRS)
def test_lines_of_one_panel_can_be_told_apart(one, other, seen):
    """Fails if two lines that share a panel look alike to some reader.

    A difference of 2.3 is just noticeable side by side on large patches; thin lines that cross need
    far more: 20, about the distance between neighbours of a ten-step grey scale, twice.
    """
    matrix = np.asarray(SEEN_AS[seen])
    distance = np.linalg.norm(
        lab(matrix @ linear(colour(one))) - lab(matrix @ linear(colour(other)))
    )
    assert distance >= 20


@pytest.mark.parametrize("one, other", PAIRS)
def test_a_grey_print_keeps_them_apart(one, other):
    """Fails if lightness does not differ by 10 of 100, or dash and marker do not help."""
    light = [lab(linear(colour(name)))[0] for name in (one, other)]
    assert abs(light[0] - light[1]) >= 10
    assert all(a != b for a, b in zip(looks.STYLE[one][1:], looks.STYLE[other][1:], strict=True))


@pytest.mark.parametrize("name", looks.STYLE)
def test_lines_stand_out_from_white(name):
    """Fails below a contrast of 3, which the web's guideline (WCAG 1.4.11) asks of graphics."""
    luminance = TO_XYZ[1] @ linear(colour(name))
    assert 1.05 / (luminance + 0.05) >= 3


def test_a_hue_means_a_method_and_nothing_else():
    """Fails if a direction, a precision or a setting is drawn in a method's colour, or in any
    other.
    """
    hues = {colour(name) for name in METHODS}
    assert len(hues) == len(METHODS)
    for name in looks.STYLE:
        if name.split(",")[0] in METHODS:
            assert looks.STYLE[name] == looks.STYLE[name.split(",")[0]]
        else:
            assert colour(name) in (looks.INK, looks.MID, looks.PALE), name
    assert not hues & {spare[0] for spare in looks.SPARE}


def test_who_shares_a_panel_is_known():
    """Fails if a committed figure draws lines together that no test above has compared."""
    together = {frozenset(pair) for pair in PAIRS}
    for path in sorted((files.ROOT / "figures").glob("*.json")):
        facts = json.loads(path.read_text())
        if not isinstance(facts, dict) or "drawn_by" not in facts:
            continue
        drawn = facts["results"] if isinstance(facts["results"], dict) else {}
        for panel in [drawn, *(one for one in drawn.values() if isinstance(one, dict))]:
            lines = panel.get("lines", {})
            names = [line["method"] for line in lines.values() if "method" in line]
            assert len(names) <= 3, f"{path.name}: more than three lines in a panel"
            for pair in combinations(names, 2):
                assert frozenset(pair) in together, f"{path.name}: {pair}"


def test_names_without_a_look_differ():
    """Fails if two controls that nobody gave a look to are one line to the reader."""
    found = looks.looks(["mine", "EFUF", "yours", "mine"])
    assert found[0] == found[3] != found[2] and found[1] == looks.STYLE["EFUF"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_labels_keep_their_distance_and_their_order(wanted):
    """Fails if labels cover each other, change places or leave the axes, or are moved for
    nothing.
    """
    wanted = sorted(wanted)
    places = looks.spread(wanted, 0.1, 0, 1)
    steps = np.diff(places)
    assert (steps >= 0.1 - 1e-9).all() and min(places) >= 0 and max(places) <= 1
    if len(wanted) == 1 or np.diff(wanted).min() >= 0.1:
        assert places == pytest.approx(wanted)


def test_labels_that_meet_share_the_way():
    """Fails if a label is pushed one way where its neighbour could give way, too."""
    assert looks.spread([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])


def test_an_end_label_is_tied_to_its_lines_end():
    """Fails if a name that had to move no longer shows which line it names."""
    line = {"method": "EFUF", "chair_s": [[0.0, 0.5]]}
    drawn = {"at": [0, 8], "lines": {"EFUF": line, "SARE": line | {"method": "SARE"}}}
    ax = figures.fig_relapse(drawn, keys=("chair_s",)).axes[0]
    ends = (ax.transData - ax.transAxes).transform([(8, 50)])[0]
    assert [tuple(text.xy) for text in ax.texts] == [pytest.approx(tuple(ends))] * 2
    assert all(text.arrow_patch is not None for text in ax.texts)
    plt.close("all")

"""What every figure shares: the meaning of colours, dashes and markers, and how lines are drawn.

A hue means a method, and nothing else in the book:

    dark red    the base model, which hallucinates
    dark green  the honest model, which never learnt to
    orange      EFUF (its dash: an erasure by EFUF, at whatever level)
    blue        SARE

In captions bright red, bold and underlined, means: not in the picture. All else is ink or grey:
directions in weight space, precisions, thresholds, settings, means over rows, dots of seeds. Dash
and marker repeat what the colour says. A test simulates three kinds of colour blindness and a grey
print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import offset_copy

from .stats import band

WIDTH = 9.0  # inches, of every figure: 100 an inch where a page is 900 pixels wide
EDGE = 0.08  # inches left free around it
ENOUGH = 0.95  # recall under which a low CHAIR_s says little: the model names less
INK, MID, PALE = "#111827", "#4b5563", "#8b909a"
# What a figure calls a row whose name in METHODS is shorthand
CALLED = {"EFUF+SAM": "untargeted SAM"}
STYLE = {  # name -> (colour, marker, dash)
    "base": ("#6b1a1a", "o", (1, 1)),
    "honest": ("#0f4d2e", "X", (6, 2)),
    "EFUF": ("#c87800", "s", (4, 2)),
    "SARE": ("#0a6ab0", "D", ()),
    "EFUF, honest level": ("#c87800", "s", (4, 2)),
    "SARE, honest level": ("#0a6ab0", "D", ()),
    # directions in weight space
    "relapse": (INK, "s", ()),
    "attack": (MID, "P", (6, 2, 1, 2)),
    "random": (PALE, "o", (1, 1)),
    "forget": (INK, "v", (4, 2)),
    "remember": (MID, "^", (6, 2, 1, 2)),
    # precisions
    "fp32": (PALE, "o", (1, 1)),
    "bf16": (INK, "s", ()),
    # settings
    "lambda_neg 0.1": (INK, "o", ()),
    "lambda_neg 0.2": (PALE, "^", (4, 2)),
}
TOGETHER = (  # the names that share a panel
    ("base", "EFUF", "SARE"),
    ("honest", "EFUF, honest level", "SARE, honest level"),
    ("relapse", "attack", "random"),
    ("forget", "remember", "random"),
    ("fp32", "bf16"),
    ("lambda_neg 0.1", "lambda_neg 0.2"),
)
SPARE = (  # of names that have no look of their own, in their order
    (MID, ".", (3, 2)),
    (INK, "x", (1, 2)),
    (PALE, "P", ()),
    (MID, "v", (6, 1)),
)
METRICS = {  # key -> (axis label, factor, bounds of the metric itself)
    "chair_s": ("CHAIR_s, %, lower is better", 100, (0, 100)),
    "recall": ("recall, %, higher is better", 100, (0, 100)),
    "cosine": ("cosine of taken and intended\nstep, 1 is better", 1, (-1, 1)),
    "nll_forget": (
        "NLL of hallucinated words,\nnats a token, higher: forgotten",
        1,
        (0, float("inf")),
    ),
    "nll_lost": (
        "NLL of hallucinated words lost,\nnats a token, lower is better",
        1,
        (-float("inf"), float("inf")),
    ),
    "nll_retain": ("NLL of grounded words,\nnats a token, lower is better", 1, (0, float("inf"))),
}
Look = tuple[str, str, tuple[float, ...]]


def look(name: str) -> Look:
    """(colour, marker, dash) of a name; the first spare one if it has none."""
    return STYLE.get(name, SPARE[0])


def looks(names: Sequence[str]) -> list[Look]:
    """A look each; names without one of their own get spare ones in turn."""
    others = [name for name in dict.fromkeys(names) if name not in STYLE]
    spare = {name: SPARE[i % len(SPARE)] for i, name in enumerate(others)}
    return [STYLE.get(name) or spare[name] for name in names]


def dashes(dash: Sequence[float]) -> Sequence[float | None]:
    """A dash as matplotlib takes it: () is a solid line."""
    return dash or (None, None)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near as they can be (least squares) to the wanted ones, which ascend, at least
    `gap` apart; a heap of them moves as one to stay within low and high.
    """
    heaps: list[list[float]] = []  # [first index, mean of the heap's first place]
    for i, place in enumerate(wanted):
        heaps.append([i, 1, place - i * gap])
        while len(heaps) > 1 and heaps[-1][2] < heaps[-2][2]:
            _, n, start = heaps.pop()
            first, m, before = heaps.pop()
            heaps.append([first, m + n, (m * before + n * start) / (m + n)])
    places = [start + int(first + j) * gap for first, n, start in heaps for j in range(int(n))]
    ceiling = [high - (len(places) - 1 - i) * gap for i in range(len(places))]
    return [min(max(p, low + i * gap), ceiling[i]) for i, p in enumerate(places)]


def end_labels(
    ax: Axes, x: float, labels: Sequence[tuple[float, str, str]], size: float = 9.5
) -> None:
    """Write (y, text, colour) at the right ends of lines, each tied to its end by a hair line and
    moved no more than its neighbours ask for. Set the limits first.
    """
    ax.get_xlim(), ax.get_ylim()  # the limits settle only when they are asked for
    labels = sorted(labels)
    ends = (ax.transData - ax.transAxes).transform([(x, y) for y, _, _ in labels])
    height = ax.get_position().height * ax.figure.get_figheight()
    gap = 1.3 * size / 72 / height * max(text.count("\n") + 1 for _, text, _ in labels)
    places = spread(ends[:, 1], gap, 0, 1)
    beside = offset_copy(ax.transAxes, ax.figure, 12, 0, "points")
    for (across, up), place, (_, text, colour) in zip(ends, places, labels, strict=True):
        ax.annotate(
            text,
            (across, up),
            (across, place),
            "axes fraction",
            beside,
            color=colour,
            va="center",
            fontsize=size,
            fontweight="bold",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkB": 1},
        )


def curves(
    ax: Axes,
    x: Sequence[float],
    lines: Mapping[str, tuple[str, Sequence[Sequence[float]]]],
    bounds: tuple[float, float],
    named: bool = True,
) -> list[tuple[float, str, str]]:
    """lines: {label: (a name with a look, [a curve per seed])}. Seeds faint, mean strong, band
    from three seeds on; names at the lines' ends if `named`. Returns what end_labels takes.
    """
    ends = []
    for (label, (_, row)), found in zip(
        lines.items(), looks([name for name, _ in lines.values()]), strict=True
    ):
        colour, marker, dash = found
        for curve in row:
            ax.plot(x, curve, color=colour, alpha=0.25, linewidth=0.7)
        mean, low, high = band(row, bounds)
        every = max(1, len(x) // 12)
        ax.plot(x, mean, color=colour, marker=marker, ms=4.5, markevery=every, dashes=dashes(dash))
        if len(row) > 2:  # two seeds give an interval that fills the figure and says nothing
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((mean[-1], label, colour))
    if named:
        end_labels(ax, x[-1], ends)
    return ends


def percent_axis(ax: Axes, half: bool = False) -> None:
    """0 to 100 % with a little air, and a line at 50 % if that is where a relapse is counted."""
    ax.set(ylim=(-3, 103), yticks=(0, 25, 50, 75, 100))
    if half:
        ax.axhline(50, color=INK, linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)


def clip(ends: Sequence[float], bounds: Sequence[float]) -> np.ndarray:
    """An interval's ends within the metric's own bounds."""
    return np.clip(np.asarray(ends, float), *bounds)


def called(name: str) -> str:
    """A row's name as figures and titles say it: "EFUF+SAM, equal work" is untargeted SAM's."""
    first, comma, rest = name.partition(",")
    return CALLED.get(first, first) + comma + rest

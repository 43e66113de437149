"""What the models see and say: scenes with their captions, the strip of captions through an attack,
and the scores that a judge gives to what is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from ..world.scenes import Scene, draw
from .looks import EDGE, INK, MID, PALE, WIDTH, look

INVENTED = "#c81e1e"  # and bold, and underlined: a grey print tells it, too
ROOM = WIDTH - 2 * EDGE  # inches of a canvas
LINE = 0.15  # inches, of text of 8 points
Token = tuple[str, bool]  # text with its leading space, is it invented?


def canvas(height: float) -> Axes:
    """Empty axes that fill a figure; data coordinates are inches from the upper left, down."""
    figure = plt.figure(figsize=(WIDTH, height))
    ax = figure.add_axes((EDGE / WIDTH, 0, ROOM / WIDTH, 1))
    ax.set(xlim=(0, ROOM), ylim=(height, 0))
    ax.set_axis_off()
    return ax


@lru_cache
def _pen() -> RendererAgg:
    """Measures text as it is saved."""
    return RendererAgg(1, 1, plt.rcParams["savefig.dpi"])


def _advance(text: str, size: float, bold: bool) -> float:
    """How far a text moves the pen, in inches, its spaces counted."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    wide, bare = (
        _pen().get_text_width_height_descent(f"|{inner}|", font, ismath=False)[0]
        for inner in (text, "")
    )
    return (wide - bare) / _pen().dpi


def write(
    ax: Axes, tokens: Sequence[Token], x: float, top: float, width: float, size: float = 8
) -> int:
    """Write tokens from (x, top) on a `canvas`, broken at spaces to fit the width; what is invented
    is red, bold and underlined. Returns how many lines it took.
    """
    words: list[list[Token]] = []
    for text, invented in tokens:
        if text.startswith(" ") or not words:
            words.append([])
        words[-1].append((text, invented))
    lines, pen, high = [[]], 0.0, LINE * size / 8
    for word in words:
        length = sum(_advance(text, size, invented) for text, invented in word)
        if pen and pen + length > width:
            lines.append([])
            pen = 0.0
        lines[-1] += word
        pen += length
    for i, line in enumerate(lines):
        _line(ax, line, x, top + (i + 0.5) * high, size)
    return len(lines)


def _line(ax: Axes, tokens: Sequence[Token], x: float, y: float, size: float) -> None:
    """One line, a text for each stretch of one kind."""
    for i, (invented, stretch) in enumerate(groupby(tokens, key=lambda token: token[1])):
        text = "".join(part for part, _ in stretch)
        text = text if i else text.lstrip(" ")
        letters = text.strip(" ")
        start = x + _advance(text[: len(text) - len(text.lstrip(" "))], size, invented)
        how = {"color": INVENTED, "fontweight": "bold"} if invented else {"color": INK}
        ax.text(start, y, letters, fontsize=size, va="center_baseline", **how)
        if invented and letters:
            ends = [start, start + _advance(letters, size, True)]
            ax.plot(ends, [y + 0.07 * size / 8] * 2, color=INVENTED, linewidth=0.9)
        x += _advance(text, size, invented)


def picture(ax: Axes, scene: Mapping, x: float, top: float, side: float) -> None:
    """A scene's picture on a `canvas`. scene: {"place", "objects", "cells"}."""
    pixels = draw(Scene(scene["place"], tuple(scene["objects"]), tuple(scene["cells"])))
    limits = ax.axis()
    where = (x, x + side, top + side, top)
    ax.imshow(pixels, extent=where, interpolation="nearest", aspect="auto")
    ax.axis(limits)


def fig_scenes(results: Sequence[Mapping], size: float = 11) -> Figure:
    """Pictures with what a model says of them. results: [{"place", "objects", "cells", "says":
    [[word, is_hallucinated], ...]}]; size: of the words, in points.
    """
    side, wide, high = 1.35, ROOM / len(results), LINE * size / 8
    ax, lines = canvas(side + 0.1 + 3 * high), []
    for i, shown in enumerate(results):
        picture(ax, shown, i * wide, 0, side)
        tokens: list[Token] = [(f"{shown['place']}:", False)]
        for j, (word, wrong) in enumerate(shown["says"]):
            tokens += [(" ", False), (word, wrong)]
            tokens += [(",", False)] if j < len(shown["says"]) - 1 else []
        lines.append(write(ax, tokens, i * wide, side + 0.06, wide - 0.15, size))
    return _cut(ax, side + 0.1 + max(lines) * high)


def fig_strip(results: Mapping, at: Sequence[int] = (0, 128, 640), nth: int = 0) -> Figure:
    """Four scenes, one of each place (the nth): what the base model says of them, and the others
    right after erasure and after relearning samples; at the right CHAIR_s of all held-out scenes.

    results: {"at": sample counts, "scenes": [{"place", "objects", "cells"}], "chair_s": {"base":
    [share], "EFUF": [share at each count], "SARE"}, "says": {"base": [[tokens of each scene]],
    "EFUF": [the same, at each count], "SARE"}}; a token is [text, probability, "plain", "true" or
    "invented"]. Raises ValueError naming a count that was not measured.
    """
    columns, rows = _nth_of_each(results["scenes"], nth), _strip_rows(results, at)
    side, first, last = 0.95, 1.32, 0.5
    wide = (ROOM - first - last) / len(columns)
    ax = canvas(side + 0.2 + len(rows) * (3 * LINE + 0.1))
    for i, scene in enumerate(columns):
        picture(ax, results["scenes"][scene], first + i * wide, 0, side)
    how = {"fontsize": 8, "color": MID}
    words = "CHAIR_s,\nall scenes,\nlower is better"
    ax.text(ROOM, side, words, ha="right", va="bottom", **how)
    top = side + 0.1
    for when, name, index in rows:
        if when:
            ax.plot([0, ROOM], [top - 0.03] * 2, color=PALE, linewidth=0.7)
            ax.text(0, top, when, va="top", linespacing=1.25, **how)
        colour = look(name)[0]
        where = {"va": "center_baseline", "fontweight": "bold", "fontsize": 9, "color": colour}
        ax.text(first - 0.58, top + LINE / 2, name, **where)
        share = f"{100 * results['chair_s'][name][index]:.0f} %"
        ax.text(ROOM, top + LINE / 2, share, ha="right", **where)
        lines = [
            write(
                ax,
                [
                    (text, kind == "invented")
                    for text, _, kind in results["says"][name][index][scene]
                ],
                first + i * wide,
                top,
                wide - 0.05,
            )
            for i, scene in enumerate(columns)
        ]
        top += max(lines) * LINE + 0.1
    return _cut(ax, top)


def _cut(ax: Axes, height: float) -> Figure:
    """The `canvas` without what is left empty at its foot."""
    ax.set_ylim(height, 0)
    ax.figure.set_figheight(height)
    return ax.figure


def _nth_of_each(scenes: Sequence[Mapping], nth: int) -> list[int]:
    """The row of the nth scene of each place, in the places' order."""
    rows: dict[str, list[int]] = {}
    for i, scene in enumerate(scenes):
        rows.setdefault(scene["place"], []).append(i)
    return [found[nth] for found in rows.values()]


def _strip_rows(results: Mapping, at: Sequence[int]) -> list[tuple[str, str, int]]:
    """(when, model, index of the count), a row each; `when` stands at the first of its block."""
    if missing := [n for n in at if n not in results["at"]]:
        counts = ", ".join(map(str, results["at"]))
        raise ValueError(f"at: {missing[0]} samples were not measured: there are {counts}.")
    rows = [("before\nerasure", "base", 0)]
    for n in at:
        when = f"after {n}\nsamples" if n else "right after\nerasure"
        index = list(results["at"]).index(n)
        names = [name for name in results["says"] if name != "base"]
        rows += [(when if name == names[0] else "", name, index) for name in names]
    return rows


def fig_scores(results: Mapping, ax: Axes | None = None) -> Figure:
    """CLIP scores of mentioned objects, counts on a logarithmic axis. results: {"present": [...],
    "absent": [...], "forget_below", "retain_above"}.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 3))
    everything = [*results["present"], *results["absent"]]
    bins = np.linspace(min(everything), max(everything), 60)
    looks = (("present", {"color": PALE}), ("absent", {"facecolor": "white", "hatch": "////"}))
    for name, how in looks:
        label = f"the object is {name} ({len(results[name])})"
        edge = {"edgecolor": INK, "linewidth": 0.6, "alpha": 0.85}
        ax.hist(results[name], bins, log=True, label=label, **how | edge)
    for key, text, side in (
        ("forget_below", "forget", "right"),
        ("retain_above", "retain", "left"),
    ):
        ax.axvline(results[key], color=INK, linestyle="--", linewidth=1.2)
        where = {"transform": ax.get_xaxis_transform(), "ha": side, "va": "bottom"}
        ax.text(results[key], 1, f" {text} ", fontweight="bold", **where)
    ax.legend(loc="upper left")
    ax.set(
        xlabel="CLIP score: how well the object goes with its picture, by the tiny CLIP",
        ylabel="mentions in sampled captions\n(logarithmic)",
    )
    return ax.figure

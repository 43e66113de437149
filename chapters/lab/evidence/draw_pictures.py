"""What the models see and say: scenes with their captions, the strip of captions through an attack,
and the scores that a judge gives to what is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from ..world.scenes import Scene, draw
from .looks import INK, MID, PALE, WIDTH, look

INVENTED = "#c81e1e"  # and bold, and underlined: a grey print tells it, too
LINE = 0.15  # inches, of small text
Token = tuple[str, bool]  # text with its leading space, is it invented?


def canvas(height: float) -> Axes:
    """Empty axes that fill a figure; data coordinates are inches from the upper left, down."""
    figure = plt.figure(figsize=(WIDTH, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.set_axis_off()
    return ax


def _advance(ax: Axes, text: str, size: float, bold: bool) -> float:
    """How far a text moves the pen, in inches, its spaces counted; measured ten times as large,
    so that no screen's pixels round it.
    """
    renderer = ax.figure.canvas.get_renderer()
    font = FontProperties(size=10 * size, weight="bold" if bold else "normal")
    wide, bare = (
        renderer.get_text_width_height_descent(f"|{inner}|", font, ismath=False)[0]
        for inner in (text, "")
    )
    return (wide - bare) / ax.figure.dpi / 10


def write(
    ax: Axes, tokens: Sequence[Token], x: float, top: float, width: float, size: float = 8
) -> int:
    """Write tokens word by word from (x, top) on a `canvas`, broken at spaces to fit the width;
    what is invented is red, bold and underlined. Returns how many lines it took.
    """
    words: list[list[Token]] = []
    for text, invented in tokens:
        if text.startswith(" ") or not words:
            words.append([])
        words[-1].append((text, invented))
    line, pen = 0, 0.0
    for word in words:
        length = sum(_advance(ax, text, size, invented) for text, invented in word)
        if pen and pen + length > width:
            line, pen = line + 1, 0.0
        for text, invented in word:
            text = text if pen else text.lstrip()
            _ink(ax, text, x + pen, top + (line + 0.5) * LINE, size, invented)
            pen += _advance(ax, text, size, invented)
    return line + 1


def _ink(ax: Axes, text: str, x: float, y: float, size: float, invented: bool) -> None:
    """One token: its spaces move the pen, its letters are written."""
    letters = text.strip(" ")
    x += _advance(ax, text[: len(text) - len(text.lstrip(" "))], size, invented)
    how = {"color": INVENTED, "fontweight": "bold"} if invented else {"color": INK}
    ax.text(x, y, letters, fontsize=size, va="center_baseline", **how)
    if invented and letters:
        end = x + _advance(ax, letters, size, True)
        ax.plot([x, end], [y + 0.07] * 2, color=INVENTED, linewidth=0.9)


def picture(ax: Axes, scene: Mapping, x: float, top: float, side: float) -> None:
    """A scene's picture on a `canvas`. scene: {"place", "objects", "cells"}."""
    pixels = draw(Scene(scene["place"], tuple(scene["objects"]), tuple(scene["cells"])))
    limits = ax.axis()
    where = (x, x + side, top + side, top)
    ax.imshow(pixels, extent=where, interpolation="nearest", aspect="auto")
    ax.axis(limits)


def fig_scenes(results: Sequence[Mapping]) -> Figure:
    """Pictures with what a model says of them. results: [{"place", "objects", "cells", "says":
    [[word, is_hallucinated], ...]}].
    """
    side, wide = 1.35, WIDTH / len(results)
    ax = canvas(side + 0.1 + 3 * LINE)
    for i, shown in enumerate(results):
        picture(ax, shown, i * wide, 0, side)
        tokens: list[Token] = [(f"{shown['place']}:", False)]
        for j, (word, wrong) in enumerate(shown["says"]):
            tokens += [(" ", False), (word, wrong)]
            tokens += [(",", False)] if j < len(shown["says"]) - 1 else []
        write(ax, tokens, i * wide, side + 0.06, wide - 0.15, 9)
    return ax.figure


def fig_strip(results: Mapping, at: Sequence[int] = (0, 128, 640), nth: int = 0) -> Figure:
    """Four scenes, one of each place (the nth), and what base, EFUF and SARE say of them right
    after erasure and after relearning samples; at the right CHAIR_s of all held-out scenes.

    results: {"at": sample counts, "scenes": [{"place", "objects", "cells"}], "chair_s": {"base":
    [share], "EFUF": [share at each count], "SARE"}, "says": {"base": [[tokens of each scene]],
    "EFUF": [the same, at each count], "SARE"}}; a token is [text, probability, "plain", "true" or
    "invented"]. Raises ValueError naming a count that was not measured.
    """
    columns, rows = _nth_of_each(results["scenes"], nth), _strip_rows(results, at)
    side, first, last = 0.95, 1.62, 0.62
    wide = (WIDTH - first - last) / len(columns)
    ax = canvas(side + 0.2 + len(rows) * (3 * LINE + 0.1))
    for i, scene in enumerate(columns):
        picture(ax, results["scenes"][scene], first + i * wide, 0, side)
    how = {"fontsize": 8, "color": MID}
    ax.text(WIDTH, side, "CHAIR_s of\nall scenes", ha="right", va="bottom", **how)
    top = side + 0.1
    for when, name, index in rows:
        if when:
            ax.plot([0, WIDTH], [top - 0.03] * 2, color=PALE, linewidth=0.7)
            ax.text(0, top + LINE / 2, when, va="center_baseline", linespacing=1.4, **how)
        colour = look(name)[0]
        where = {"va": "center_baseline", "fontweight": "bold", "fontsize": 9, "color": colour}
        ax.text(first - 0.6, top + LINE / 2, name, **where)
        share = f"{100 * results['chair_s'][name][index]:.0f} %"
        ax.text(WIDTH, top + LINE / 2, share, ha="right", **where)
        lines = [
            write(
                ax,
                [
                    (text, kind == "invented")
                    for text, _, kind in results["says"][name][index][scene]
                ],
                first + i * wide,
                top,
                wide - 0.1,
            )
            for i, scene in enumerate(columns)
        ]
        top += max(lines) * LINE + 0.1
    ax.set_ylim(top, 0)
    ax.figure.set_figheight(top)
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
    rows = [("before erasure", "base", 0)]
    for n in at:
        when = f"after {n}\nrelearning samples" if n else "right after\nerasure"
        index = list(results["at"]).index(n)
        rows += [(when, "EFUF", index), ("", "SARE", index)]
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
        xlabel="S(o): the tiny CLIP's score of the object with its picture",
        ylabel="mentions in sampled captions\n(logarithmic)",
    )
    return ax.figure

"""Pictures of weight space: one weight, two weights and a step on them, a plane through many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .. import files
from .looks import INK, MID, PALE, STYLE, WIDTH, dashes

SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#8b909a"])  # ink stays legible
DEPTH = LinearSegmentedColormap.from_list("depth", ["#3b4350", "#ffffff"])
FRAMES, MILLISECONDS = 20, 90  # of the film, after its first still


def fig_two_minima(results: Mapping, ax: Axes | None = None) -> Figure:
    """A loss over one weight, with a sharp and a flat minimum. results: {"x", "loss", "worst": the
    worst loss within rho, "rho"}. What is left of the deepest minimum in the worst case is said
    above it: the dip may be too small to be seen.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 3.2))
    ax.plot(results["x"], results["loss"], color=INK)
    ax.plot(results["x"], results["worst"], color=MID, dashes=(4, 2))
    ax.text(0.1, 0.5, "loss", color=INK, fontweight="bold", ha="right")
    words = f"worst loss\nwithin ±{results['rho']:g}"
    ax.text(1.6, 0.42, words, color=MID, fontweight="bold", ha="left")
    for name, values, colour, marker in (
        ("lowest loss", results["loss"], INK, "o"),
        ("lowest\nworst case", results["worst"], MID, "D"),
    ):
        i = int(np.argmin(values))
        ax.plot(results["x"][i], values[i], marker, color=colour, ms=9)
        offset = (12, -3) if marker == "o" else (0, 44)
        how = {"ha": "left" if marker == "o" else "center", "color": colour}
        where = ((results["x"][i], values[i]), offset)
        ax.annotate(name, *where, textcoords="offset points", **how)
    deepest = int(np.argmin(results["loss"]))
    left = results["worst"][deepest]
    words, above = f"here the worst case is {left:.2f}", max(results["worst"]) + 0.1
    arrow = {"arrowstyle": "->", "color": MID}
    at = {"xytext": (results["x"][deepest], above), "ha": "center", "color": MID}
    ax.annotate(words, (results["x"][deepest], left), arrowprops=arrow, **at)
    ylim = (min(results["loss"]) - 0.1, above + 0.12)
    ax.set(xlabel="weight", ylabel="loss, lower is better", ylim=ylim)
    return ax.figure


def fig_plane(results: Mapping, axes: Sequence[Axes] | None = None) -> Figure:
    """Forget NLL in a plane of weight space, with the way to the attacker's end if it is known.
    results: {label: {"x", "y": distances, "values": 2-D, "names": [x axis, y axis], "end": [x, y]
    of where the attacker arrives}}.
    """
    n = len(results)
    if axes is None:
        size = {"figsize": (WIDTH, 3.6 if n > 1 else 4.4), "squeeze": False}
        axes = plt.subplots(1, n, gridspec_kw={"wspace": 0.28}, **size)[1][0]
    top = max(np.max(plane["values"]) for plane in results.values())
    ticks = MaxNLocator(10, steps=[1, 2, 5, 10]).tick_values(0, top)
    for ax, (label, plane) in zip(axes, results.items(), strict=True):
        values = np.asarray(plane["values"])
        filled = ax.contourf(plane["x"], plane["y"], values, levels=ticks, cmap=DEPTH)
        ax.contour(plane["x"], plane["y"], values, levels=ticks, colors=PALE, linewidths=0.6)
        ax.plot(0, 0, "s", color=STYLE["EFUF"][0], ms=8, mec="white", zorder=5)
        if "end" in plane:
            _way(ax, plane["end"])
        ax.set(xlabel=f"{plane['names'][0]}, L2", ylabel=f"{plane['names'][1]}, L2", title=label)
        ax.set(xlim=(plane["x"][0], plane["x"][-1]), ylim=(plane["y"][0], plane["y"][-1]))
        ax.grid(False)
    bar = axes[0].figure.colorbar(filled, ax=list(axes), pad=0.03, aspect=25)
    bar.set_label("NLL of hallucinated words, nats a token\n(dark: they are back)")
    bar.set_ticks(ticks)
    return axes[0].figure


def _way(ax: Axes, end: Sequence[float]) -> None:
    """The straight line from the erased weights to where the attacker arrives."""
    ax.plot([0, end[0]], [0, end[1]], color="white", linewidth=4, zorder=3)
    ax.plot([0, end[0]], [0, end[1]], color=INK, dashes=STYLE["attack"][2], zorder=4)
    ax.plot(*end, STYLE["attack"][1], color=INK, ms=9, mec="white", zorder=5)
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    where = ((end[0], end[1]), (0, 10))
    how = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 8.5}
    ax.annotate("attacker", *where, bbox=box, zorder=6, **how)


# One step of Targeted-SAM on two weights


def fig_geometry(results: Mapping) -> Figure:
    """One Targeted-SAM step on two weights, in three frames: home, the relapse, home again.
    results: {"x", "y", "neg": 2-D list, "theta", "eps", "gradients": {"plain step": [dx, dy],
    "Targeted-SAM step": [dx, dy]}}, the gradients at the lengths they are drawn with.
    """
    titles = (
        "1. The plain gradient, at home",
        "2. The gradient at the relapse",
        "3. That gradient, carried home",
    )
    size = {"figsize": (WIDTH, 3.25), "sharey": True, "gridspec_kw": {"wspace": 0.08}}
    figure, axes = plt.subplots(1, 3, **size)
    for ax, title, moment in zip(axes, titles, (1, 3, 4), strict=True):
        filled = _ground(ax, results)
        step(ax, results, moment)
        ax.set(title=title, xlabel="weight 1", aspect="equal")
    axes[0].set_ylabel("weight 2")
    bar = figure.colorbar(filled, ax=list(axes), pad=0.02, aspect=22)
    bar.set_label("L_neg (dark: the hallucination is likely)")
    return figure


def _ground(ax: Axes, results: Mapping):
    """The loss as shades with lines of equal loss."""
    grid = (results["x"], results["y"], np.asarray(results["neg"]))
    filled = ax.contourf(*grid, levels=12, cmap=SHADES)
    ax.contour(*grid, levels=12, colors=PALE, linewidths=0.4, linestyles="solid")
    ax.grid(False)
    return filled


def step(ax: Axes, results: Mapping, moment: float) -> None:
    """The step at a moment: up to 1 the plain gradient grows; up to 2 the weights move to theta +
    eps*; up to 3 the gradient there grows; up to 4 it is carried home. What is done stays.
    """
    theta, eps = np.asarray(results["theta"]), np.asarray(results["eps"])
    plain, there = (
        -np.asarray(results["gradients"][n]) for n in ("plain step", "Targeted-SAM step")
    )
    part = [min(1.0, max(0.0, moment - i)) for i in range(4)]
    orange, blue = STYLE["EFUF"][0], STYLE["SARE"][0]
    ax.plot(*theta, "o", color=INK, ms=7, zorder=5)
    _say(ax, theta, "theta", INK, (-8, 4), ha="right")
    _arrow(ax, theta, part[0] * plain, orange, dashes(STYLE["EFUF"][2]))
    if part[0] == 1:
        _say(ax, theta + plain, "EFUF", orange, (-4, 5), ha="right")
    if part[1]:
        _arrow(ax, theta, part[1] * eps, INK)
    if part[1] == 1:
        ax.plot(*(theta + eps), "o", color="white", mec=INK, ms=7, zorder=5)
        _say(ax, theta + eps, "theta + eps*", INK, (-4, 7), ha="right")
    if part[3]:  # where it was found
        _arrow(ax, theta + eps, there, "#7fb0d8")
    if part[2]:
        start = theta + (1 - part[3]) * eps
        _arrow(ax, start, part[2] * there, blue)
    if part[3] == 1:
        _say(ax, theta + there, "SARE", blue, (-4, -3), ha="right", va="top")


def _arrow(ax: Axes, start: np.ndarray, way: np.ndarray, colour: str, dash=(None, None)) -> None:
    """A straight arrow along `way`."""
    if np.linalg.norm(way) < 0.02:
        return
    style = {"color": colour, "linewidth": 2.2, "shrinkA": 0, "shrinkB": 0}
    line = "-" if dash[0] is None else (0, tuple(d / 1.5 for d in dash))
    ax.annotate("", start + way, start, arrowprops={"arrowstyle": "-|>", "linestyle": line} | style)


def _say(ax: Axes, at: np.ndarray, text: str, colour: str, offset, **how) -> None:
    """Words beside a point."""
    how = {
        "textcoords": "offset points",
        "color": colour,
        "fontsize": 9,
        "fontweight": "bold",
    } | how
    ax.annotate(text, tuple(at), offset, **how)


def move_geometry(results: Mapping, path: Path) -> None:
    """Write fig_geometry's step as a looping GIF: first the finished step, as a still, then how it
    comes about. Equal results are equal bytes.
    """
    said = (
        "home: the plain gradient of L_neg",
        "one step of relearning, to theta + eps*",
        "the gradient found there ...",
        "... is the one that is taken at home: SARE's",
    )
    moments = [4.0, *np.linspace(0.05, 4, FRAMES), 4.0]
    figure, ax = plt.subplots(figsize=(5, 4.3), dpi=110)
    pictures = []
    for moment in moments:
        ax.clear()
        _ground(ax, results)
        step(ax, results, moment)
        ax.set(xlabel="weight 1", ylabel="weight 2", aspect="equal")
        ax.set_title(said[min(3, int(np.ceil(moment)) - 1)], fontweight="bold")
        figure.canvas.draw()
        pictures.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"))
    plt.close(figure)
    palette = _palette(pictures[0])
    first, *others = (p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures)
    pauses = [700, *[MILLISECONDS] * FRAMES, 500]
    how = {"save_all": True, "append_images": others, "duration": pauses, "loop": 0}
    with files.whole(path) as part:
        first.save(part, "GIF", optimize=False, **how)


def _palette(picture: Image.Image, n: int = 255) -> Image.Image:
    """A GIF's palette: half of it by frequency, for shades, half by spread: the arrows are few
    pixels, and would come out grey.
    """
    found: list[int] = []
    for method in (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE):
        found += picture.quantize(n // 2, method=method).getpalette()[: 3 * (n // 2)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(found)
    return palette

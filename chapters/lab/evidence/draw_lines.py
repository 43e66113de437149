"""Lines over something: distances from a point, erasure steps, relearning samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .looks import INK, METRICS, MID, WIDTH, clip, curves, end_labels, look, percent_axis

NO_BOUNDS = (-np.inf, np.inf)


def fig_slices(
    results: Mapping,
    key: str = "nll_forget",
    ax: Axes | None = None,
    xlabel: str = "L2 distance from the erased weights",
    log: bool = False,
) -> Figure:
    """A metric over distances (or another x, on a logarithmic axis if `log`). results:
    {"distances", "lines": {label: {"method", "curves": [one per seed]}}}. With the key "nll_lost"
    the curves are NLL, and what is drawn is how far they have fallen from their first point.
    """
    if ax is None:
        _, ax = plt.subplots()
    ends = _slices(ax, results, key, xlabel, log)
    end_labels(ax, results["distances"][-1], ends)
    return ax.figure


def _slices(
    ax: Axes, results: Mapping, key: str, xlabel: str, log: bool = False
) -> list[tuple[float, str, str]]:
    """The lines without their names; returns what end_labels takes."""
    label, factor, bounds = METRICS[key]
    ax.set(xlabel=xlabel, ylabel=label, xscale="log" if log else "linear")
    lines = {}
    for name, line in results["lines"].items():
        row = factor * np.asarray(line["curves"], float)
        lines[name] = (line["method"], row[:, :1] - row if key == "nll_lost" else row)
    if log:
        ax.xaxis.set_major_formatter("{x:g}")
    return curves(ax, results["distances"], lines, bounds, named=False)


def fig_slices_panels(
    results: Mapping[str, Mapping],
    keys: Mapping[str, str] | None = None,
    xlabel: str = "L2 distance from the erased weights",
) -> Figure:
    """One panel a title. results: {title: what fig_slices takes}; keys: {title: a key of METRICS},
    "nll_forget" where none is given.
    """
    n, names = len(results), [name for drawn in results.values() for name in drawn["lines"]]
    size = {"figsize": (WIDTH, 3.4), "sharey": True, "gridspec_kw": _room(names)}
    figure, axes = plt.subplots(1, n, squeeze=False, **size)
    ends = []
    for ax, (title, drawn) in zip(axes[0], results.items(), strict=True):
        ends.append(_slices(ax, drawn, (keys or {}).get(title, "nll_forget"), xlabel))
        ax.set_title(title)
        ax.tick_params(labelleft=True)
    for ax, drawn, found in zip(axes[0], results.values(), ends, strict=True):
        end_labels(ax, drawn["distances"][-1], found)  # last: each panel moves the shared limits
    return figure


def fig_training(results: Mapping, ax: Axes | None = None) -> Figure:
    """The forget loss while a model is erased. results: {"level": the NLL at which a run stops,
    "lines": {method: [a curve a seed, from the first step to its own last one]}}. Seeds run to
    their ends; mean and band end with the shortest run.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 3.2))
    label = "NLL of sub-sentences to forget,\nnats a token, higher: forgotten"
    ax.set(xlabel="erasure step", ylabel=label)
    ax.axhline(results["level"], color=INK, linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
    ax.text(1, results["level"], f"forget level {results['level']:g}", va="bottom")
    for method, row in results["lines"].items():
        n, colour = min(map(len, row)), look(method)[0]
        for curve in row:  # beyond the shortest
            rest = range(n, len(curve) + 1)
            ax.plot(rest, curve[n - 1 :], color=colour, alpha=0.25, linewidth=0.7)
            ax.plot(len(curve), curve[-1], "o", color=colour, ms=3, alpha=0.6)
        short = {method: (method, [curve[:n] for curve in row])}
        curves(ax, range(1, n + 1), short, (0, np.inf), named=len(results["lines"]) > 1)
    ax.set_ylim(0, None)
    return ax.figure


def _room(names: Iterable[str]) -> dict[str, float]:
    """Space between panels for the names at their lines' ends."""
    return {"wspace": 0.34 + 0.024 * max(map(len, names))}


def fig_relapse(
    results: Mapping,
    keys: Sequence[str] = ("chair_s", "nll_forget"),
    axes: Sequence[Axes] | None = None,
    xlabel: str = "relearning samples",
) -> Figure:
    """Metrics against an attack's strength. results: {"at": [...], "lines": {label: {"method",
    metric: [a curve per seed]}}}. A line at 50 % marks where a relapse is counted.
    """
    if axes is None:
        room = _room(results["lines"])
        how = {"figsize": (WIDTH, 3.3), "squeeze": False, "gridspec_kw": room}
        _, grid = plt.subplots(1, len(keys), **how)
        axes = grid[0]
    for ax, key in zip(axes, keys, strict=True):
        label, factor, bounds = METRICS[key]
        ax.set(xlabel=xlabel, ylabel=label)
        if bounds[1] == 100:
            percent_axis(ax, half=key == "chair_s")
        lines = {
            name: (line["method"], factor * np.asarray(line[key]))
            for name, line in results["lines"].items()
        }
        curves(ax, results["at"], lines, bounds)
    return axes[0].figure


def fig_relearning(results: Mapping, xlabel: str = "relearning samples") -> Figure:
    """The relapse, and beside it the differences paired by seed, each endpoint in its own unit.

    results: what fig_relapse takes, with "pairs": {label: what stats.paired returns, and "better":
    text of the direction that favours the first of the pair}, "pair": their names.
    """
    figure = plt.figure(figsize=(WIDTH, 3.5))
    grid = figure.add_gridspec(1, 3, width_ratios=(1.15, 1, 0.95), wspace=0.62)
    fig_relapse(results, axes=[figure.add_subplot(grid[0, i]) for i in (0, 1)], xlabel=xlabel)
    rows = results["pairs"]
    inner = grid[0, 2].subgridspec(len(rows), 1, hspace=1.6)
    for i, (label, row) in enumerate(rows.items()):
        ax = figure.add_subplot(inner[i, 0])
        paired_row(ax, 0, row)
        ax.set(yticks=[], ylim=(0.5, -0.5))
        ax.grid(visible=False)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(f"{label}, {row['better']}", fontsize=8)
        ax.tick_params(labelsize=8, pad=1)
        if i == 0:
            ax.set_title(" − ".join(results["pair"]) + " (dot: a seed)", fontsize=9)
    return figure


def paired_row(ax: Axes, place: float, row: Mapping) -> None:
    """A row of differences against zero: dots, and their mean with its 95 % interval. row: what
    stats.paired returns.
    """
    n = len(row["differences"])
    ax.axvline(0, color=INK, linewidth=1)
    beside = np.full(n, place) + np.linspace(-0.18, 0.18, n)
    ax.plot(row["differences"], beside, "o", color=MID, ms=3.5, alpha=0.5, mew=0)
    if n > 2 and np.isfinite(row["ci95"]).all():
        ax.plot(clip(row["ci95"], NO_BOUNDS), [place] * 2, color=INK, linewidth=4, alpha=0.35)
    ax.plot(row["diff"], place, "D", color=INK, ms=6)

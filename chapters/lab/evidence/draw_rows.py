"""A row a name: dots of seeds, their mean and its 95 % interval, with what stands beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .draw_lines import paired_row
from .looks import ENOUGH, INK, METRICS, MID, PALE, STYLE, WIDTH, called, clip, look
from .stats import area, interval

EXPLAINED = "dot: a seed; large mark: mean; bar: 95 % interval"


def dots(
    ax: Axes,
    row: float,
    values: Sequence[float],
    bounds: Sequence[float],
    colour: str = INK,
    marker: str = "D",
) -> float:
    """A row of dots and their mean, which it returns; its 95 % interval from three values on."""
    mean, low, high = interval(values)
    n = len(values)
    beside = np.full(n, row) + np.linspace(-0.18, 0.18, n)
    ax.plot(values, beside, "o", color=MID, alpha=0.5, ms=3.5, mew=0)
    if n > 2:
        ax.plot(clip([low, high], bounds), [row, row], color=colour, linewidth=4, alpha=0.4)
    ax.plot(mean, row, marker, color=colour, ms=7)
    return mean


def _row_axis(ax: Axes, names: Sequence[str], xlabel: str, bounds: Sequence[float]) -> None:
    """A row a name, the first on top; the metric's own bounds, if it has any, with a margin."""
    ax.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.5, -0.5),
        xlabel=f"{xlabel}\n({EXPLAINED})",
    )
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    if np.isfinite(bounds).all():
        margin = 0.02 * (bounds[1] - bounds[0])
        ax.set_xlim(bounds[0] - margin, bounds[1] + margin)


def fig_dots(
    results: Mapping[str, Sequence[float]],
    xlabel: str,
    labels: Mapping[str, str] | None = None,
    factor: float = 1,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    ax: Axes | None = None,
) -> Figure:
    """One row of values each: a dot a seed, mean and 95 % interval. results: {key: [a value per
    seed]}; labels: {key: text}.
    """
    labels = labels or {name: name for name in results}
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 0.36 * len(labels) + 0.7))
    for row, name in enumerate(labels):
        mean = dots(ax, row, factor * np.asarray(results[name]), bounds)
        beside(ax, row, 40, 0, f"{mean:.3g}", fontweight="bold")
    _row_axis(ax, list(labels.values()), xlabel, bounds)
    return ax.figure


def fig_groups(
    results: Mapping[str, Mapping], keys: Sequence[str] = ("chair_s", "recall")
) -> Figure:
    """Rows in groups, a panel a metric. results: {group: {name: {metric: [a share a seed]}}}."""
    rows = [(group, name) for group, names in results.items() for name in names]
    size = {"figsize": (WIDTH, 0.34 * len(rows) + 0.8), "sharey": True}
    figure, axes = plt.subplots(1, len(keys), squeeze=False, gridspec_kw={"wspace": 0.2}, **size)
    for ax, key in zip(axes[0], keys, strict=True):
        label, factor, bounds = METRICS[key]
        for row, (group, name) in enumerate(rows):
            colour, marker, _ = STYLE.get(name, (INK, "D", ()))
            values = factor * np.asarray(results[group][name][key])
            mean = dots(ax, row, values, bounds, colour, marker)
            beside(ax, row, 34, 0, f"{mean:.3g}", fontweight="bold")
        _row_axis(ax, [f"{group}: {name}" for group, name in rows], label, bounds)
        ax.set_xlabel(label)  # what dots and bars are stands in the caption: two would collide
        for row in np.cumsum([len(names) for names in results.values()])[:-1]:
            ax.axhline(row - 0.5, color=PALE, linewidth=0.8)
    return figure


def fig_paired(results: Mapping[str, Mapping], xlabel: str, ax: Axes | None = None) -> Figure:
    """Paired differences, one row each. results: {label: {"differences": [one per seed], "diff",
    "ci95": [low, high]}}.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 0.42 * len(results) + 0.7))
    for row, line in enumerate(results.values()):
        paired_row(ax, row, line)
        beside(ax, row, 44, 0, f"{line['diff']:+.2f}", fontweight="bold")
    _row_axis(ax, list(results), xlabel, (-np.inf, np.inf))
    return ax.figure


def fig_ranks(
    results: Mapping[str, Mapping],
    labels: Mapping[str, str] | None = None,
    no_sharpness: Sequence[str] = (),
    ax: Axes | None = None,
) -> Figure:
    """Rank correlations of gauges with an outcome, a row a gauge, the most negative on top; hollow
    are those that are no sharpness. results: {gauge: {"within": [one a seed], "mean", "ci95": [low,
    high]}}; labels: {gauge: text}.
    """
    names = sorted(results, key=lambda name: results[name]["mean"])
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 0.29 * len(names) + 0.8))
    ax.axvline(0, color=INK, linewidth=1)
    for row, name in enumerate(names):
        found = results[name]
        ax.plot(found["within"], [row] * len(found["within"]), "o", color=MID, alpha=0.4, ms=3.5)
        if np.isfinite(found["ci95"]).all():
            ends = clip(found["ci95"], (-1, 1))
            ax.plot(ends, [row, row], color=INK, linewidth=4, alpha=0.35)
        fill = "white" if name in no_sharpness else INK
        ax.plot(found["mean"], row, "D", color=INK, markerfacecolor=fill, ms=6.5)
        beside(ax, row, 40, 0, f"{found['mean']:+.2f}", fontweight="bold")
    shown = [(labels or {}).get(name, name) for name in names]
    words = (
        "rank correlation with the NLL half-life, within a seed; negative: sharper, earlier back"
    )
    _row_axis(ax, shown, words, (-1, 1))
    ax.set_xlabel(f"{words}\n({EXPLAINED}; hollow: no sharpness)")
    return ax.figure


def fig_arms(results: Mapping, ax: Axes | None = None) -> Figure:
    """Compare arms (methods): a row each, a dot a seed, mean and 95 % interval, and beside it what
    the arm costs. An arm with a note, or with recall under 95 %, is grey.

    results: {"endpoint": axis label, "bounds": [low, high] or None, "arms": {name: {"values": [one
    a seed], "level": [nats, one a run], "recall": [shares], "passes": [forward passes], "note":
    text}}}; only "values" must be there.
    """
    arms, bounds = results["arms"], results["bounds"] or (-np.inf, np.inf)
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 0.4 * len(arms) + 0.7))
    notes = {name: _note(arm) for name, arm in arms.items()}
    for row, (name, arm) in enumerate(arms.items()):
        note = notes[name]
        colour, marker, _ = (PALE, "D", ()) if note else STYLE.get(name, (INK, "D", ()))
        dots(ax, row, arm["values"], bounds, colour, marker)
        ink = {"color": MID if note else INK, "right": False}
        beside(ax, row, -8, 5 if note else 0, called(name), **ink)
        beside(ax, row, -8, -2, note, va="top", fontsize=7.5, **ink)
    place = 0
    for header, width, cells in _arm_columns(arms):
        place += width
        where = ((1, 1), (place, 4), "axes fraction", "offset points")
        ax.annotate(header, *where, ha="right", fontsize=8.5, color=MID)
        for row, (note, cell) in enumerate(zip(notes.values(), cells, strict=True)):
            bold = "bold" if header == "mean" and not note else "normal"
            ink = MID if note else INK
            beside(ax, row, place, 0, cell, color=ink, fontsize=9, fontweight=bold)
    # The names stand beside their notes
    _row_axis(ax, [""] * len(arms), results["endpoint"], bounds)
    return ax.figure


def _note(arm: Mapping) -> str:
    """Why an arm is not compared, "" if it is."""
    silent = np.mean(arm.get("recall") or [1]) < ENOUGH
    return arm.get("note") or ("does not name what is shown" if silent else "")


def fig_attacks(
    results: Mapping[str, Mapping], keys: Mapping[str, str], units: Mapping[str, str]
) -> Figure:
    """A row an attack: mean CHAIR_s over its strengths (area under the curve), a mark and a 95 %
    interval for each of two arms; beside it their paired difference and recall at the strongest.

    results: {attack: what fig_relapse takes}; keys: {attack: metric}; units: {attack: a template
    of its first and last strength}.
    """
    _, ax = plt.subplots(figsize=(WIDTH, 0.46 * len(results) + 0.9))
    for row, (name, drawn) in enumerate(results.items()):
        means = {
            label: [100 * area(drawn["at"], curve) for curve in line[keys[name]]]
            for label, line in drawn["lines"].items()
        }
        for label, aside in zip(means, (-0.17, 0.17), strict=True):
            _mean_of_arm(ax, row + aside, label, means[label], named=row == 0)
        at = [strength for strength in drawn["at"] if strength]  # 0 leaves the model as it is
        ends = {"first": at[0], "last": at[-1]}
        strengths = units.get(name, "{first:g} to {last:g} samples").format(**ends)
        beside(ax, row, -8, 5, name, right=False)
        beside(ax, row, -8, -6, strengths, right=False, fontsize=8, color=MID)
        base, other = means.values()
        change, low, high = interval(np.subtract(other, base))
        spelt = f"{change:+.1f}" + (f" [{low:.1f}, {high:.1f}]" if len(base) > 2 else "")
        beside(ax, row, 112, 0, spelt, fontsize=9)
        left = (f"{100 * np.mean(line['recall'], 0)[-1]:.0f}" for line in drawn["lines"].values())
        beside(ax, row, 190, 0, " and ".join(left), fontsize=9)
    base, other = means
    for place, words in ((112, f"{other} − {base}, points"), (190, "recall at the\nstrongest, %")):
        where = ((1, 1), (place, 4), "axes fraction", "offset points")
        ax.annotate(words, *where, ha="right", fontsize=8.5, color=MID)
    _row_axis(ax, [""] * len(results), "", (-np.inf, np.inf))
    ax.set_xlim(left=-1)
    words = "mean CHAIR_s over the attack's strengths, %, lower is better"
    ax.set_xlabel(f"{words}\n(mark: mean; bar: 95 % interval)")
    ax.legend(fontsize=9, loc="lower right")
    return ax.figure


def _mean_of_arm(ax: Axes, row: float, name: str, values: Sequence[float], named: bool) -> None:
    """A mark and, from three values on, its interval."""
    colour, marker, _ = look(name)
    mean, low, high = interval(values)
    if len(values) > 2:
        ax.plot(clip([low, high], (0, 100)), [row, row], color=colour, linewidth=4, alpha=0.4)
    ax.plot(mean, row, marker, color=colour, ms=6, label=name if named else None)


def beside(
    ax: Axes, row: float, right_by: float, up_by: float, text: str, right: bool = True, **how
) -> None:
    """Text beside a row, ending so many points right of the axes' right or left edge."""
    where = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
    how = {"ha": "right", "va": "center"} | where | how
    ax.annotate(text, (1 if right else 0, row), (right_by, up_by), annotation_clip=False, **how)


def _arm_columns(arms: Mapping[str, Mapping]) -> list[tuple[str, float, list[str]]]:
    """(header, width in points, a text an arm) of each column that some arm has a value for.

    The arms' common level is the median over all runs, if at least half of the arms stand there.
    An arm that is further off than 0.05 nats says so in brackets.
    """
    of_arms = [arm["level"] for arm in arms.values() if arm.get("level")]
    common = np.median(np.concatenate(of_arms)) if of_arms else 0
    n_there = sum(abs(np.mean(row) - common) < 0.05 for row in of_arms)

    has_common = 2 * n_there >= len(of_arms)

    def level(values: Sequence[float]) -> str:
        off = max(abs(value - common) for value in values)
        return f"{np.mean(values):.2f}" + (f" (off {off:.2f})" if off > 0.05 and has_common else "")

    columns = {
        "values": ("mean", 42, lambda values: f"{np.mean(values):.3g}"),
        "level": ("level, nats", 92, level),
        "recall": ("recall, %", 58, lambda values: f"{100 * np.mean(values):.1f}"),
        "passes": ("passes", 50, lambda values: f"{np.mean(values):,.0f}"),
    }
    return [
        (header, width, [spell(arm[key]) if arm.get(key) else "" for arm in arms.values()])
        for key, (header, width, spell) in columns.items()
        if any(arm.get(key) for arm in arms.values())
    ]


PARTS = {  # of the variance of a paired difference -> (label, colour, hatch, colour of its text)
    "seed": ("base seed", INK, "", "white"),
    "erasure": ("order of erasure", "#6b7280", "", "white"),
    "attack": ("order of attack", "#c5cad3", "", INK),
    "kernels": ("kernel path", "white", "////", INK),
}


def fig_variance(results: Mapping, axes: Sequence[Axes] | None = None) -> Figure:
    """Where the variance of a paired difference comes from, and what a narrow interval costs.

    results: {"components": {endpoint: {"seed": variance, "erasure", "attack", "kernels"}}, "cost":
    {label: {"seconds": [core-seconds], "half_width": [of the 95 % interval, in units of the mean
    difference]}}}. A variance that was estimated below zero is drawn as zero.
    """
    if axes is None:
        height = max(3.0, 0.5 * len(results["components"]) + 1.2)
        size = {"figsize": (WIDTH, height), "gridspec_kw": {"wspace": 0.42}}
        _, axes = plt.subplots(1, 2, **size)
    _stacked(axes[0], results["components"])
    ax = axes[1]
    ax.axhline(1, color=INK, linewidth=1, linestyle=":")
    lines = zip(cycle((INK, PALE, MID)), cycle("osD^v<>Ph"), cycle(("-", "--", "-.", ":")))
    for (label, line), (colour, marker, dash) in zip(results["cost"].items(), lines):
        how = {"color": colour, "marker": marker, "linestyle": dash, "ms": 5, "linewidth": 1.5}
        ax.plot(line["seconds"], line["half_width"], label=label, **how)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="core-seconds, fewer is better",
        ylabel="half-width of the 95 % interval,\nin mean differences, lower is better",
    )
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    ax.legend(fontsize=8, loc="lower left", bbox_to_anchor=(-0.1, 1))
    return ax.figure


def _stacked(ax: Axes, components: Mapping[str, Mapping[str, float]]) -> None:
    """Stacked bars of shares in %, a row an endpoint; a share of 8 % and more is written."""
    for row, parts in enumerate(components.values()):
        sizes = {key: max(0.0, parts[key]) for key in PARTS}
        total, left = sum(sizes.values()) or 1, 0.0
        for key, (label, colour, hatch, ink) in PARTS.items():
            share = 100 * sizes[key] / total
            bar = {"color": colour, "hatch": hatch, "edgecolor": MID, "linewidth": 0.5}
            ax.barh(row, share, left=left, height=0.6, label=None if row else label, **bar)
            if share >= 8:
                how = {"fontsize": 8.5, "color": ink, "ha": "center", "va": "center"}
                box = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"}
                ax.annotate(f"{share:.0f}", (left + share / 2, row), bbox=box, **how)
            left += share
    ax.set(
        yticks=range(len(components)),
        yticklabels=[textwrap.fill(name, 26) for name in components],
        ylim=(len(components) - 0.5, -0.5),
        xlim=(0, 100),
        xlabel="share of the variance of a paired difference, %",
    )
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    tight = {"columnspacing": 1, "handlelength": 1.2, "handletextpad": 0.5}
    ax.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(-0.03, 1), **tight)

"""What attacks do: learning rates, time until relapse, the front of settings, what robustness costs
in work, and what it goes along with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scipy.stats import CensoredData, ecdf

from .looks import (
    ENOUGH,
    INK,
    PALE,
    STYLE,
    WIDTH,
    called,
    clip,
    dashes,
    end_labels,
    look,
    looks,
    percent_axis,
)
from .stats import band, interval


def fig_survival(results: Mapping, ax: Axes | None = None) -> Figure:
    """Kaplan-Meier curves of relapse: the share of runs whose CHAIR_s has not passed 50 % yet, and
    below it how many are left. Ticks are runs that never relapsed within their attack (censored).

    results: {"end": last sample count, "arms": {name: {"samples": [one a run], "censored": [bool a
    run], "n_seeds": int}}}. There is no band: runs of one seed are not independent.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 3.2))
    end, labels = results["end"], []
    ax.set(ylabel="attacks that have not brought\nthem back, %, higher is better", xlim=(0, end))
    ax.set_xticks([x for x in range(0, int(end) + 1, 128)])
    percent_axis(ax)
    for row, (name, arm) in enumerate(results["arms"].items()):
        colour, _, dash = look(name)
        samples, censored = np.asarray(arm["samples"], float), np.asarray(arm["censored"], bool)
        kept = ecdf(CensoredData.right_censored(samples, censored)).sf
        share = 100 * kept.probabilities
        how = {"drawstyle": "steps-post", "color": colour, "dashes": dashes(dash)}
        ax.plot([0, *kept.quantiles, end], [100, *share, share[-1]], **how)
        ticks = samples[censored]
        ax.plot(ticks, 100 * kept.evaluate(ticks), "|", color=colour, ms=10, mew=1.5, clip_on=False)
        n, kept_n = len(samples), censored.sum()
        words = f"{kept_n} of {n}\nnever relapse" if kept_n else f"all {n}\nrelapse"
        labels.append((share[-1], f"{name}: {words}", colour))
        _at_risk(ax, row, name, colour, samples)
    half = {"color": INK, "linewidth": 0.9, "linestyle": (0, (5, 4)), "zorder": 1}
    ax.axhline(50, **half)
    end_labels(ax, end, labels, 9)
    words = "under the axis: attacks still without a relapse"
    if any(any(arm["censored"]) for arm in results["arms"].values()):
        words += "; tick: one that ends without"
    ax.set_xlabel(f"relearning samples ({words})", labelpad=14 * len(results["arms"]) + 2)
    return ax.figure


def _at_risk(ax: Axes, row: int, name: str, colour: str, samples: np.ndarray) -> None:
    """How many runs have not relapsed at each tick, in a line below the axis."""
    how = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "color": colour}
    how |= {"annotation_clip": False}
    ax.annotate(name, (0, 0), (-26, -24 - 13 * row), "axes fraction", ha="right", **how)
    for x in ax.get_xticks():
        where = ((x, 0), (0, -24 - 13 * row), ax.get_xaxis_transform())
        ax.annotate(str(int((samples >= x).sum())), *where, ha="center", **how)


def fig_sweep(results: Mapping, ax: Axes | None = None) -> Figure:
    """Mean CHAIR_s over an attack against the attack's learning rate. An attack that ruins recall
    is not allowed: its point is hollow. The worst allowed rate of each arm is ringed.

    results: {"lr": [...], "recall_bound": share, "arms": {name: {"chair": [[%, one a rate] a seed],
    "recall": [[share at the attack's end, one a rate] a seed]}}}.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 3.4))
    x, ends = np.asarray(results["lr"], float), []
    bound = f"{100 * results['recall_bound']:g} %"
    ax.set(
        xscale="log",
        xlabel="learning rate of the attack, 1e-4\n(ring: the worst that is allowed;"
        f" hollow: not allowed, recall under {bound} at the end)",
        ylabel="mean CHAIR_s over the attack, %,\nlower is better",
    )
    percent_axis(ax)
    ax.set_xticks(x, [f"{1e4 * rate:g}" for rate in x], fontsize=8.5)
    ax.minorticks_off()
    for name, arm in results["arms"].items():
        colour, marker, dash = look(name)
        for curve in arm["chair"]:
            ax.plot(x, curve, color=colour, alpha=0.25, linewidth=0.7)
        mean, low, high = (np.asarray(line) for line in band(arm["chair"], (0, 100)))
        ax.plot(x, mean, color=colour, dashes=dashes(dash))
        if len(arm["chair"]) > 2:
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        allowed = np.mean(arm["recall"], axis=0) >= results["recall_bound"]
        ax.plot(x[allowed], mean[allowed], marker, color=colour, ms=6)
        ax.plot(x[~allowed], mean[~allowed], marker, color=colour, ms=6, mfc="white")
        if allowed.any():
            worst = np.flatnonzero(allowed)[mean[allowed].argmax()]
            ax.plot(x[worst], mean[worst], "o", color=colour, ms=14, mfc="none", mew=1.5)
        ends.append((mean[-1], name, colour))
    end_labels(ax, x[-1], ends)
    return ax.figure


FRONT = {  # what the front is measured in -> (axis label, bounds)
    "area": ("mean CHAIR_s over the\nattack, %, lower is better", (0, 100)),
    "half_life": ("NLL half-life, samples,\nhigher is better", (0, np.inf)),
    "passes": ("work of the erasure, forward\npasses, lower is better", (0, np.inf)),
}


def fig_front(results: Sequence[Mapping]) -> Figure:
    """Robustness and work against rho, a line a lambda_neg, with the book's own two settings in
    their colours. results: [{"lambda_neg", "rho", "area", "half_life", "passes": [a value a seed],
    "reached": [bool a run]}]; a point with runs that did not reach the forget level is hollow.
    """
    _, axes = plt.subplots(1, len(FRONT), figsize=(WIDTH, 3), gridspec_kw={"wspace": 0.85})
    lambdas = sorted({point["lambda_neg"] for point in results})
    for ax, (key, (label, bounds)) in zip(axes, FRONT.items(), strict=True):
        ax.set(xlabel="rho, the ascent step's length", ylabel=label)
        ends = []
        for i, x in enumerate(lambdas):
            points = sorted((p for p in results if p["lambda_neg"] == x), key=lambda p: p["rho"])
            ends.append(_front_line(ax, points, key, bounds, 0.003 * (i - (len(lambdas) - 1) / 2)))
        ax.set_ylim(0, 100 if key == "area" else None)
        end_labels(ax, max(p["rho"] for p in results), ends, 8.5)
    return axes[0].figure


def _front_line(
    ax: Axes, points: Sequence[Mapping], key: str, bounds: Sequence[float], aside: float
) -> tuple[float, str, str]:
    """One line with its intervals, set a little aside; returns its end's label."""
    colour, marker, dash = look(f"lambda_neg {points[0]['lambda_neg']:g}")
    at, means = [p["rho"] + aside for p in points], [interval(p[key]) for p in points]
    ax.plot(at, [mean for mean, _, _ in means], color=colour, linewidth=1.6, dashes=dashes(dash))
    for x, (mean, low, high), point in zip(at, means, points, strict=True):
        if len(point[key]) > 2:
            ax.plot([x, x], clip([low, high], bounds), color=colour, linewidth=1)
        book = {(0.1, 0.0): "EFUF", (0.1, 0.2): "SARE"}.get((point["lambda_neg"], point["rho"]))
        ink, mark = STYLE[book][:2] if book else (colour, marker)
        fill = ink if all(point["reached"]) else "white"
        ax.plot(x, mean, mark, color=ink, markerfacecolor=fill, ms=7 if book else 5, zorder=3)
        if book:
            ax.annotate(
                book, (x, mean), (5, 5), textcoords="offset points", color=ink, fontsize=8.5
            )
    return means[-1][0], f"λ {points[0]['lambda_neg']:g}", colour


def fig_work(results: Mapping, ax: Axes | None = None) -> Figure:
    """Mean CHAIR_s over one attack against the work of the erasure, a mark an arm; arms that differ
    in the forget level alone are joined. Hollow: recall under 95 %, or the level was not reached.

    results: {"arms": {name: {"values": [% a seed], "passes", "recall": [one a run], "note"}},
    "joined": {label: {level in nats: name}}}; the label is a method with a look.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 4.2))
    arms = results["arms"]
    joined = {name: label for label, row in results["joined"].items() for name in row.values()}
    for label, row in results["joined"].items():
        colour, _, dash = look(label)
        path = [_at(arms[name]) for name in row.values()]
        ax.plot(*zip(*path, strict=True), color=colour, dashes=dashes(dash), linewidth=1.4)
    others = [name for name in arms if name not in joined]
    styles = dict(zip(others, looks(others), strict=True))
    for name, arm in arms.items():
        colour, marker, _ = look(joined[name]) if name in joined else styles[name]
        (x, y), (_, low, high) = _at(arm), interval(arm["values"])
        if len(arm["values"]) > 2:
            ax.plot([x, x], clip([low, high], (0, 100)), color=colour, linewidth=4, alpha=0.25)
        is_fair = not arm.get("note") and np.mean(arm["recall"]) >= ENOUGH
        mark = {"color": colour, "mfc": colour if is_fair else "white", "ms": 7, "zorder": 3}
        ax.plot(x, y, marker, label=called(name) if name in styles else None, **mark)
        if name in joined:
            how = {"textcoords": "offset points", "va": "bottom", "fontsize": 8.5}
            ax.annotate(name, (x, y), (7, 4), color=colour, **how)
    if others:
        ax.legend(fontsize=8.5, loc="lower left")
    ax.set(
        xscale="log",
        xlabel="work of the erasure, forward passes over a batch, fewer is better",
        ylabel="mean CHAIR_s over the attack, %,\nlower is better",
    )
    percent_axis(ax)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.margins(x=0.15)
    return ax.figure


def _at(arm: Mapping) -> tuple[float, float]:
    """Where an arm stands: mean passes, mean CHAIR_s."""
    return float(np.mean(arm["passes"])), float(np.mean(arm["values"]))


def fig_along(results: Mapping, ax: Axes | None = None) -> Figure:
    """What a gain goes along with: the difference in mean CHAIR_s, a mark a seed, against the
    difference in another quantity; filled marks have a straight line (least squares).

    results: {"x": axis label, "pairs": {label: {"x", "y": [a value a seed]}}, "fit": {"slope",
    "intercept", ...}}: the first pair gets the line, which "fit" is of, the second hollow marks.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH, 3.6))
    (first, line), *others = results["pairs"].items()
    ax.axhline(0, color=PALE, linewidth=0.9)
    ax.axvline(0, color=PALE, linewidth=0.9)
    fit, ends = results["fit"], np.array([min(0, *line["x"]), max(line["x"])])
    ax.plot(ends, fit["intercept"] + fit["slope"] * ends, color=INK, linewidth=1.2, linestyle="--")
    ax.plot(line["x"], line["y"], "D", color=look("SARE")[0], ms=6.5, label=first)
    for label, pair in others:
        ax.plot(pair["x"], pair["y"], "o", color=INK, mfc="white", ms=6.5, label=label)
    ax.set(xlabel=results["x"], ylabel="difference in mean CHAIR_s\nover the attack, points")
    ax.legend(fontsize=9, loc="lower left")
    return ax.figure

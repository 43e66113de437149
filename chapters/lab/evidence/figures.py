"""One function a figure: it draws what it is given and computes nothing but bands. `publish` writes
NAME.png and NAME.json, `redraw` draws the PNG from the JSON again.

Colours are seaborn's "colorblind"; marker and dash repeat what the colour says. Faint lines are
seeds, the strong line is their mean, the band a 95 % t interval of the mean over seeds.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from inspect import signature
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scipy.stats import CensoredData, ecdf

from .. import files
from ..world.scenes import Scene, draw
from .stats import band, interval

plt.style.use(Path(__file__).parent / "book.mplstyle")

STYLE = {  # method, control or direction -> (colour, marker, dash)
    "base": ("#949494", "o", (1, 1)),
    "honest": ("#949494", "X", (6, 2)),
    "EFUF": ("#de8f05", "s", (4, 2)),
    "SARE": ("#0173b2", "D", ()),
    "EFUF oracle": ("#fbafe4", "s", (1, 1.5)),
    "SARE oracle": ("#56b4e9", "D", (1, 1.5)),
    "GA": ("#d55e00", "<", (1, 2)),
    "GradDiff": ("#ca9161", ">", (6, 2, 1, 2)),
    "EFUF released": ("#ece133", "p", (1, 1)),
    "EFUF+SAM": ("#029e73", "^", (6, 2, 1, 2)),
    "NPO": ("#cc78bc", "v", (2, 2)),
    "SimNPO": ("#fbafe4", "h", (3, 1)),
    "NPO+Targeted-SAM": ("#56b4e9", "P", (6, 1)),
    "SARE, eps kept 4 steps": ("#cc78bc", "v", (2, 2)),
    "SARE, eps from a quarter": ("#029e73", "^", (6, 2, 1, 2)),
    "SARE, eps of the projector": ("#ca9161", ">", (1, 2)),
    "SARE, random step": ("#56b4e9", "X", (2, 1)),
    "EFUF+SAM, equal work": ("#029e73", "v", (2, 2)),
    "EFUF, SARE's work": ("#ca9161", "s", (1, 2)),
    "SARE, honest level": ("#0173b2", "d", (2, 2)),
    "SARE, equal work": ("#0173b2", "d", (4, 1)),
    "EFUF, honest level": ("#949494", "s", (6, 2)),
    # directions in weight space, from the same seaborn palette
    "relapse": ("#de8f05", "s", (4, 2)),
    "attack": ("#ca9161", "P", (6, 2, 1, 2)),
    "random": ("#949494", "o", (1, 1)),
    "forget": ("#0173b2", "D", ()),
    "remember": ("#de8f05", "s", (4, 2)),
    "fp32": ("#0173b2", "D", ()),
    "bf16": ("#de8f05", "s", (4, 2)),
}
NEUTRAL = ("#4b5563", ".", (3, 2))  # of a name that has no style of its own
METRICS = {  # key -> (axis label, factor, bounds of the metric itself)
    "chair_s": ("CHAIR_s, %, lower is better", 100, (0, 100)),
    "recall": ("recall, %, higher is better", 100, (0, 100)),
    "cosine": ("cosine of taken and intended step", 1, (-1, 1)),
    "nll_forget": (
        "NLL of the forgotten span,\nnats a token, higher is forgotten",
        1,
        (0, float("inf")),
    ),
    "nll_retain": ("NLL of grounded text,\nnats a token, lower is better", 1, (0, float("inf"))),
}


def publish(
    function: str,
    name: str,
    results: object,
    preset: str,
    seeds: Sequence[int],
    caption: str,
    **how: object,
) -> Path:
    """Draw `results` with the function of that name here ("fig_relapse", ...), called with `how`,
    and write NAME.png and NAME.json; returns the PNG's path. The figure stays open: a notebook
    shows it.

    The JSON holds all that `redraw` needs: results, caption without its stamp, preset, seeds,
    versions, function and how. No dates: equal results are equal bytes. Raises ValueError on an
    unknown function, and on results or a setting in `how` that JSON cannot hold.
    """
    facts = {
        "figure": name,
        "caption": caption,
        "preset": preset,
        "seeds": list(seeds),
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
        "drawn_by": {
            "function": function,
            "how": {key: _plain(f"{name}: {key}", value) for key, value in how.items()},
        },
        "results": _plain(f"{name}: results", results, allow_nan=True),
    }
    figure = _draw(facts)
    where = files.figures_folder(preset, seeds)
    where.mkdir(parents=True, exist_ok=True)
    _save_png(figure, where / f"{name}.png", facts)
    files.write_json(where / f"{name}.json", facts)
    return where / f"{name}.png"


def again(name: str, folder: Path = files.ROOT / "figures") -> Figure:
    """Draw a committed figure from its JSON, of a study that no chapter runs; ValueError if it is
    not there.
    """
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise ValueError(f"{path}: not there. Its study's module says how to make it.")
    return _draw(files.read_json(path))


def redraw(folder: Path) -> list[str]:
    """Draw every figure of the folder again from its JSON, as `publish` drew it, to the byte with
    the same versions; returns their names. Other JSON files are left alone.

    Raises ValueError naming the file if one is broken or its function is not here.
    """
    names = []
    for path in sorted(Path(folder).glob("*.json")):
        facts = files.read_json(path, "Run the figure's chapter again.")
        if not isinstance(facts, dict) or "drawn_by" not in facts:
            continue  # claims, benchmarks, figures older than `publish`
        try:
            figure = _draw(facts)
            _save_png(figure, path.with_suffix(".png"), facts)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: the figure cannot be drawn from it ({type(error).__name__}: {error})."
                " Run the figure's chapter again."
            ) from error
        plt.close(figure)
        names.append(path.stem)
    return names


def _plain(what: str, value: object, allow_nan: bool = False) -> object:
    """The value as JSON gives it back: rounded, tuples as lists, keys as text. What is drawn is
    then what is stored. Raises ValueError naming `what` if JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(files.rounded(value), allow_nan=allow_nan))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what}: JSON cannot hold it ({error}). Give texts, finite numbers, lists and dicts."
        ) from error


def _draw(facts: Mapping) -> Figure:
    """The figure that `facts` describe, as they stand in the JSON."""
    function, how = facts["drawn_by"]["function"], facts["drawn_by"]["how"]
    known = {name: value for name, value in globals().items() if name.startswith("fig_")}
    if function not in known:
        raise ValueError(f"unknown function {function!r}: there are {', '.join(sorted(known))}.")
    takes = list(signature(known[function]).parameters)[1:]
    if unknown := [key for key in how if key not in takes]:
        raise ValueError(
            f"{function} takes no {unknown[0]!r}: there are {', '.join(takes) or 'no settings'}."
        )
    return known[function](facts["results"], **how)


def _save_png(figure: Figure, path: Path, facts: Mapping) -> None:
    """Write the figure with its caption below. Any preset but the full one is named there."""
    preset, seeds = facts["preset"], facts["seeds"]
    stamp = "" if preset == "full" else f"{preset} preset, {len(seeds)} seeds. "
    width = int(figure.get_figwidth() * 15)
    text = "\n".join(textwrap.wrap(stamp + facts["caption"], width))
    figure.canvas.draw()
    below = figure.get_tightbbox().y0 / figure.get_figheight() - 0.02
    figure.text(0.01, below, text, fontsize=8, color="#374151", va="top", ha="left")
    with files.whole(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})


def _style(name: str) -> tuple[str, str, tuple[float, ...]]:
    """(colour, marker, dash) of a method, control or direction; neutral if it has none."""
    return STYLE.get(name, NEUTRAL)


def _end_labels(ax: Axes, x: float, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write (y, text, colour) at the right end of lines, spread so that none covers another and
    none leaves the axes' top; on linear and logarithmic axes alike. Set the limits first.
    """
    ax.get_xlim(), ax.get_ylim()  # the limits settle only when they are asked for
    to_axes, labels = ax.transData - ax.transAxes, sorted(labels)
    ends, gap = to_axes.transform([(x, y) for y, _, _ in labels]), 0.065
    places = [ends[0, 1]]
    for up in ends[1:, 1]:
        places.append(max(up, places[-1] + gap))
    ceiling = max(1, ends[-1, 1])
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    for (across, _), place, (_, text, colour) in zip(ends, places, labels, strict=True):
        ax.text(
            *to_axes.inverted().transform((across + 0.015, place)),
            text,
            color=colour,
            va="center",
            fontweight="bold",
            clip_on=False,
        )


def _curves(
    ax: Axes,
    x: Sequence[float],
    lines: Mapping[str, tuple[str, Sequence[Sequence[float]]]],
    bounds: tuple[float, float],
) -> None:
    """lines: {label: (method, [a curve per seed])}. Seeds faint, mean strong, band from three seeds
    on, names at the lines' ends.
    """
    ends = []
    for label, (method, curves) in lines.items():
        colour, marker, dash = _style(method)
        for curve in curves:
            ax.plot(x, curve, color=colour, alpha=0.3, linewidth=0.8)
        mean, low, high = band(curves, bounds)
        ax.plot(
            x,
            mean,
            color=colour,
            marker=marker,
            markersize=4,
            markevery=max(1, len(x) // 12),
            dashes=dash or (None, None),
        )
        if len(curves) > 2:  # two seeds give an interval that fills the figure and says nothing
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((mean[-1], label, colour))
    _end_labels(ax, x[-1], ends)


def fig_scenes(results: Sequence[Mapping], axes: Sequence[Axes] | None = None) -> Figure:
    """Pictures with what a model says of them. results: [{"place", "objects", "cells", "says":
    [[word, is_hallucinated], ...]}].
    """
    if axes is None:
        _, axes = plt.subplots(
            1, len(results), figsize=(2.7 * len(results), 2.5), gridspec_kw={"wspace": 0.35}
        )
    for ax, shown in zip(axes, results, strict=True):
        ax.imshow(
            draw(Scene(shown["place"], tuple(shown["objects"]), tuple(shown["cells"]))),
            interpolation="nearest",
        )
        ax.set_axis_off()
        lines = [", ".join(f"[{word}]" if wrong else word for word, wrong in shown["says"])]
        ax.set_title(
            "\n".join(textwrap.wrap(f"{shown['place']}: {lines[0]}", 26)),
            fontsize=9,
            y=-0.06,
            va="top",
            loc="left",
        )
    return axes[0].figure


def _dots(
    ax: Axes,
    row: int,
    values: Sequence[float],
    bounds: tuple[float, float],
    colour: str = "#0173b2",
) -> float:
    """A row of dots and their mean, which it returns; its 95 % interval from three values on."""
    mean, low, high = interval(values)
    ax.plot(
        values,
        np.full(len(values), row) + np.linspace(-0.18, 0.18, len(values)),
        "o",
        color="#949494",
        alpha=0.6,
        markersize=4,
    )
    if len(values) > 2:
        ax.plot(np.clip([low, high], *bounds), [row, row], color=colour, linewidth=4, alpha=0.35)
    ax.plot(mean, row, "D", color=colour)
    return mean


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
        _, ax = plt.subplots(figsize=(7.2, 0.45 * len(labels) + 1.2))
    for row, name in enumerate(labels):
        mean = _dots(ax, row, factor * np.asarray(results[name]), bounds)
        ax.text(
            1.02,
            row,
            f"{mean:.3g}",
            transform=ax.get_yaxis_transform(),
            va="center",
            color="#0173b2",
            fontweight="bold",
        )
    _dot_axis(ax, list(labels.values()), xlabel, bounds)
    return ax.figure


def _dot_axis(ax: Axes, names: Sequence[str], xlabel: str, bounds: tuple[float, float]) -> None:
    """A row a name, the first on top; the metric's own bounds, if it has any, with a margin."""
    ax.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.5, -0.5),
        xlabel=f"{xlabel}\n(dot: a seed; diamond: mean; bar: 95 % interval)",
    )
    if np.isfinite(bounds).all():
        margin = 0.02 * (bounds[1] - bounds[0])
        ax.set_xlim(bounds[0] - margin, bounds[1] + margin)


def fig_scores(results: Mapping, ax: Axes | None = None) -> Figure:
    """CLIP scores of mentioned objects. results: {"present": [...], "absent": [...],
    "forget_below", "retain_above"}.
    """
    if ax is None:
        _, ax = plt.subplots()
    everything = [*results["present"], *results["absent"]]
    bins = np.linspace(min(everything), max(everything), 50)
    for name, colour, hatch in (("present", "#0173b2", ""), ("absent", "#d55e00", "////")):
        ax.hist(
            results[name],
            bins,
            color=colour,
            alpha=0.55,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.3,
            label=f"the object is {name} ({len(results[name])})",
        )
    top = ax.get_ylim()[1]
    for key, text, side in (
        ("forget_below", "forget", "right"),
        ("retain_above", "retain", "left"),
    ):
        ax.axvline(results[key], color="#111827", linestyle="--", linewidth=1.2)
        ax.text(results[key], top, f" {text} ", ha=side, va="bottom", fontweight="bold")
    ax.legend(loc="upper left")
    ax.set(
        xlabel="S(o): the tiny CLIP's score of the object with its picture",
        ylabel="mentions in sampled captions",
    )
    return ax.figure


def fig_two_minima(results: Mapping, ax: Axes | None = None) -> Figure:
    """A loss over one weight, with a sharp and a flat minimum. results: {"x", "loss", "worst": the
    worst loss within rho, "rho"}.
    """
    if ax is None:
        _, ax = plt.subplots()
    ax.plot(results["x"], results["loss"], color="#111827")
    ax.plot(results["x"], results["worst"], color="#d55e00", dashes=(4, 2))
    ax.text(0.1, 0.5, "loss", color="#111827", fontweight="bold", ha="right")
    ax.text(
        1.5,
        0.55,
        f"worst loss\nwithin ±{results['rho']:g}",
        color="#d55e00",
        fontweight="bold",
        ha="left",
    )
    marks = (
        ("lowest loss", results["loss"], "#111827", "o", (14, -4), "left"),
        ("lowest worst case", results["worst"], "#d55e00", "D", (0, -62), "center"),
    )
    for name, values, colour, marker, offset, side in marks:
        i = int(np.argmin(values))
        ax.plot(results["x"][i], values[i], marker, color=colour, markersize=9)
        ax.annotate(
            name,
            (results["x"][i], values[i]),
            xytext=offset,
            textcoords="offset points",
            ha=side,
            color=colour,
        )
    ax.set(xlabel="weight", ylabel="loss, lower is better", ylim=(min(results["loss"]) - 0.1, None))
    return ax.figure


def fig_slices(
    results: Mapping,
    key: str = "nll_forget",
    ax: Axes | None = None,
    xlabel: str = "L2 distance from the erased weights",
) -> Figure:
    """A metric over distances (or another x). results: {"distances", "lines": {label: {"method",
    "curves": [one per seed]}}}.
    """
    if ax is None:
        _, ax = plt.subplots()
    label, factor, bounds = METRICS[key]
    ax.set(xlabel=xlabel, ylabel=label)
    lines = {
        name: (line["method"], factor * np.asarray(line["curves"]))
        for name, line in results["lines"].items()
    }
    _curves(ax, results["distances"], lines, bounds)
    return ax.figure


def fig_slices_panels(
    results: Mapping[str, Mapping], keys: Mapping[str, str] | None = None
) -> Figure:
    """One panel a title. results: {title: what fig_slices takes}; keys: {title: a key of METRICS},
    "nll_forget" where none is given.
    """
    n = len(results)
    size = {"figsize": (5 * n, 3.9), "sharey": True, "gridspec_kw": {"wspace": 0.25}}
    figure, axes = plt.subplots(1, n, squeeze=False, **size)
    for ax, (title, drawn) in zip(axes[0], results.items(), strict=True):
        fig_slices(drawn, (keys or {}).get(title, "nll_forget"), ax=ax)
        ax.set_title(title)
    return figure


def fig_training(results: Mapping, axes: Sequence[Axes] | None = None) -> Figure:
    """Losses while a model is erased. results: {"step": [...], "lines": {method: {"forget": [a
    curve per seed], "retain": [...]}}}.
    """
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), gridspec_kw={"wspace": 0.35})
    for ax, kind in zip(axes, ("forget", "retain"), strict=True):
        ax.set(xlabel="erasure step", ylabel=f"NLL of the {kind} spans, nats a token")
        _curves(
            ax,
            results["step"],
            {method: (method, line[kind]) for method, line in results["lines"].items()},
            (0, float("inf")),
        )
    return axes[0].figure


def fig_relapse(
    results: Mapping,
    keys: Sequence[str] = ("chair_s", "nll_forget"),
    axes: Sequence[Axes] | None = None,
    xlabel: str = "relearning samples",
) -> Figure:
    """Metrics against an attack's strength. results: {"at": [...], "lines": {label: {"method",
    metric: [a curve per seed]}}}.
    """
    if axes is None:
        _, axes = plt.subplots(
            1,
            len(keys),
            figsize=(4.8 * len(keys), 3.8),
            squeeze=False,
            gridspec_kw={"wspace": 0.55},
        )
        axes = axes[0]
    for ax, key in zip(axes, keys, strict=True):
        label, factor, bounds = METRICS[key]
        ax.set(xlabel=xlabel, ylabel=label)
        if bounds[1] == 100:
            ax.set_ylim(-3, 103)
        lines = {
            name: (line["method"], factor * np.asarray(line[key]))
            for name, line in results["lines"].items()
        }
        _curves(ax, results["at"], lines, bounds)
    return axes[0].figure


def fig_geometry(results: Mapping, ax: Axes | None = None) -> Figure:
    """One Targeted-SAM step on two weights. results: {"x", "y", "neg": 2-D list, "theta", "eps",
    "gradients": {label: [dx, dy]}}.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 4.8))
    contour = ax.contourf(
        results["x"], results["y"], np.asarray(results["neg"]), levels=14, cmap="Blues"
    )
    ax.figure.colorbar(contour, ax=ax, label="L_neg (dark: the hallucination is likely)")
    x, y = results["theta"]
    ax.plot(x, y, "o", color="#111827")
    ax.annotate("theta", (x, y), xytext=(8, -12), textcoords="offset points")
    tip = (x + results["eps"][0], y + results["eps"][1])
    ax.annotate(
        "", tip, (x, y), arrowprops={"arrowstyle": "->", "color": "#d55e00", "linewidth": 2}
    )
    ax.annotate(
        "theta + eps*:\nthe relapse",
        tip,
        xytext=(-4, 8),
        textcoords="offset points",
        color="#d55e00",
        ha="right",
        fontweight="bold",
    )
    for (label, (dx, dy)), colour, side in zip(
        results["gradients"].items(), ("#de8f05", "#023e8a"), ("right", "left"), strict=True
    ):
        ax.annotate(
            "",
            (x - dx, y - dy),
            (x, y),
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 2},
        )
        ax.annotate(
            label,
            (x - dx, y - dy),
            xytext=(-6 if side == "right" else 8, -10),
            textcoords="offset points",
            color=colour,
            fontweight="bold",
            ha=side,
        )
    ax.set(xlabel="weight 1", ylabel="weight 2", aspect="equal")
    ax.grid(False)
    return ax.figure


def fig_paired(results: Mapping[str, Mapping], xlabel: str, ax: Axes | None = None) -> Figure:
    """Paired differences, one row each. results: {label: {"differences": [one per seed], "diff",
    "ci95": [low, high]}}.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(7.2, 0.6 * len(results) + 1.2))
    ax.axvline(0, color="#111827", linewidth=1)
    for row, line in enumerate(results.values()):
        n = len(line["differences"])
        ax.plot(
            line["differences"],
            np.full(n, row) + np.linspace(-0.15, 0.15, n),
            "o",
            color="#949494",
            markersize=4,
            alpha=0.6,
        )
        if np.isfinite(line["ci95"]).all():
            ax.plot(line["ci95"], [row, row], color="#0173b2", linewidth=4, alpha=0.35)
        ax.plot(line["diff"], row, "D", color="#0173b2")
    ax.set(
        yticks=range(len(results)),
        yticklabels=list(results),
        ylim=(len(results) - 0.5, -0.5),
        xlabel=xlabel,
    )
    return ax.figure


def fig_front(results: Sequence[Mapping], axes: Sequence[Axes] | None = None) -> Figure:
    """Robustness and work against rho, a line a lambda_neg. results: [{"lambda_neg", "rho", "area",
    "half_life", "passes": [a value a seed], "reached": [bool a run]}]; a point with runs that did
    not reach the forget level is hollow.
    """
    shown = {
        "area": "mean CHAIR_s over the\nattack, %, lower is better",
        "half_life": "NLL half-life, samples,\nhigher is better",
        "passes": "work of the erasure,\nforward passes",
    }
    if axes is None:
        how = {"wspace": 0.45}
        _, axes = plt.subplots(1, len(shown), figsize=(10.5, 3.2), gridspec_kw=how)
    lambdas = sorted({point["lambda_neg"] for point in results})
    shades = plt.get_cmap("viridis_r")(np.linspace(0.25, 1, len(lambdas)))
    for ax, (key, label) in zip(axes, shown.items(), strict=True):
        for i, (x, colour) in enumerate(zip(lambdas, shades, strict=True)):
            points = sorted((p for p in results if p["lambda_neg"] == x), key=lambda p: p["rho"])
            at = [p["rho"] + 0.004 * (i - (len(lambdas) - 1) / 2) for p in points]
            means = [interval(p[key]) for p in points]
            ax.plot(at, [m for m, _, _ in means], color=colour, marker="o^sDv"[i], zorder=2)
            for where, (mean, low, high), point in zip(at, means, points, strict=True):
                if len(point[key]) > 2:
                    ax.plot([where, where], [low, high], color=colour, linewidth=0.8, alpha=0.7)
                if not all(point["reached"]):
                    ax.plot(where, mean, "o^sDv"[i], color=colour, markerfacecolor="white")
        ax.set(xlabel="rho, the ascent step's length", ylabel=label)
    handles = [
        plt.Line2D([], [], color=c, marker=m, label=f"lambda_neg {x:g}")
        for x, c, m in zip(lambdas, shades, "o^sDv")
    ]
    axes[0].legend(handles=handles, fontsize=8)
    return axes[0].figure


def fig_ranks(results: Mapping[str, Mapping], ax: Axes | None = None) -> Figure:
    """Rank correlations of gauges with an outcome, a row a gauge, the most negative on top.
    results: {gauge: {"within": [one a seed], "mean", "ci95": [low, high]}}.
    """
    names = sorted(results, key=lambda name: results[name]["mean"])
    if ax is None:
        _, ax = plt.subplots(figsize=(7.2, 0.36 * len(names) + 1.2))
    ax.axvline(0, color="#111827", linewidth=1)
    for row, name in enumerate(names):
        found = results[name]
        ax.plot(
            found["within"], [row] * len(found["within"]), "o", color="#949494", alpha=0.6, ms=4
        )
        if np.isfinite(found["ci95"]).all():
            ends = np.clip(found["ci95"], -1, 1)
            ax.plot(ends, [row, row], color="#0173b2", linewidth=4, alpha=0.35)
        ax.plot(found["mean"], row, "D", color="#0173b2")
    ax.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.5, -0.5),
        xlim=(-1.05, 1.05),
        xlabel="rank correlation with the NLL half-life, within a seed\n"
        "(dot: a seed; diamond: mean; bar: 95 % interval)",
    )
    return ax.figure


def fig_plane(results: Mapping, axes: Sequence[Axes] | None = None) -> Figure:
    """Forget NLL in a plane of weight space. results: {label: {"x", "y": distances, "values": 2-D,
    "names": [x axis, y axis]}}.
    """
    if axes is None:
        _, axes = plt.subplots(
            1,
            len(results),
            figsize=(4.8 * len(results), 4),
            squeeze=False,
            gridspec_kw={"wspace": 0.35},
        )
        axes = axes[0]
    levels = np.linspace(0, max(np.max(plane["values"]) for plane in results.values()), 15)
    for ax, (label, plane) in zip(axes, results.items(), strict=True):
        contour = ax.contourf(
            plane["x"], plane["y"], np.asarray(plane["values"]), levels=levels, cmap="Blues_r"
        )
        ax.plot(0, 0, "o", color="#d55e00")
        ax.set(xlabel=f"{plane['names'][0]}, L2", ylabel=f"{plane['names'][1]}, L2", title=label)
        ax.grid(False)
    axes[0].figure.colorbar(
        contour, ax=list(axes), label="NLL of the forgotten span (dark: it is back)"
    )
    return axes[0].figure


def fig_attacks(
    results: Mapping[str, Mapping],
    keys: Mapping[str, str],
    units: Mapping[str, str],
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """One panel an attack, CHAIR_s over its strength. results: {attack: what fig_relapse takes};
    keys, units: {attack: metric, x label}.
    """
    if axes is None:
        columns = min(4, -(-(len(results) + 1) // 2))  # one more panel, for the legend
        rows = -(-len(results) // columns)
        _, grid = plt.subplots(
            rows,
            columns,
            figsize=(3.4 * columns, 3 * rows),
            squeeze=False,
            sharey=True,
            gridspec_kw={"hspace": 0.6},
        )
        axes = list(grid.flat)
    for ax, (name, drawn) in zip(axes, results.items(), strict=False):
        for label, line in drawn["lines"].items():
            colour, marker, dash = _style(line["method"])
            curves = 100 * np.asarray(line[keys[name]])
            mean, low, high = band(curves, (0, 100))
            ax.plot(
                drawn["at"],
                mean,
                color=colour,
                marker=marker,
                markersize=4,
                dashes=dash or (None, None),
                label=label,
            )
            if len(curves) > 2:
                ax.fill_between(drawn["at"], low, high, color=colour, alpha=0.12, linewidth=0)
        ax.set(title=name, xlabel=units.get(name, "samples"), ylim=(-3, 103))
        if drawn["at"][0] > drawn["at"][-1]:
            ax.invert_xaxis()
    for ax in list(axes)[len(results) :]:
        ax.set_visible(False)
    axes[0].set_ylabel("CHAIR_s, %, lower is better")
    if len(axes) > len(results):  # nine methods need the room of a panel
        last = axes[len(results)]
        last.set_visible(True)
        last.axis("off")
        last.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="center left")
    else:
        axes[0].legend(fontsize=7)
    return axes[0].figure


def fig_arms(results: Mapping, ax: Axes | None = None) -> Figure:
    """Compare arms (methods): a row each, a dot a seed, mean and 95 % interval, and beside it what
    the arm costs. An arm with a note is grey.

    results: {"endpoint": axis label, "bounds": [low, high] or None, "arms": {name: {"values": [one
    a seed], "level": [nats, one a run], "recall": [shares], "passes": [forward passes], "note":
    text}}}; only "values" must be there.
    """
    arms, bounds = results["arms"], results["bounds"] or (-np.inf, np.inf)
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 0.5 * len(arms) + 1.2))
    for row, (name, arm) in enumerate(arms.items()):
        grey, note = "#7f7f7f", arm.get("note", "")
        _dots(ax, row, arm["values"], bounds, grey if note else "#0173b2")
        ink = {"color": grey if note else "#111827", "right": False}
        _beside(ax, row, -8, 5 if note else 0, name, **ink)
        _beside(ax, row, -8, -2, note, va="top", fontsize=7.5, **ink)
    place = 0
    for header, width, cells in _arm_columns(arms):
        place += width
        ax.annotate(
            header, (1, 1), (place, 4), "axes fraction", "offset points", ha="right", fontsize=9
        )
        for row, (arm, cell) in enumerate(zip(arms.values(), cells, strict=True)):
            _beside(ax, row, place, 0, cell, color="#7f7f7f" if arm.get("note") else "#111827")
    # The names stand beside their notes
    _dot_axis(ax, [""] * len(arms), results["endpoint"], bounds)
    return ax.figure


def _beside(
    ax: Axes, row: int, right_by: float, up_by: float, text: str, right: bool = True, **how: object
) -> None:
    """Text beside a row, ending so many points right of the axes' right or left edge."""
    where = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
    how = {"ha": "right", "va": "center"} | where | how
    ax.annotate(text, (1 if right else 0, row), (right_by, up_by), annotation_clip=False, **how)


def _arm_columns(arms: Mapping[str, Mapping]) -> list[tuple[str, float, list[str]]]:
    """(header, width in points, a text an arm) of each column that some arm has a value for.

    The arms' common level is the median over all runs. An arm that is further off than 0.05 nats
    says so in brackets.
    """
    runs = [level for arm in arms.values() for level in arm.get("level", ())]
    common = np.median(runs) if runs else 0

    def level(values: Sequence[float]) -> str:
        off = max(abs(value - common) for value in values)
        return f"{np.mean(values):.2f}" + (f" (off {off:.2f})" if off > 0.05 else "")

    columns = {
        "values": ("mean", 48, lambda values: f"{np.mean(values):.3g}"),
        "level": ("level, nats", 94, level),
        "recall": ("recall, %", 62, lambda values: f"{100 * np.mean(values):.1f}"),
        "passes": ("passes", 56, lambda values: f"{np.mean(values):,.0f}"),
    }
    return [
        (header, width, [spell(arm[key]) if arm.get(key) else "" for arm in arms.values()])
        for key, (header, width, spell) in columns.items()
        if any(arm.get(key) for arm in arms.values())
    ]


def fig_survival(results: Mapping, ax: Axes | None = None) -> Figure:
    """Kaplan-Meier curves of relapse: the share of runs whose CHAIR_s has not passed 50 % yet.
    Ticks are runs that never relapsed within their attack (censored).

    results: {"end": last sample count, "arms": {name: {"samples": [one a run], "censored": [bool a
    run], "n_seeds": int}}}. There is no band: runs of one seed are not independent.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(7.2, 4.2))
    end, labels = results["end"], []
    ax.set(
        xlabel="relearning samples (tick: a run that has not relapsed when its attack ends)",
        ylabel="runs not yet relapsed\n(CHAIR_s at most 50 %), %",
        xlim=(0, end),
        ylim=(-3, 103),
    )
    ax.axvline(128, color="#111827", linewidth=1, linestyle=":")
    ax.text(128, 104, "128", ha="center", va="bottom", fontsize=8)
    for name, arm in results["arms"].items():
        colour, _, dash = _style(name)
        samples, censored = np.asarray(arm["samples"], float), np.asarray(arm["censored"], bool)
        kept = ecdf(CensoredData.right_censored(samples, censored)).sf
        share = 100 * kept.probabilities
        ax.plot(
            [0, *kept.quantiles, end],
            [100, *share, share[-1]],
            drawstyle="steps-post",
            color=colour,
            dashes=dash or (None, None),
        )
        ticks = samples[censored]
        ax.plot(ticks, 100 * kept.evaluate(ticks), "|", color=colour, markersize=9, clip_on=False)
        text = f"{name} ({len(samples)} runs, {arm['n_seeds']} seeds)"
        labels.append((share[-1], text, colour))
    _end_labels(ax, end, labels)
    return ax.figure


def fig_sweep(results: Mapping, ax: Axes | None = None) -> Figure:
    """Mean CHAIR_s over an attack against the attack's learning rate. An attack that ruins recall
    is not allowed: its point is hollow. The worst allowed rate of each arm is ringed.

    results: {"lr": [...], "recall_bound": share, "arms": {name: {"chair": [[%, one a rate] a seed],
    "recall": [[share at the attack's end, one a rate] a seed]}}}.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(7.2, 4.2))
    x, ends = np.asarray(results["lr"], float), []
    ax.set(
        xscale="log",
        ylim=(-3, 103),
        xlabel=(
            "learning rate of the attack\n(hollow: recall under"
            f" {100 * results['recall_bound']:g} % at the end; ring: worst rate that is allowed)"
        ),
        ylabel="mean CHAIR_s over the attack, %,\nlower is better",
    )
    for name, arm in results["arms"].items():
        colour, marker, dash = _style(name)
        for curve in arm["chair"]:
            ax.plot(x, curve, color=colour, alpha=0.3, linewidth=0.8)
        mean, low, high = (np.asarray(line) for line in band(arm["chair"], (0, 100)))
        ax.plot(x, mean, color=colour, dashes=dash or (None, None))
        if len(arm["chair"]) > 2:
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        allowed = np.mean(arm["recall"], axis=0) >= results["recall_bound"]
        ax.plot(x[allowed], mean[allowed], marker, color=colour, markersize=6)
        ax.plot(x[~allowed], mean[~allowed], marker, color=colour, markersize=6, mfc="white")
        if allowed.any():
            worst = np.flatnonzero(allowed)[mean[allowed].argmax()]
            ax.plot(x[worst], mean[worst], "o", color=colour, markersize=14, mfc="none", mew=1.5)
        ends.append((mean[-1], name, colour))
    _end_labels(ax, x[-1], ends)
    return ax.figure


PARTS = {  # of the variance of a paired difference -> (label, colour, colour of the text on it)
    "seed": ("base seed", "#0173b2", "white"),
    "erasure": ("order of erasure", "#de8f05", "#111827"),
    "attack": ("order of attack", "#ece133", "#111827"),
    "kernels": ("kernel path", "#949494", "#111827"),
}


def fig_variance(results: Mapping, axes: Sequence[Axes] | None = None) -> Figure:
    """Where the variance of a paired difference comes from, and what a narrow interval costs.

    results: {"components": {endpoint: {"seed": variance, "erasure", "attack", "kernels"}}, "cost":
    {label: {"seconds": [core-seconds], "half_width": [of the 95 % interval, in units of the mean
    difference]}}}. A variance that was estimated below zero is drawn as zero.
    """
    if axes is None:
        height = max(3.2, 0.5 * len(results["components"]) + 1.4)
        size = {"figsize": (11, height), "gridspec_kw": {"wspace": 0.45}}
        _, axes = plt.subplots(1, 2, **size)
    _stacked(axes[0], results["components"])
    ax = axes[1]
    ax.axhline(1, color="#111827", linewidth=1, linestyle=":")
    # none of the left panel's, which mean something else
    colours = cycle(("#029e73", "#cc78bc", "#56b4e9", "#d55e00", "#ca9161", "#111827"))
    for (label, line), colour, marker in zip(results["cost"].items(), colours, cycle("osD^v<>Ph")):
        ax.plot(line["seconds"], line["half_width"], marker + "-", color=colour, label=label)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="core-seconds\n(under the dotted line the interval leaves out zero)",
        ylabel="half-width of the 95 % interval,\nin units of the mean difference",
    )
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax.figure


def _stacked(ax: Axes, components: Mapping[str, Mapping[str, float]]) -> None:
    """Stacked bars of shares in %, a row an endpoint; a share of 8 % and more is written."""
    for row, parts in enumerate(components.values()):
        sizes = {key: max(0.0, parts[key]) for key in PARTS}
        total, left = sum(sizes.values()) or 1, 0.0
        for key, (label, colour, ink) in PARTS.items():
            share = 100 * sizes[key] / total
            bar = {"color": colour, "edgecolor": "white", "label": label if row == 0 else None}
            ax.barh(row, share, left=left, height=0.6, **bar)
            if share >= 8:
                middle = (left + share / 2, row)
                ax.annotate(f"{share:.0f}", middle, ha="center", va="center", color=ink, fontsize=8)
            left += share
    ax.set(
        yticks=range(len(components)),
        yticklabels=list(components),
        ylim=(len(components) - 0.5, -0.5),
        xlim=(0, 100),
        xlabel="share of the variance of a paired difference, %",
    )
    ax.grid(axis="y", visible=False)
    tight = {"columnspacing": 1, "handlelength": 1.2, "handletextpad": 0.5}
    ax.legend(fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(-0.03, 1), **tight)

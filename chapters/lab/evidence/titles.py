"""Titles that say what a figure shows, made from its results: a new run gives a new title.

Each function takes what the figure of `figures.publish` takes. Where the data decide who is ahead,
so do these words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np

from .looks import ENOUGH, called
from .stats import area, relapse

Lines = Mapping[str, Mapping]


def _share(values: Sequence[float]) -> str:
    """ "97.8 %": the mean of shares."""
    return f"{100 * fmean(values):.3g} %"


def _whole(values: Sequence[float]) -> str:
    """ "98 %": the mean of shares, rounded."""
    return f"{100 * fmean(values):.0f} %"


def _and(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _nearest(distances: Sequence[float], wanted: float) -> int:
    """Where the distance stands that is nearest to the wanted one."""
    return min(range(len(distances)), key=lambda i: abs(distances[i] - wanted))


def _short(name: str) -> str:
    """A row's name without what only sets it apart from other figures' rows."""
    return name.removesuffix(", honest level")


# Chapters 00 and 01


def scenes(shown: Sequence[Mapping]) -> str:
    """Of fig_scenes: how many captions invent something."""
    n = sum(any(wrong for _, wrong in one["says"]) for one in shown)
    return f"{n} of these {len(shown)} captions name something that is not in the picture"


def base(results: Mapping[str, Sequence[float]]) -> str:
    """Of 00_base: what the base model invents, and what it sees."""
    chair, recall = _share(results["chair_s"]), _share(results["recall"])
    return (
        f"{chair} of the base model's captions invent an object; it names {recall} of those shown"
    )


def noise(results: Mapping[str, Sequence[float]]) -> str:
    """Of 00_noise: CHAIR_s by the noise in the training captions."""
    found = {key.split(" at ")[1]: row for key, row in results.items() if key.startswith("chair_s")}
    parts = [f"{_share(row)} at {100 * float(share):.0f} %" for share, row in found.items()]
    return f"CHAIR_s by the share of noisy captions in training: {_and(parts)}"


def minima(results: Mapping) -> str:
    """Of fig_two_minima: is the deepest point also the safest?"""
    low, safe = (results["x"][int(np.argmin(results[key]))] for key in ("loss", "worst"))
    where = "in another minimum than" if abs(low - safe) > 2 * results["rho"] else "where"
    end = " lies" if where == "where" else ""
    return f"The lowest worst case within ±{results['rho']:g} lies {where} the lowest loss{end}"


def steps(results: Mapping, wanted: float = 0.5) -> str:
    """Of fig_slices: what a step of about the wanted length loses in each direction."""
    at = _nearest(results["distances"], wanted)
    lost = {
        name: fmean(curve[0] - curve[at] for curve in line["curves"])
        for name, line in results["lines"].items()
    }
    parts = [f"{x:.1f} ({name})" for name, x in sorted(lost.items(), key=lambda item: -item[1])]
    moved = f"Moved by L2 {results['distances'][at]:g}"
    return f"{moved}, hallucinated words lose {_and(parts)} nats of NLL"


def around(results: Mapping[str, Mapping], wanted: float = 0.5) -> str:
    """Of 01_slices: which directions move the words of the first panel, by a step of about the
    wanted length: by a tenth at least of what the one that moves them most does.
    """
    title, drawn = next(iter(results.items()))
    at = _nearest(drawn["distances"], wanted)
    moved = {
        name: fmean(abs(curve[at] - curve[0]) for curve in line["curves"])
        for name, line in drawn["lines"].items()
    }
    movers = [name for name, x in moved.items() if x >= 0.1 * max(moved.values())]
    only = "Only" if len(movers) < len(moved) else "Each of"
    s = "s" if len(movers) == 1 else ""
    return f"{only} {_and(movers)} move{s} the {title} within L2 {drawn['distances'][at]:g}"


# Chapter 02


def scores(results: Mapping) -> str:
    """Of fig_scores: how right the judge is."""
    precision, recall = (100 * results[key] for key in ("precision", "recall"))
    return (
        f"Of what the judge marks to forget {precision:.3g} % is hallucinated;"
        f" of what is hallucinated it marks {recall:.3g} %"
    )


def training(results: Mapping) -> str:
    """Of fig_training: how long it takes."""
    method, row = next(iter(results["lines"].items()))
    start, steps = fmean(curve[0] for curve in row), [len(curve) for curve in row]
    return (
        f"{method} takes {min(steps)} to {max(steps)} steps from {start:.1f} nats to the forget"
        f" level of {results['level']:g}"
    )


def halves(drawn: Mapping) -> dict[str, float | None]:
    """{name: relearning samples until the mean CHAIR_s passes 50 %, None if it never does}, of the
    lines that start below.
    """
    found = {}
    for name, line in drawn["lines"].items():
        mean = np.mean(line["chair_s"], axis=0).tolist()
        if mean[0] <= 0.5:
            samples, never = relapse(drawn["at"], mean)
            found[name] = None if never else samples
    return found


def lasting(drawn: Mapping) -> str:
    """Of fig_relapse and fig_relearning: whose captions stay clean longer."""
    found = halves(drawn)
    if not found:
        return where_it_ends(drawn)
    last = {name: float("inf") if n is None else n for name, n in found.items()}
    (name, n), *others = sorted(found.items(), key=lambda item: -last[item[0]])
    ahead = others and others[0][1] is not None and (n is None or n > others[0][1])
    whose = "its" if ahead else f"{_short(name)}'s"
    if n is None:
        words = f"fewer than half of {whose} captions hallucinate by the end"
    else:
        words = f"half of {whose} captions hallucinate after {n:.0f} relearning samples"
    ends = [
        f"half of {_short(other)}'s " + ("never" if m is None else f"after {m:.0f}")
        for other, m in others
    ]
    start = f"{_short(name)} keeps captions clean longer: " if ahead else ""
    words = ", ".join([start + words, *ends])
    return words[0].upper() + words[1:]


def halves_of(drawn: Mapping) -> str:
    """Of fig_relapse on too few seeds to rank: samples until half of the captions invent."""
    parts = [
        f"{'never' if n is None else f'after {n:.0f} samples'} ({_short(name)})"
        for name, n in halves(drawn).items()
    ]
    if not parts:  # more than half invent from the start on
        return where_it_ends(drawn)
    return f"Half of the captions hallucinate again {_and(parts)}"


def where_it_ends(drawn: Mapping) -> str:
    """Of fig_relapse: CHAIR_s where the attack ends."""
    parts = [
        f"{_short(name)} {100 * fmean(curve[-1] for curve in line['chair_s']):.0f} %"
        for name, line in drawn["lines"].items()
    ]
    return f"After {drawn['at'][-1]} relearning samples CHAIR_s is: {_and(parts)}"


def plane(results: Mapping[str, Mapping], wanted: float = 0.5) -> str:
    """Of fig_plane: the NLL at home and a step either way along x, mean over the maps."""
    nll = []
    for found in results.values():
        row = found["values"][_nearest(found["y"], 0)]
        nll.append([row[_nearest(found["x"], x)] for x in (-wanted, 0, wanted)])
    away, home, back = np.mean(nll, axis=0)
    x = next(iter(results.values()))["x"]
    step = x[_nearest(x, wanted)]
    return (
        f"NLL at the square: {home:.1f} nats; L2 {step:.2g} towards the relapse: {back:.1f},"
        f" the other way: {away:.1f} (mean of {len(results)} seeds)"
    )


def lenient(results: Mapping[str, Sequence[float]]) -> str:
    """Of 02_lenient: what a lenient judge leaves."""
    parts = [f"{_share(row)} ({100 * float(share):.0f} % missed)" for share, row in results.items()]
    return f"CHAIR_s after erasure by what the judge misses: {_and(parts)}"


# Rows of arms, chapters 02 and 04


def least(results: Mapping, enough: float = ENOUGH) -> str:
    """Of fig_arms: which of the arms that stand at the level and still name what is shown
    hallucinate least.
    """
    fair = {
        name: fmean(arm["values"])
        for name, arm in results["arms"].items()
        if not arm.get("note") and fmean(arm.get("recall") or [1]) >= enough
    }
    if not fair:
        return "No arm stands at the forget level with its recall"
    ranked = sorted(fair.items(), key=lambda item: item[1])[:3]
    words = ", then ".join(f"{called(name)} ({mean:.1f} %)" for name, mean in ranked)
    at = f"at one forget level and {100 * enough:g} % recall"
    return f"Least hallucination over the attack, {at}: {words}"


def work(results: Mapping) -> str:
    """Of fig_work: EFUF at its highest level, SARE at the book's and at its highest."""
    parts = {}
    for method, level in (("EFUF", None), ("SARE", "8"), ("SARE", None)):
        row = results["joined"].get(method, {})
        nats = level or next(reversed(row), None)
        if nats in row:
            arm = results["arms"][row[nats]]
            values, passes = fmean(arm["values"]), fmean(arm["passes"])
            parts[method, nats] = f"{method} to {nats} nats {values:.0f} % for {passes:.0f} passes"
    return f"Over the attack {_and(list(parts.values()))}"


def along(results: Mapping) -> str:
    """Of fig_along: how strongly the two go together, and what is left where nothing moved."""
    first, fit = next(iter(results["pairs"].values())), results["fit"]
    return (
        f"Over {len(first['x'])} seeds the gain goes along with the way travelled"
        f" (r {fit['r']:.2f}); at no longer way it would be {round(fit['intercept']):+d} points"
    )


# Chapter 03


def bf16(results: Mapping) -> str:
    """Of 03_bf16: where a coarse weight takes the step that was meant."""
    rhos, (cosine,) = results["distances"], results["lines"]["bf16"]["curves"]
    good = next((rho for rho, c in zip(rhos, cosine, strict=True) if c > 0.99), None)
    end = "never within those tried" if good is None else f"from rho {good:g} on"
    return (
        f"In bf16 a step of rho {rhos[0]:g} has cosine {cosine[0]:.2f} with the one that was meant;"
        f" above 0.99 {end}"
    )


def geometry(results: Mapping) -> str:
    """Of fig_geometry: the angle between the two steps."""
    one, other = (np.asarray(way) for way in results["gradients"].values())
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return f"The gradient at theta + eps* points {angle:.0f} degrees away from the one at home"


def differences(results: Mapping[str, Mapping], pair: Sequence[str] = ("SARE", "EFUF")) -> str:
    """Of fig_paired: which differences leave zero out."""
    parts = [
        f"{label} {row['diff']:+.2f}" + ("" if row["ci95"][0] <= 0 <= row["ci95"][1] else "*")
        for label, row in results.items()
    ]
    return f"{' minus '.join(pair)} (* interval without zero): {'; '.join(parts)}"


def flatter(results: Mapping[str, Mapping], wanted: float = 0.5) -> str:
    """Of 03_slices: the NLL lost by each method, a direction after the other."""
    parts = []
    for title, drawn in results.items():
        at = _nearest(drawn["distances"], wanted)
        lost = [
            f"{name} {fmean(c[0] - c[at] for c in line['curves']):.1f}"
            for name, line in drawn["lines"].items()
        ]
        parts.append(f"{_and(lost)} {title}")
    x = next(iter(results.values()))["distances"]
    return f"NLL lost after L2 {x[_nearest(x, wanted)]:g}, nats: {'; '.join(parts)}"


def front(results: Sequence[Mapping]) -> str:
    """Of fig_front: from the book's rho 0 to its longest look, at the first lambda_neg."""
    first = min(point["lambda_neg"] for point in results)
    points = sorted((p for p in results if p["lambda_neg"] == first), key=lambda p: p["rho"])
    area, work = (
        " to ".join(f"{fmean(p[key]):.0f}" for p in (points[0], points[-1]))
        for key in ("area", "passes")
    )
    return (
        f"From rho {points[0]['rho']:g} to {points[-1]['rho']:g} (lambda_neg {first:g}) mean"
        f" CHAIR_s goes from {area} %, the work from {work} passes"
    )


def ranks(results: Mapping[str, Mapping], labels: Mapping[str, str]) -> str:
    """Of fig_ranks: which gauges' intervals leave zero out."""
    sure = [
        f"{labels.get(name, name)} ({row['mean']:+.2f})"
        for name, row in results.items()
        if not row["ci95"][0] <= 0 <= row["ci95"][1]
    ]
    words = _and(sure) if sure else "none"
    n = f"{len(sure)} of {len(results)}"
    return f"Gauges whose rank correlation has an interval without zero, {n}: {words}"


def places(results: Mapping[str, Mapping]) -> str:
    """Of 03_beaches: what each model says of the place that no erasure saw."""
    group, rows = next(iter(results.items()))
    chair = _and([f"{_whole(row['chair_s'])} ({name})" for name, row in rows.items()])
    recall = _and([_whole(row["recall"]) for row in rows.values()])
    return f"{group.capitalize()}: CHAIR_s {chair}, recall {recall}"


# Chapter 04


def strip(results: Mapping, at: Sequence[int]) -> str:
    """Of fig_strip: CHAIR_s of all scenes at the first and the last count."""
    index = [list(results["at"]).index(n) for n in (at[0], at[-1])]
    names = [name for name in results["says"] if name != "base"]
    first, last = (
        _and([f"{100 * results['chair_s'][name][i]:.0f} % ({name})" for name in names])
        for i in index
    )
    return (
        f"Seed {results['seed']}: right after erasure {first} of the captions invent something;"
        f" after {at[-1]} relearning samples {last}"
    )


def survival(results: Mapping) -> str:
    """Of fig_survival: when half of each method's attacks have brought the hallucinations back."""
    parts = [
        f"{name}'s after {median(arm['samples']):.0f}"
        + (" or more" if sum(arm["censored"]) * 2 >= len(arm["samples"]) else "")
        for name, arm in results["arms"].items()
    ]
    return f"Relearning samples until half of the attacks have undone the erasure: {_and(parts)}"


def sweep(results: Mapping) -> str:
    """Of fig_sweep: each arm under the worst rate that is allowed to it."""
    parts = []
    for name, arm in results["arms"].items():
        chair, recall = (np.mean(arm[key], axis=0) for key in ("chair", "recall"))
        allowed = np.where(recall >= results["recall_bound"] - 1e-9, chair, -1)
        top = allowed.max()
        parts.append(f"{name} {top:.0f} %" if top >= 0 else f"{name} none allowed")
    return f"Under its worst learning rate, CHAIR_s over the attack: {_and(parts)}"


def others(results: Mapping[str, Mapping], keys: Mapping[str, str]) -> str:
    """Of fig_attacks: mean CHAIR_s over all of the attacks."""
    names = list(next(iter(results.values()))["lines"])
    parts = []
    for name in names:
        over = [
            100 * area(drawn["at"], curve)
            for kind, drawn in results.items()
            for curve in drawn["lines"][name][keys[kind]]
        ]
        parts.append(f"{name} {fmean(over):.1f} %")
    return f"Mean CHAIR_s over {len(results)} other attacks: {_and(parts)}"


def variance(results: Mapping) -> str:
    """Of fig_variance: the parts of the first endpoint's variance."""
    endpoint, parts = next(iter(results["components"].items()))
    total = sum(max(0.0, x) for x in parts.values()) or 1
    words = {"seed": "base seed", "erasure": "order of erasure", "attack": "order of attack"}
    shares = [f"{label} {100 * max(0.0, parts[key]) / total:.0f} %" for key, label in words.items()]
    return f"Where one paired difference in {endpoint} varies: {_and(shares)}"

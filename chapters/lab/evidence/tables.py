"""What the chapters print, ask and draw, laid out from results.

Three kinds of functions: some return text for a chapter to print; some return questions, {id of the
plan: (observations of the baseline, of SARE)}, for ledger.record; the others return what a figure
of `figures` takes. All take plain dicts and lists, and need no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student

from . import pages, stats
from .looks import ENOUGH
from .observations import Pair
from .readings import (
    READ,
    Result,
    by_seed,
    chair_at,
    first_of,
    is_censored,
    mean_chair_s,
    observe,
    of_seeds,
    zipped,
)

Row = list[dict]  # results of one name, one a run


# What stands beside every comparison: level, recall and work


def beside(results: Mapping[str, Row], *names: str) -> str:
    """A line a name: forget level (and the farthest run from it), recall, passes, and how far the
    weights are from the base model's (L2).
    """
    lines = []
    for name in names:
        row = first_of(results[name])
        far = np.mean([r["erased"]["distance"] for r in row])
        lines.append(f"{name:22s} {_beside(row)}, {far:.2f} from the base")
    return "\n".join(lines)


def _beside(row: Row) -> str:
    facts = {k: [r["erased"][k] for r in row] for k in ("stop_level", "recall", "passes")}
    level, recall, passes = (np.mean(values) for values in facts.values())
    words = f"level {level:.2f} nats"
    if is_erased(row):
        asked = [r["spec"]["stop_nll"] for r in row]
        missed = sum(not r["erased"]["reached"] for r in row)
        away = [abs(x - y) for x, y in zip(facts["stop_level"], asked) if y is not None]
        far = f"{missed} of {len(row)} runs do not reach it"
        words += f" ({far if missed else f'within {max(away):.2f}'})"
    return f"{words}, recall {100 * recall:.1f} %, {passes:.0f} passes"


def is_erased(row: Row) -> bool:
    """Was a level asked of the row's runs?"""
    return row[0]["spec"]["method"] not in ("base", "honest")


def caption(results: Mapping[str, Row], *names: str) -> str:
    """The same as a sentence for a figure's caption."""
    return " ".join(f"{name}: {_beside(first_of(results[name]))}." for name in names)


def arms(
    results: Mapping[str, Row],
    names: Sequence[str],
    endpoint: str,
    read: Callable[[Result], float],
    bounds: Sequence[float] | None = None,
) -> dict:
    """What figures.fig_arms takes: read(result), a mean a seed, with level, recall and passes."""
    found = {}
    for name in names:
        row = first_of(results[name])
        facts = {k: [r["erased"][k] for r in row] for k in ("stop_level", "recall", "passes")}
        found[name] = {
            "values": by_seed(results[name], read),
            "level": facts["stop_level"],
            "recall": facts["recall"],
            "passes": facts["passes"],
        }
        missed = sum(not r["erased"]["reached"] for r in row)
        if missed and is_erased(row):
            found[name]["note"] = f"does not reach the level in {missed} of {len(row)} runs"
    return {"endpoint": endpoint, "bounds": bounds, "arms": found}


def work(
    results: Mapping[str, Row],
    read: Callable[[Result], float],
    joined: Mapping[str, Mapping[str, str]],
) -> dict:
    """What figures.fig_work takes: read(result), a mean a seed; joined: {method: {level: name}}."""
    found = arms(results, list(results), "", read)["arms"]
    return {"arms": found, "joined": {label: dict(row) for label, row in joined.items()}}


def along(
    pairs: Mapping[str, tuple[Row, Row]],
    read: Callable[[Result], float],
    x: str = "distance from the base model: difference, L2",
) -> dict:
    """What figures.fig_along takes: per seed, the second row minus the first, in read(result) and
    in the distance of the erased weights from the base model's; and the first pair's line.
    """
    found = {}
    for label, (before, then) in pairs.items():
        changes = [
            [b - a for a, b in zip(by_seed(before, how), by_seed(then, how), strict=True)]
            for how in (lambda result: result["erased"]["distance"], read)
        ]
        found[label] = dict(zip("xy", changes, strict=True))
    return {"x": x, "pairs": found, "fit": fitted(**next(iter(found.values())))}


def fitted(x: Sequence[float], y: Sequence[float]) -> dict[str, float | None]:
    """Least squares through the points: {"r", "slope", "intercept", "half": of the intercept's 95 %
    interval, None from two points}.
    """
    fit, df = linregress(x, y), len(x) - 2
    half = float(student.ppf(0.975, df) * fit.intercept_stderr) if df else None
    values = {"r": fit.rvalue, "slope": fit.slope, "intercept": fit.intercept}
    return {key: float(value) for key, value in values.items()} | {"half": half}


def left(drawn: Mapping) -> str:
    """Of `along`: what the straight line leaves at no difference in x, with its 95 % interval."""
    fit = drawn["fit"]
    at, half = fit["intercept"], fit["half"]
    ends = "" if half is None else f" [{at - half:.1f}, {at + half:.1f}]"
    return f"r {fit['r']:.2f}; at equal distance {at:+.1f} points{ends}"


def rate_factor(drawn: Mapping, baseline: str, other: str, lr: float = 2e-4) -> list[float]:
    """Of `sweep`: by how much the attacker must raise his learning rate above `lr` until the other
    arm's mean CHAIR_s is the baseline's at `lr`, one a seed; log-linear between the rates tried,
    and the last factor tried where it is never reached.
    """
    rates, at = np.log(drawn["lr"]), drawn["lr"].index(lr)
    found = []
    for wanted, curve in zip(
        (curve[at] for curve in drawn["arms"][baseline]["chair"]),
        drawn["arms"][other]["chair"],
        strict=True,
    ):
        rising = np.maximum.accumulate(curve)
        found.append(float(np.exp(np.interp(wanted, rising, rates) - rates[at])))
    return found


def survival(results: Mapping[str, Row], *names: str) -> dict:
    """What figures.fig_survival takes: samples until CHAIR_s passes 50 %, a value a run."""
    found = {}
    for name in names:
        row = results[name]
        found[name] = {
            "samples": [READ["relapse"](r) for r in row],
            "censored": [is_censored(r) for r in row],
            "n_seeds": len({r["spec"]["seed"] for r in row}),
        }
    return {"end": results[names[0]][0]["curve"][-1]["at"], "arms": found}


def never(results: Mapping[str, Row], *names: str) -> str:
    """A line a name: in what share of the attacks CHAIR_s never passed 50 %."""
    shares = {name: np.mean([is_censored(r) for r in results[name]]) for name in names}
    return "\n".join(f"{name:22s} {100 * share:.0f} %" for name, share in shares.items())


def landed(results: Mapping[str, Row], *names: str) -> str:
    """A line a name: what the landing on the forget level changed, mean over runs."""
    lines = [f"{'landing: before -> after':22s}      level   recall, %   NLL of grounded text"]
    for name in names:
        row = [r["erased"] for r in first_of(results[name]) if r["erased"]["landing"]]
        pairs = []
        for key, now, factor in (
            ("level", "stop_level", 1),
            ("recall", "recall", 100),
            ("nll_retain", "nll_retain", 1),
        ):
            before = factor * np.mean([e["landing"][f"{key} before"] for e in row])
            pairs.append(f"{before:.2f} -> {factor * np.mean([e[now] for e in row]):.2f}")
        lines.append(f"{name:22s} " + "   ".join(pairs))
    return "\n".join(lines)


ENDPOINTS = {  # what is drawn of a pair -> (a key of READ, where the first of the pair is better)
    "mean CHAIR_s, points": ("mean_chair_s", "left is better"),
    "samples until 50 %": ("relapse", "right is better"),
    "NLL half-life, samples": ("half_life", "right is better"),
}


def pairs(results: Mapping[str, Row], pair: Sequence[str]) -> dict:
    """What figures.fig_relearning takes beside the curves: ENDPOINTS' differences, the first of the
    pair minus the second, seed by seed.
    """
    found = {}
    for label, (key, better) in ENDPOINTS.items():
        one, other = (by_seed(results[name], READ[key]) for name in pair)
        found[label] = stats.paired(one, other) | {"better": better}
    return {"pair": list(pair), "pairs": found}


# Questions


def ask(results: Mapping[str, Row], asked: Mapping[str, tuple]) -> dict[str, Pair]:
    """Questions of attacked or erased rows; asked: {id: (baseline's name, SARE's, a key of READ or
    a function of one result)}.
    """
    questions = {}
    for id, (baseline, sare, how) in asked.items():
        read = READ[how] if isinstance(how, str) else how
        questions[id] = (observe(results[baseline], read), observe(results[sare], read))
    return questions


def rises(row: Row, n: int) -> Pair:
    """A question of one row: CHAIR_s right after erasure, and after n relearning samples, %."""
    return observe(row, chair_at(0)), observe(row, chair_at(n))


def measured(
    rows: tuple[Row, Row], values: tuple[Sequence[Mapping], Sequence[Mapping]], keys: Mapping
) -> dict[str, Pair]:
    """Questions of what was measured beside two rows: {id: (key, factor)}; values: of the
    baseline's row and of SARE's, one mapping a run.
    """
    return {
        id: tuple(
            zipped(row, [factor * found[key] for found in measures])
            for row, measures in zip(rows, values, strict=True)
        )
        for id, (key, factor) in keys.items()
    }


def spell(row: Mapping, digits: int = 2) -> str:
    """A row of the ledger: "C6a -14.41 [-20.01, -8.71], sign in 11 of 12 seeds, matters from 12 ->
    supported".
    """
    words = f"{stats.spell_difference(row, digits)}, matters from {row['margin']:g}"
    reading = row["verdict"] + (f": {row['reading']}" if row["reading"] else "")
    if row["verdict"] == "not comparable":
        reading += f" ({pages.levels(row)})"
    return f"{row['id']} {words} -> {reading}"


def lines(x: Sequence[float], rows: Mapping[str, Sequence]) -> dict:
    """What figures.fig_slices takes; rows: {a key of figures.STYLE: [a curve a seed]}."""
    named = {name: {"method": name, "curves": row} for name, row in rows.items()}
    return {"distances": x, "lines": named}


# Chapter 03: the erasure


def erasures(results: Mapping[str, Row], metrics: Mapping[str, float], *names: str) -> str:
    """A line a metric with the named rows' values after erasure; metrics: {metric: its factor}."""
    found = []
    for metric, factor in metrics.items():
        values = {n: [factor * x for x in of_seeds(results[n], metric)] for n in names}
        spelled = {n: stats.spell(row, 2) for n, row in values.items()}
        found.append(f"{metric:10s} " + "   ".join(f"{n} {text}" for n, text in spelled.items()))
    return "\n".join(found)


def yes(answers: Mapping[str, Mapping[str, Sequence[float]]], *names: str) -> str:
    """A line a name: how often it says "yes", in %, by kind of object; answers: of
    attacks.answer_all.
    """
    found = []
    for name in names:
        shares = {kind: answers[name][kind] for kind in ("shown", "usual", "foreign")}
        rates = {kind: stats.spell([100 * x for x in row]) for kind, row in shares.items()}
        found.append(f"{name:5s} " + "  ".join(f"{kind} {r} %" for kind, r in rates.items()))
    return "\n".join(found)


# Chapter 03: general quality


def quality(told: Mapping[str, Row]) -> dict[str, dict[str, list[float]]]:
    """{name: {metric: [a value a seed]}} of quality.measure's results, POPE's accuracies last."""
    keys = "chair_s chair_i recall length bleu distinct_2 ppl_base ppl_true".split()
    return {
        name: {key: [m[key] for m in row] for key in keys}
        | {f"POPE {kind}": [m["pope"][kind]["accuracy"] for m in row] for kind in row[0]["pope"]}
        for name, row in told.items()
    }


def quality_rows(row: Row) -> list[dict[str, float]]:
    """Of quality.measure's results, one a run: BLEU, perplexity, and POPE's accuracies by name."""
    return [
        {key: m[key] for key in ("bleu", "ppl_true")}
        | {f"POPE {kind}": found["accuracy"] for kind, found in m["pope"].items()}
        for m in row
    ]


def means(table: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A table of means over seeds, a line a metric, a column a name; table: what `quality`
    returns.
    """
    found = [" ".join([f"{'mean over seeds':17s}", *(f"{name:>17s}" for name in table)])]
    for key in next(iter(table.values())):
        values = (f"{np.mean(row[key]):17.3f}" for row in table.values())
        found.append(" ".join([f"{key:17s}", *values]))
    return "\n".join(found)


def places(measured: Mapping[str, Row], *where: str) -> str:
    """A line a name and place: CHAIR_s and recall there; measured: quality.measure's results of
    erasures without beaches.
    """
    found = []
    for name, row in measured.items():
        for place in where:
            chair, recall = (
                stats.spell([100 * m["places"][place][key] for m in row])
                for key in ("chair_s", "recall")
            )
            start = f"{name}, beaches never seen: {place:8s}"
            found.append(f"{start} CHAIR_s {chair} %   recall {recall} %")
    return "\n".join(found)


def by_place(measured: Mapping[str, Row], place: str) -> dict[str, dict]:
    """What figures.fig_groups takes: CHAIR_s and recall on a place, and the mean over the others;
    measured: quality.measure's results by name, one a seed.
    """
    found: dict[str, dict] = {f"{place}, never erased on": {}, "the other places": {}}
    for name, row in measured.items():
        here = [m["places"][place] for m in row]
        others = [[shares for at, shares in m["places"].items() if at != place] for m in row]
        for group, seeds in zip(found, ([[shares] for shares in here], others), strict=True):
            found[group][name] = {
                key: [float(np.mean([shares[key] for shares in seed])) for seed in seeds]
                for key in ("chair_s", "recall")
            }
    return found


# Chapter 03: flatness


def lost(row: Row, distances: Sequence[float]) -> list[dict[tuple[str, float], float]]:
    """Of landscape.slices, one result a run: the forget NLL lost at each (direction, distance)."""
    return [
        {
            (way, distance): points[0]["nll_forget"] - point["nll_forget"]
            for way, points in result.items()
            if way != "attack_distance"
            for distance, point in zip(distances, points, strict=True)
        }
        for result in row
    ]


def front(results: Mapping[tuple, Row]) -> list[dict]:
    """What figures.fig_front takes; results: {(lambda_neg, rho): attacks' results, one a seed}."""
    metrics = ("recall", "nll_retain", "stop_level", "passes")
    return [
        {"lambda_neg": x, "rho": y, "area": by_seed(row, READ["mean_chair_s"])}
        | {name: by_seed(row, READ[name]) for name in ("relapse", "half_life")}
        | {metric: [r["erased"][metric] for r in row] for metric in metrics}
        | {"reached": [r["erased"]["reached"] for r in row]}
        for (x, y), row in results.items()
    ]


def points(found: Sequence[dict]) -> str:
    """A line a point of the front."""
    return "\n".join(
        f"lambda_neg {p['lambda_neg']:<4g} rho {p['rho']:<4g}"
        f" mean CHAIR_s {stats.spell(p['area'])} %   half-life {np.mean(p['half_life']):.0f}  "
        f" level {np.mean(p['stop_level']):.2f} ({sum(p['reached'])} of {len(p['reached'])} reach"
        f" it), recall {100 * np.mean(p['recall']):.1f} %, {np.mean(p['passes']):.0f} passes"
        for p in found
    )


def gauges(measured: Sequence[dict], results: Row) -> dict[str, list[float]]:
    """{gauge: [a value a run]}: gauges.measure's of each run, and three that are no sharpness.

    results: of the same runs, in the same order.
    """
    names = [name for name in measured[0] if name not in ("ce", "trace_se")]
    found = {name: [m[name] for m in measured] for name in names}
    found |= {key: [r["erased"][key] for r in results] for key in ("stop_level", "distance")}
    return found | {"steps": [len(r["log"]) for r in results]}


NO_SHARPNESS = ("stop_level", "distance", "steps")
GAUGES = {
    "gradient_norm": "slope (gradient norm, L2)",
    "gradient_norm_1": "slope (gradient norm, L1)",
    "top_eigenvalue": "largest eigenvalue of the Hessian",
    "bottom_eigenvalue": "smallest eigenvalue of the Hessian",
    "trace": "trace of the Hessian",
    "relapse_radius_worst": "relapse radius, worst case (more: flatter)",
    "random_loss": "NLL lost in random directions",
    "stop_level": "forget level",
    "distance": "distance from the base model",
    "steps": "number of steps",
}


def gauge_labels(names: Iterable[str]) -> dict[str, str]:
    """{gauge: its name in a figure}; worst_ball_0.5 is the NLL lost within 0.5."""
    start = "worst_ball_"
    return {
        name: f"NLL lost at the worst point within {name.removeprefix(start)}"
        if name.startswith(start)
        else GAUGES.get(name, name)
        for name in names
    }


def ranking(ranks: Mapping[str, dict]) -> str:
    """A line a gauge, the most negative rank correlation first; ranks: {gauge: what
    stats.rank_correlation returns}.
    """
    found = []
    for name, row in sorted(ranks.items(), key=lambda item: item[1]["mean"]):
        low, high = row["ci95"]
        within = f"within seeds {row['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
        found.append(f"{name:24s} {within}   over all runs {row['all']:+.2f}")
    return "\n".join(found)


# Chapter 04: other attackers


def sweep(attacked: Mapping[float, Mapping[str, Row]], names: Sequence[str]) -> dict:
    """What figures.fig_sweep takes; attacked: {learning rate: {name: attacks' results}}."""

    def over(name: str, read: Callable[[Result], float]) -> list[list[float]]:
        columns = [by_seed(row[name], read) for row in attacked.values()]
        return [list(curve) for curve in zip(*columns, strict=True)]

    return {
        "lr": list(attacked),
        "recall_bound": ENOUGH,
        "arms": {
            name: {
                "chair": over(name, READ["mean_chair_s"]),
                "recall": over(name, lambda result: result["curve"][-1]["recall"]),
            }
            for name in names
        },
    }


def worst_rates(drawn: Mapping) -> dict[str, float]:
    """Of `sweep`: the learning rate with the highest mean CHAIR_s, of those whose mean recall at
    the end stays at the bound; ValueError if none does.
    """
    found = {}
    for name, arm in drawn["arms"].items():
        chair, recall = (np.mean(arm[key], axis=0) for key in ("chair", "recall"))
        allowed = recall >= drawn["recall_bound"] - 1e-9  # the mean of equal shares may round down
        if not allowed.any():
            raise ValueError(
                f"{name}: recall falls below {drawn['recall_bound']} at each learning rate of the"
                " sweep: add a smaller one."
            )
        found[name] = drawn["lr"][int(np.argmax(np.where(allowed, chair, -1)))]
    return found


ATTACK_IDS = {  # of the plan
    "LoRA": "C7b",
    "projector": "C7c",
    "one place": "C7d",
    "clean captions": "C7e",
    "answers": "C7f",
    "noise": "C7g",
    "rounding": "C7h",
    "pruning": "C7i",
    "prefilled": "C7j",
    "leading": "C7k",
}


def other_attacks(
    met: Mapping[tuple[str, str], Row], pair: tuple[str, str], keys: Mapping[str, str]
) -> dict[str, Pair]:
    """Questions of C7: mean CHAIR_s over each attack, and the mean of those over all (C7a).

    met: {(attack, name): results, one a seed}; keys: {attack: the share that counts}.
    """
    values = {
        (kind, name): [mean_chair_s(r, keys[kind]) for r in met[kind, name]]
        for kind in keys
        for name in pair
    }
    questions = {
        ATTACK_IDS[kind]: tuple(zipped(met[kind, n], values[kind, n]) for n in pair)
        for kind in keys
    }
    first = next(iter(keys))
    over_all = {n: np.mean([values[kind, n] for kind in keys], axis=0) for n in pair}
    return {"C7a": tuple(zipped(met[first, n], over_all[n]) for n in pair)} | questions

"""What the chapters print, ask and draw, laid out from results.

Three kinds of functions: some return text for a chapter to print; some return questions, {id of the
plan: (observations of the baseline, of SARE)}, for ledger.record; the others return what a figure
of `figures` takes. All take plain dicts and lists, and need no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import stats
from .observations import Pair
from .readings import (
    READ,
    Result,
    after,
    areas,
    by_seed,
    curves,
    first_of,
    is_censored,
    observe,
    relapses,
    zipped,
)

Row = list[dict]  # results of one name, one a run


# What stands beside every comparison: level, recall and work


def beside(results: Mapping[str, Row], *names: str) -> str:
    """A line a name: forget level (and the farthest run from it), recall, passes."""
    return "\n".join(f"{name:22s} {_beside(first_of(results[name]))}" for name in names)


def _beside(row: Row) -> str:
    levels, passes = ([r["erased"][key] for r in row] for key in ("stop_level", "passes"))
    recall = 100 * np.mean([r["erased"]["recall"] for r in row])
    asked = row[0]["spec"]["stop_nll"]
    missed = sum(not r["erased"]["reached"] for r in row)
    worst = max(abs(level - r["spec"]["stop_nll"]) for level, r in zip(levels, row)) if asked else 0
    far = f"{missed} of {len(row)} runs do not reach it" if missed else f"within {worst:.2f}"
    level = f"level {np.mean(levels):.2f} nats ({far})"
    return f"{level}, recall {recall:.1f} %, {np.mean(passes):.0f} passes"


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
        if missed and row[0]["spec"]["method"] not in ("base", "honest"):
            found[name]["note"] = f"does not reach the level in {missed} of {len(row)} runs"
    return {"endpoint": endpoint, "bounds": bounds, "arms": found}


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
    at_n = [100 * stats.at_sample(*_chair(r), n) for r in row]
    return zipped(row, [100 * r["curve"][0]["chair_s"] for r in row]), zipped(row, at_n)


def _chair(result: Result) -> tuple[list, list]:
    curve = result["curve"]
    return [point["at"] for point in curve], [point["chair_s"] for point in curve]


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
    """ "C6a -14.41 [-20.01, -8.71], sign in 11 of 12 seeds -> supported": a row of the ledger."""
    words = stats.spell_difference(row, digits)
    reading = row["verdict"] if row["primary"] else f"{row['verdict']}: {row['reading']}"
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
        spelled = {n: stats.spell(after(results, n, metric, factor), 2) for n in names}
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


# Chapter 03: flatness


def front(results: Mapping[tuple, Row]) -> list[dict]:
    """What figures.fig_front takes; results: {(lambda_neg, rho): attacks' results, one a seed}."""
    drawn = curves(results, *results)
    late, area = relapses(drawn), areas(drawn)
    metrics = ("recall", "nll_retain", "stop_level", "chair_s")
    return [
        {"lambda_neg": x, "rho": y, "relapse": late[x, y], "area": area[x, y]}
        | {metric: after(results, (x, y), metric) for metric in metrics}
        for x, y in results
    ]


def points(found: Sequence[dict]) -> str:
    """A line a point of the front."""
    return "\n".join(
        f"lambda_neg {point['lambda_neg']:<4g} rho {point['rho']:<4g}"
        f" relapse {stats.spell(point['relapse'], 0)}  "
        f" recall {100 * np.mean(point['recall']):.1f} %  "
        f" NLL of grounded text {np.mean(point['nll_retain']):.3f}  "
        f" level {np.mean(point['stop_level']):.1f}"
        for point in found
    )


def gauges(measured: Sequence[dict], results: Row) -> dict[str, list[float]]:
    """{gauge: [a value a run]}: gauges.measure's of each run, and three that are no sharpness.

    results: of the same runs, in the same order.
    """
    names = [name for name in measured[0] if name not in ("ce", "trace_se")]
    found = {name: [m[name] for m in measured] for name in names}
    found |= {key: [r["erased"][key] for r in results] for key in ("stop_level", "distance")}
    return found | {"steps": [len(r["log"]) for r in results]}


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


def dots(
    columns: Mapping[str, Sequence[float]],
    ranks: Mapping[str, dict],
    outcome: Sequence[float],
    rhos: Sequence[float],
    shown: Sequence[str],
) -> dict:
    """What figures.fig_gauges takes: the gauges named in `shown`, a dot a run; and all the rest.

    columns: what `gauges` returns. outcome, rhos: one a run.
    """
    texts = {name: f"rank correlation {ranks[name]['mean']:+.2f}" for name in shown}
    return {
        "robustness": outcome,
        "group": [f"rho {rho:g}" for rho in rhos],
        "gauges": {name: {"values": columns[name], "text": texts[name]} for name in shown},
        "ranks": ranks,
        "columns": columns,
    }

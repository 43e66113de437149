"""What chapters 03 and 04 print, ask and draw, laid out from results.

Three kinds of functions: some return text for a chapter to print; some return questions, {metric:
what ledger.row takes after it}, for `ask`; the others return what a figure of `figures` takes. All
take plain dicts and lists, and need no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import ledger, stats
from .readings import after, areas, curves, nll_lost, relapses

Row = list[dict]  # results of one name, one a seed


def steps(row: Row) -> list[int]:
    """How many steps each erasure of the row took, one number a seed."""
    return [len(result["log"]) for result in row]


def ask(claim: str, letters: Sequence[str], chapter: str, questions: Mapping) -> list[dict]:
    """The ledger's rows for the questions, in their order; their ids are the claim and a letter.

    questions: {metric: (baseline, sare, want[, margin[, note]])}, as ledger.row takes them. A
    preset may ask fewer than there are letters. Raises ValueError if one would get none.
    """
    if len(questions) > len(letters):
        raise ValueError(f"{claim}: {len(questions)} questions, letters {letters!r}: give more.")
    return [
        ledger.row(claim + letter, chapter, metric, *rest)
        for letter, (metric, rest) in zip(letters, questions.items(), strict=False)
    ]


def answer(row: dict, digits: int = 2) -> str:
    """ "+1.23 [0.20, 2.26], sign in 7 of 8 seeds -> supported": difference and verdict of a row of
    the ledger.
    """
    return f"{stats.spell_difference(row, digits)} -> {row['verdict']}"


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


def erased(results: Mapping[str, Row], answers: Mapping[str, dict], name: str) -> dict:
    """What claims C4 and C5 compare, of the named row after erasure: {metric: [a value a seed]}.

    answers: of attacks.answer_all; "yes shown" is the share of "yes" about objects that are there.
    """
    metrics = {metric: after(results, name, metric) for metric in ("chair_s", "recall")}
    metrics["nll_retain"] = after(results, name, "nll_retain")
    return metrics | {"yes shown": answers[name]["shown"]}


def kept(before: Mapping, later: Mapping, may_lose: Mapping[str, tuple[int, float]]) -> dict:
    """Questions of C5: is the metric kept, from the base model to SARE?

    before, later: {metric: [a value a seed]}. may_lose: {metric: (the sign that is better, what may
    be lost)}.
    """
    return {
        f"{metric}, base against SARE": (
            before[metric],
            later[metric],
            want,
            margin,
            f"(kept: within {margin})",
        )
        for metric, (want, margin) in may_lose.items()
    }


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


def lost(
    slices: Mapping[str, Row], distances: Sequence[float], where: Sequence[tuple[str, float]]
) -> dict:
    """Questions of C3: does SARE lose less NLL than EFUF, at each (direction, distance) of `where`?

    slices: landscape.slices' results. Raises ValueError if a distance was not measured.
    """
    questions = {}
    for way, distance in where:
        index = list(distances).index(distance)
        place = f"at distance {distance} along the {way} direction"
        efuf, sare = (nll_lost(slices[name], way, index) for name in ("EFUF", "SARE"))
        questions[f"NLL lost {place}, nats, EFUF against SARE"] = (efuf, sare, -1)
    return questions


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
    return found | {"steps": steps(results)}


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


def flatter(
    columns: Mapping[str, Sequence[float]], keys: Sequence[tuple], want: Mapping[str, int]
) -> dict:
    """More questions of C3: is SARE flatter than EFUF by each gauge, at the book's own settings?

    columns: what `gauges` returns. keys: (lambda_neg, rho) of each run. want: {gauge: the sign that
    is flatter}.
    """
    return {
        f"{name}, EFUF against SARE": (
            *(
                [value for value, key in zip(columns[name], keys, strict=True) if key == (0.1, rho)]
                for rho in (0.0, 0.2)
            ),
            sign,
        )
        for name, sign in want.items()
    }


# Chapter 04


def at_the_end(results: Mapping[str, Row], *names: str) -> dict[str, list[float]]:
    """CHAIR_s in % where the attack ends, of the named rows: {name: [a value a seed]}."""
    return {name: [100 * r["curve"][-1]["chair_s"] for r in results[name]] for name in names}


def later(
    late: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]], digits: int = 0
) -> str:
    """A line a pair (one, other) of which both were attacked: how many samples later `one`
    relapses; late: of readings.relapses.
    """
    return "\n".join(
        f"samples until relapse, {one} - {other}:"
        f" {stats.spell_paired(late[one], late[other], digits)}"
        for one, other in pairs
        if {one, other} <= set(late)
    )


def trained(results: Mapping[str, Row]) -> str:
    """A line a name: forget level, distance from the base model and steps of its erasures."""
    found = []
    for name, row in results.items():
        level, distance = (after(results, name, key) for key in ("stop_level", "distance"))
        spelled = [stats.spell(values) for values in (level, distance, steps(row))]
        texts = zip(("level", "from the base model", "steps"), spelled, strict=True)
        found.append(f"{name:30s} " + "   ".join(" ".join(text) for text in texts))
    return "\n".join(found)


def facts(late: Mapping[str, Sequence[float]], results: Mapping[str, Row]) -> dict:
    """What stands beside the controls' figure: samples until relapse, forget level and distance
    from the base model, {metric: {name: [a value a seed]}}.
    """
    return {"relapse": late} | {
        key: {name: after(results, name, key) for name in results}
        for key in ("stop_level", "distance")
    }


def rivals(late: Mapping[str, Sequence[float]], names: Sequence[str]) -> dict:
    """Questions of C8: does SARE relapse later than each named control?"""
    metric = "relearning samples until CHAIR_s passes 50 %"
    return {f"{metric}, “{name}” against SARE": (late[name], late["SARE"], 1) for name in names}


def bill(
    results: Mapping[str, Row],
    late: Mapping[str, Sequence[float]],
    cost: Mapping[str, Callable[[float], float]],
) -> dict:
    """What figures.fig_cost takes; cost: {name: forward passes a step, by the share of rows with
    forget tokens}.
    """
    return {
        name: {
            "cost": [
                n * cost[name](r["erased"]["forget_share"])
                for n, r in zip(steps(row), row, strict=True)
            ],
            "relapse": late[name],
        }
        for name, row in results.items()
    }


def costs(found: Mapping[str, dict], results: Mapping[str, Row]) -> str:
    """A line a name of `bill`: its work, samples until relapse, CHAIR_s after erasure."""
    return "\n".join(
        f"{name:28s} work {stats.spell(row['cost'], 0)} forward passes  "
        f" relapse {stats.spell(row['relapse'], 0)} samples  "
        f" CHAIR_s right after {stats.spell(after(results, name, 'chair_s', 100))} %"
        for name, row in found.items()
    )


def attackers(sooner: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A table of mean samples until relapse, a line a method, a column an attacker; sooner:
    {attacker: what readings.relapses returns}.
    """
    found = ["   ".join(["samples until CHAIR_s passes 50 %, mean over seeds:", *sooner])]
    for name in next(iter(sooner.values())):
        means = (f"{stats.interval(row[name])[0]:6.0f}" for row in sooner.values())
        found.append(" ".join([f"{name:17s}", *means]))
    return "\n".join(found)


def under(sooner: Mapping[str, Mapping[str, Sequence[float]]]) -> dict:
    """Questions of C6: does SARE relapse later than EFUF under each attacker? sooner: as for
    `attackers`.
    """
    metric = "relearning samples until CHAIR_s passes 50 %, attack at"
    return {f"{metric} {name}": (row["EFUF"], row["SARE"], 1) for name, row in sooner.items()}


def attacked(drawn: Mapping[str, dict], keys: Mapping[str, str]) -> dict:
    """Questions of C7: does SARE hallucinate less than EFUF over the whole of each attack?

    drawn: {attack: what readings.curves returns}; keys: {attack: the share that counts}.
    """
    questions = {}
    for kind, found in drawn.items():
        area = areas(found, keys[kind])
        metric = f"mean CHAIR_s over the attack “{kind}”, %, EFUF against SARE"
        questions[metric] = (area["EFUF"], area["SARE"], -1)
    return questions


def verdicts(rows: Sequence[dict], drawn: Mapping[str, dict], keys: Mapping[str, str]) -> str:
    """A line an attack: both means, the verdict, and SARE's recall where the attack is strongest.

    rows: the ledger's, of `attacked`'s questions; drawn, keys: as there.
    """
    found = []
    for row, (kind, line) in zip(rows, drawn.items(), strict=True):
        area, recall = areas(line, keys[kind]), line["lines"]["SARE"]["recall"]
        efuf, sare = (stats.spell(area[name]) for name in ("EFUF", "SARE"))
        strongest = 100 * sum(curve[-1] for curve in recall) / len(recall)
        found.append(
            f"{row['id']} {kind:15s} EFUF {efuf}   SARE {sare}   -> {row['verdict']}  "
            f" (SARE's recall at the strongest: {strongest:.0f} %)"
        )
    return "\n".join(found)

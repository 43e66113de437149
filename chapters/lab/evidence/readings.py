"""What the chapters read off results: curves, samples until relapse, metrics after erasure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from .observations import Observation
from .stats import area, at_sample, half_life, relapse, relapse_samples, spell

Result = Mapping  # of one erasure, or of one attack on it: experiments.erasures.run, attacks.attack


def along(result: Result, metric: str) -> tuple[list[float], list[float]]:
    """(strengths, the metric at each) of an attack's curve."""
    return [p["at"] for p in result["curve"]], [p[metric] for p in result["curve"]]


def mean_chair_s(result: Result, metric: str = "chair_s") -> float:
    """Mean CHAIR_s over the attack, %."""
    return 100 * area(*along(result, metric))


def chair_at(n: float) -> Callable[[Result], float]:
    """result -> CHAIR_s after n relearning samples, %."""
    return lambda result: 100 * at_sample(*along(result, "chair_s"), n)


def last_chair_s(result: Result) -> float:
    """CHAIR_s where the attack ends, %."""
    return 100 * result["curve"][-1]["chair_s"]


def is_censored(result: Result) -> bool:
    """Did CHAIR_s never pass 50 % within the attack?"""
    return relapse(*along(result, "chair_s"))[1]


# What is read off one result: an endpoint of the plan -> value
READ: dict[str, Callable[[Result], float]] = {
    "chair_s": lambda result: 100 * result["erased"]["chair_s"],
    "recall": lambda result: 100 * result["erased"]["recall"],
    "nll_retain": lambda result: result["erased"]["nll_retain"],
    "mean_chair_s": mean_chair_s,
    "relapse": lambda result: relapse(*along(result, "chair_s"))[0],
    "half_life": lambda result: half_life(*along(result, "nll_forget"))[0],
    "chair_128": chair_at(128),
}


def observe(row: Sequence[Result], read: Callable[[Result], float]) -> list[Observation]:
    """What one arm's runs gave: read(result), with its seed, its orders and where it stands.

    A model that was not erased stands where it stands; nothing was asked of it.
    """
    return [observed(result, read(result)) for result in row]


def observed(result: Result, value: float) -> Observation:
    """One run's value, with its seed, its orders and where it stands."""
    spec, erased = result["spec"], result["erased"]
    is_erased = spec["method"] not in ("base", "honest")
    return Observation(
        seed=spec["seed"],
        order=spec["order"],
        attack=result.get("shuffle", 0),
        value=float(value),
        level=None if spec["method"] == "base" else erased["stop_level"],
        reached=erased["reached"] or not is_erased,
    )


def zipped(row: Sequence[Result], values: Sequence[float]) -> list[Observation]:
    """Observations of values that were measured beside the results, one each."""
    return [observed(result, value) for result, value in zip(row, values, strict=True)]


def first_of(row: Sequence[Result]) -> list[Result]:
    """One result an erasure: the first of its attacks."""
    return [result for result in row if not result.get("shuffle", 0)]


def by_seed(row: Sequence[Result], read: Callable[[Result], float]) -> list[float]:
    """read(result), mean over the runs of a seed: one value a seed, in the seeds' order."""
    values: dict[int, list[float]] = {}
    for result in row:
        values.setdefault(result["spec"]["seed"], []).append(read(result))
    return [sum(found) / len(found) for found in values.values()]


def curves(results: dict[str, list[dict]], *names: str) -> dict:
    """The named rows as figures.fig_relapse draws them: {"at", "lines": {name: {"method", metric:
    [a curve per seed, the mean over its runs]}}}.
    """
    first = results[names[0]][0]["curve"]
    metrics = [key for key in first[0] if key not in ("at", "n")]
    lines: dict[str, dict] = {}
    for name in names:
        of_seed: dict[int, list] = {}
        for i, r in enumerate(results[name]):  # a run without a spec is a seed of its own
            seed = r["spec"]["seed"] if "spec" in r else i
            of_seed.setdefault(seed, []).append(r["curve"])
        lines[name] = {"method": name} | {
            key: [
                [sum(p[key] for p in points) / len(points) for points in zip(*found, strict=True)]
                for found in of_seed.values()
            ]
            for key in metrics
        }
    return {"at": [p["at"] for p in first], "lines": lines}


def relapses(drawn: dict) -> dict[str, list[float]]:
    """Of curves(): per name, samples until CHAIR_s passes 50 %, one a seed."""
    return {
        name: [relapse_samples(drawn["at"], c) for c in line["chair_s"]]
        for name, line in drawn["lines"].items()
    }


def areas(drawn: dict, key: str = "chair_s") -> dict[str, list[float]]:
    """Of curves(): per name, mean CHAIR_s over the attack in %, one a seed; key: another share."""
    return {
        name: [100 * area(drawn["at"], c) for c in line[key]]
        for name, line in drawn["lines"].items()
    }


def after(results: dict[str, list[dict]], name: str, metric: str, factor: float = 1) -> list[float]:
    """A metric of the named row after erasure, one value a seed."""
    return [factor * result["erased"][metric] for result in results[name]]


def slice_lines(row: list[dict], way: str, metric: str = "nll_forget") -> list[list[float]]:
    """Of landscape.slices, one result a seed: the metric at each distance along one direction, a
    curve a seed.
    """
    return [[point[metric] for point in result[way]] for result in row]


def first_of_each(places: Iterable[str], scenes: Sequence) -> list[int]:
    """The row of the first scene of each place, in the order of the places."""
    return [next(i for i, s in enumerate(scenes) if s.place == place) for place in places]


def true_scene(scene) -> dict:
    """A scene with its own objects named and none invented, as figures.fig_scenes draws it."""
    return {
        "place": scene.place,
        "objects": scene.objects,
        "cells": scene.cells,
        "says": [[noun, False] for noun in scene.objects],
    }


def by_noise(
    controls: Sequence[tuple[int, float]], trained: Sequence[dict], metrics: Mapping[str, str]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Of measured.noise_control, one result a control (seed, noise): the rows of figures.fig_dots,
    {"METRIC at NOISE": [a value a seed]}, and their labels.

    metrics: {metric: what its label says}.
    """
    values: dict[str, list[float]] = {}
    labels: dict[str, str] = {}
    for metric, what in metrics.items():
        for (_, noise), result in zip(controls, trained, strict=True):
            name = f"{metric} at {noise}"
            values.setdefault(name, []).append(result[metric])
            labels[name] = f"{what}, {100 * noise:.0f} % of captions noisy"
    return values, labels


def seeds_at(controls: Sequence[tuple[int, float]]) -> str:
    """ "1 at 0 %, 5 at 70 %": how many of the controls (seed, noise) have which share of noise."""
    count = Counter(noise for _, noise in controls)
    return ", ".join(f"{n} at {100 * noise:.0f} %" for noise, n in count.items())


def slices_drawn(row: list[dict], distances: Sequence[float], ways: Sequence[str]) -> dict:
    """Of landscape.slices, one result a seed: the forget NLL along the directions, in their order,
    as figures.fig_slices draws it.
    """
    lines = {way: {"method": way, "curves": slice_lines(row, way)} for way in ways}
    return {"distances": distances, "lines": lines}


def first_past(
    at: Sequence[float], curves: Sequence[Sequence[float]], level: float
) -> list[float | None]:
    """Of each curve over `at`: the first point at which it is above the level, None if it never
    is.
    """
    return [next((x for x, y in zip(at, c, strict=True) if y > level), None) for c in curves]


def planes(seeds: Sequence[int], maps: Sequence[dict], names: list[str]) -> dict[str, dict]:
    """Of gauges.measure_plane, one map a seed: the panels of figures.fig_plane; names: of the two
    axes.
    """
    return {
        f"seed {seed}": {"x": m["axis"], "y": m["axis"], "values": m["loss"], "names": names}
        | {"end": m["ends"][1]}
        for seed, m in zip(seeds, maps, strict=True)
    }


def gauge(row: list[dict], name: str) -> list[float]:
    """Of gauges.measure, one result a seed: the named gauge. "share lost" is the NLL lost at the
    worst point within 0.5, as a share of the NLL at home.
    """
    if name == "share lost":
        return [found["worst_ball_0.5"] / found["ce"] for found in row]
    return [found[name] for found in row]


def training(results: dict[str, list[dict]], *names: str) -> dict:
    """The named rows' forget loss step by step, as figures.fig_training draws it: by its likelihood
    loss, which rises.
    """
    level = results[names[0]][0]["spec"]["stop_nll"]
    lines = {name: [[-row["neg"] for row in r["log"]] for r in results[name]] for name in names}
    return {"level": level, "lines": lines}


def spell_change(label: str, before: Sequence[float], after: Sequence[float]) -> str:
    """ "LABEL before 12.3 [10.1, 14.5] (n = 8) %   after ...": shares in %, one value a seed."""
    return f"{label:11s} before {spell(before)} %   after {spell(after)} %"


def at_last(
    results: dict[str, list[dict]], name: str, metric: str, factor: float = 1
) -> list[float]:
    """A metric of the named row at the last point of the attack, one value a seed."""
    return [factor * result["curve"][-1][metric] for result in results[name]]


def shares(found: Mapping[str, Mapping]) -> dict[str, float]:
    """CHAIR and recall, POPE's accuracies, and the answers that are neither yes nor no.

    found: {"chair": score.score_chair's, and for each kind of POPE score.score_pope's}.
    """
    told = {key: found["chair"][key] for key in ("chair_s", "chair_i", "recall")}
    kinds = {name: scores for name, scores in found.items() if name != "chair"}
    told |= {f"POPE {name}": scores["accuracy"] for name, scores in kinds.items()}
    n_neither = sum(scores["neither"] * scores["n"] for scores in kinds.values())
    told["neither yes nor no"] = n_neither / sum(scores["n"] for scores in kinds.values())
    return told


def spell_scores(found: Mapping[str, Mapping]) -> str:
    """ "chair_s 12.3 %, ...": `shares` in a line."""
    return ", ".join(f"{key} {100 * share:.1f} %" for key, share in shares(found).items())


def mentions(scored: Sequence[Mapping], named: Sequence[Sequence[str]]) -> list[float]:
    """The score of every mention: scored, {noun: its score} a caption; named, the nouns that each
    caption mentions.
    """
    return [score[noun] for score, nouns in zip(scored, named, strict=True) for noun in nouns]


def judged(
    scored: Sequence[Mapping],
    named: Sequence[Sequence[str]],
    true: Sequence[set[str]],
    forget_below: float,
) -> dict[str, int]:
    """A judge of mentions against the truth: how many mentions score below the limit ("forget"),
    how many are not in the picture ("wrong"), how many are both.

    scored, named: as in mentions. true: what each caption's picture shows.
    """
    found = [
        (score[noun] < forget_below, noun not in truth)
        for score, nouns, truth in zip(scored, named, true, strict=True)
        for noun in nouns
    ]
    return {
        "forget": sum(forgotten for forgotten, _ in found),
        "wrong": sum(wrong for _, wrong in found),
        "both": sum(map(all, found)),
    }


def of_seeds(row: Sequence[Result], metric: str) -> list[float]:
    """A metric after erasure, mean over the erasures of a seed: one value a seed."""
    return by_seed(first_of(row), lambda result: result["erased"][metric])

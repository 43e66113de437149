"""What the chapters read off results: curves, samples until relapse, metrics after erasure."""

from __future__ import annotations

from .stats import area, relapse_samples


def curves(results: dict[str, list[dict]], *names: str) -> dict:
    """The named rows as figures.fig_relapse draws them: {"at", "lines": {name: {"method", metric:
    [a curve per seed]}}}.
    """
    points = {name: [r["curve"] for r in results[name]] for name in names}
    metrics = [key for key in next(iter(points.values()))[0][0] if key not in ("at", "n")]
    lines = {
        name: (
            {"method": name} | {key: [[p[key] for p in curve] for curve in row] for key in metrics}
        )
        for name, row in points.items()
    }
    return {"at": [p["at"] for p in next(iter(points.values()))[0]], "lines": lines}


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


def nll_lost(row: list[dict], way: str, index: int) -> list[float]:
    """Of landscape.slices: how much of the forget NLL is lost at the index-th distance along one
    direction, one value a seed.
    """
    return [curve[0] - curve[index] for curve in slice_lines(row, way)]

"""Where does the spread of a paired difference come from, and what does a narrower interval cost?

A study on the tuning seeds alone: several orders of erasure for each base model, several of attack
for each erasure, and the same runs once more on other paths through the processor's kernels, which
round differently. `python -m lab.experiments.variance`, from chapters/, takes half an hour
on two cores and writes 04_variance.json and .png (to figures/ with KEEP=1).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from .. import files, jobs
from ..evidence import figures, plan, readings, stats, titles
from ..world import bases
from . import attacks, erasures, presets

ORDERS, SHUFFLES = 2, 2  # of erasure a seed, of attack an erasure
ARMS = ("EFUF", "SARE", "SARE, random step", "EFUF+SAM, equal work", "SARE, equal work")
PAIRS = {  # what is compared: SARE's arm, the other
    "SARE - EFUF": ("SARE", "EFUF"),
    "SARE - random step": ("SARE", "SARE, random step"),
    "SARE - SAM, equal work": ("SARE, equal work", "EFUF+SAM, equal work"),
}
COMPONENTS = ("seed", "erasure", "attack", "kernels")
ENDPOINTS = ("mean_chair_s", "relapse", "half_life", "chair_128")
# Other ways through one processor: name -> environment
PATHS: dict[str, dict[str, str]] = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX2, MKL too": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_CBWR": "AVX2",
    },
    "no vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "two threads": {"LAB_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
}
SHARED = ("base", "said", "clip", "scores")  # what every path starts from
DESIGNS = {  # label -> endpoint, orders, shuffles
    "before: samples until 50 %, 1 erasure, 1 attack": ("relapse", 1, 1),
    "mean CHAIR_s, 1 erasure, 1 attack": ("mean_chair_s", 1, 1),
    "now: mean CHAIR_s, 2 erasures, 2 attacks": ("mean_chair_s", 2, 2),
    "NLL half-life, 2 erasures, 2 attacks": ("half_life", 2, 2),
}


def measure(seeds: Sequence[int], arms: Sequence[str], orders: int, shuffles: int) -> list[dict]:
    """Erase and attack; one row a run: {"arm", "seed", "order", "attack", "level", "reached", and
    each of ENDPOINTS}.
    """
    setting = replace(presets.PRESETS["full"], seeds=tuple(seeds))
    found = attacks.attack_all(
        presets.book_attacks(setting, *arms, orders=orders, shuffles=shuffles)
    )
    return [
        {
            "arm": arm,
            "seed": result["spec"]["seed"],
            "order": result["spec"]["order"],
            "attack": result["shuffle"],
            "level": result["erased"]["stop_level"],
            "reached": result["erased"]["reached"],
        }
        | {name: readings.READ[name](result) for name in ENDPOINTS}
        for arm, row in found.items()
        for result in row
    ]


def on_path(name: str, seeds: Sequence[int]) -> list[dict]:
    """EFUF and SARE once a seed, in a process of its own whose kernels take another path."""
    cache = jobs.CACHE / "paths" / name.replace(" ", "-").replace(",", "")
    cache.mkdir(parents=True, exist_ok=True)
    for kind in SHARED:
        if not (cache / kind).exists():
            (cache / kind).symlink_to(jobs.CACHE / kind, target_is_directory=True)
    out = cache / "rows.json"
    command = [sys.executable, "-m", "lab.experiments.variance", "--rows", str(out)]
    environment = os.environ | PATHS[name] | {"LAB_CACHE": str(cache)}
    subprocess.run([*command, *map(str, seeds)], env=environment, cwd=files.CHAPTERS, check=True)
    return json.loads(out.read_text())


def differences(rows: Sequence[Mapping], pair: tuple[str, str], endpoint: str) -> dict:
    """{(seed, order, attack): the first arm's value minus the second's}."""
    values: dict[str, dict] = {arm: {} for arm in pair}
    for row in rows:
        if row["arm"] in pair:
            values[row["arm"]][row["seed"], row["order"], row["attack"]] = row[endpoint]
    one, other = (values[arm] for arm in pair)
    return {key: one[key] - other[key] for key in one}


def shares(rows: Sequence[Mapping], paths: Mapping[str, Sequence[Mapping]]) -> dict:
    """{pair: {endpoint: the components of its difference's variance, its mean, SD of the seed
    means, interval}}; "kernels": between paths, at one order (of the pair that was run on them).
    """
    found: dict[str, dict] = {}
    for label, pair in PAIRS.items():
        for endpoint in ENDPOINTS:
            single = differences(rows, pair, endpoint)
            seeds = sorted({seed for seed, _, _ in single})
            means = [np.mean([v for key, v in single.items() if key[0] == s]) for s in seeds]
            mean, low, high = stats.interval(means)
            row = stats.components(single) | {
                "mean": mean,
                "ci95": [low, high],
                "sd": float(np.std(means, ddof=1)),
            }
            if pair == ("SARE", "EFUF"):
                ways = [single, *(differences(path, pair, endpoint) for path in paths.values())]
                table = np.array([[way[seed, 0, 0] for way in ways] for seed in seeds])
                row["kernels"] = float(table.var(axis=1, ddof=1).mean())
            found.setdefault(label, {})[endpoint] = row
    return found


def half_width(parts: Mapping[str, float], n_seeds: int, orders: int, shuffles: int) -> float:
    """Of the 95 % t interval of a mean over seeds, in the endpoint's unit."""
    variance = (
        parts["seed"] + parts["erasure"] / orders + parts["attack"] / (orders * shuffles)
    ) / n_seeds
    return float(student.ppf(0.975, n_seeds - 1) * math.sqrt(variance))


def costs(parts: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float]) -> dict:
    """{design: {"seconds": core-seconds, "half_width": in units of the mean difference}} over
    numbers of seeds; seconds: of one "base" model, "erasure" and "attack".
    """
    found = {}
    for label, (endpoint, orders, shuffles) in DESIGNS.items():
        two_arms = 2 * orders * (seconds["erasure"] + shuffles * seconds["attack"])
        ns = [3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]
        found[label] = {
            "seeds": ns,
            "seconds": [n * (seconds["base"] + two_arms) for n in ns],
            "half_width": [
                half_width(parts[endpoint], n, orders, shuffles) / abs(parts[endpoint]["mean"])
                for n in ns
            ],
        }
    return found


def seconds_a_job(setting: presets.Preset) -> dict[str, float]:
    """Core-seconds of one base model (with what it says), and of an erasure and an attack, mean
    over EFUF and SARE: from the clock of the cache.
    """
    rows = presets.book_attacks(setting, "EFUF", "SARE")
    specs = [spec for row in rows.values() for spec in row]
    runs = [jobs.seconds("run", spec.run, erasures.RUN_SOURCES) for spec in specs]
    attacked = [jobs.seconds("attack", spec, attacks.ATTACK_SOURCES) for spec in specs]
    made = [
        float((folder / "seconds").read_text())
        for seed in setting.seeds
        for folder in (bases.base_folder(seed).parent, bases.said_folder(seed))
    ]
    return {
        "base": sum(made) / len(setting.seeds),
        "erasure": float(np.mean(runs)),
        "attack": float(np.mean(attacked)),
    }


def needed(parts: Mapping[str, Mapping[str, Mapping]], margins: Mapping[str, float]) -> dict:
    """{pair: {endpoint: seeds for 90 % power at its margin}} with the plan's orders and attacks."""
    judged = plan.load()
    return {
        pair: {
            endpoint: stats.n_for_power(
                math.sqrt(
                    row["seed"]
                    + row["erasure"] / judged.orders
                    + row["attack"] / (judged.orders * judged.attacks)
                ),
                margins[endpoint],
            )
            for endpoint, row in found.items()
            if endpoint in margins
        }
        for pair, found in parts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, help="write EFUF's and SARE's rows there, no more")
    parser.add_argument("seeds", nargs="*", type=int, default=[])
    given = parser.parse_args()
    judged = plan.load()
    seeds = given.seeds or list(judged.tuning)
    if given.rows:
        files.write_json(given.rows, measure(seeds, ("EFUF", "SARE"), 1, 1))
        return
    rows = measure(seeds, ARMS, ORDERS, SHUFFLES)
    paths = {name: on_path(name, seeds) for name in PATHS}
    setting = replace(presets.PRESETS["full"], seeds=tuple(seeds))
    parts, seconds = shares(rows, paths), seconds_a_job(setting)
    rows_of = [judged.rows[id] for id in judged.primaries]
    margins = {row.endpoint: row.margin for row in rows_of}
    results = {
        "components": {
            plan.ENDPOINTS[name][0]: {key: row[key] for key in COMPONENTS}
            for name, row in parts["SARE - EFUF"].items()
        },
        "cost": costs(parts["SARE - EFUF"], seconds),
        "pairs": parts,
        "seconds": seconds,
        "seeds_needed": needed(parts, margins),
        "rows": rows,
        "paths": paths,
    }
    caption = (
        f"SARE minus EFUF on the tuning seeds ({len(seeds)} base models, {ORDERS} orders of"
        f" erasure, {SHUFFLES} of attack each, {len(PATHS) + 1} paths through the processor)."
        " Right: what an interval costs."
    )
    how = {"title": titles.variance(results)}
    made = figures.publish("fig_variance", "04_variance", results, "full", seeds, caption, **how)
    print(f"written: {made}")
    if os.environ.get("KEEP") == "1":  # no run of the book makes it
        for path in (made, made.with_suffix(".json")):
            shutil.copy(path, files.ROOT / "figures")


if __name__ == "__main__":
    main()

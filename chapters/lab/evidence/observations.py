"""What was seen, one line a run, in rows.csv: every number of the ledger recomputes from it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import files
from .plan import Plan

COLUMNS = ("id", "arm", "seed", "order", "attack", "value", "level", "reached")
ARMS = ("baseline", "sare")
STAMP = "# plan: "  # the file's first line: this, and the plan's hash


class Observation(NamedTuple):
    """One value of one arm, in the endpoint's unit.

    order, attack: the index of the order of erasure and of attack, 0 where there is none. level:
    where the erasure ended, nats a token, None where nothing was erased. reached: whether that is
    the level asked.
    """

    seed: int
    order: int
    attack: int
    value: float
    level: float | None
    reached: bool


Pair = tuple[Sequence[Observation], Sequence[Observation]]  # the baseline's, sare's


def check(found: Mapping[str, Pair], plan: Plan) -> None:
    """Raise ValueError naming row and seed unless both arms hold the same seeds, each run once,
    with finite values, and levels where the plan compares them.
    """
    for id, pair in found.items():
        if id not in plan.rows:
            raise ValueError(
                f"row {id!r} is not in the plan (claims.toml): plan it before the run, or drop it."
            )
        for arm, observations in zip(ARMS, pair, strict=True):
            _check_arm(f"{id}, {arm}", observations, plan.rows[id].level is not None)
        baseline, sare = ({o.seed for o in arm} for arm in pair)
        if baseline != sare or not sare:
            odd = ", ".join(map(str, sorted(baseline ^ sare))) or "none given"
            raise ValueError(f"{id}: seeds of one arm alone: {odd}. Give both arms the same seeds.")


def _check_arm(where: str, observations: Sequence[Observation], needs_level: bool) -> None:
    seen = set()
    for o in observations:
        run = f"{where}, seed {o.seed}, order {o.order}, attack {o.attack}"
        if not math.isfinite(o.value) or not math.isfinite(o.level or 0.0):
            raise ValueError(f"{run}: {o.value}, level {o.level}: give finite numbers.")
        if needs_level and o.level is None:
            raise ValueError(f"{run}: no level, and the plan compares levels. Give it.")
        if o[:3] in seen:
            raise ValueError(f"{run}: given twice. Give each run once.")
        seen.add(o[:3])


def write(path: Path, found: Mapping[str, Pair], plan: Plan) -> None:
    """Write rows.csv whole or not at all: sorted, floats to 6 significant digits."""
    text = io.StringIO()
    text.write(f"{STAMP}{plan.hash}\n")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for id, pair in sorted(found.items()):
        for arm, observations in zip(ARMS, pair, strict=True):
            for o in sorted(observations, key=lambda o: o[:3]):
                level = "" if o.level is None else f"{o.level:.6g}"
                table.writerow([id, arm, *o[:3], f"{o.value:.6g}", level, int(o.reached)])
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text.getvalue())


def stamp(path: Path) -> str:
    """The hash of the plan that rows.csv was made under; ValueError if its first line has none."""
    first = files.read_text(path).partition("\n")[0]
    if not first.startswith(STAMP):
        raise ValueError(f"{path}: the first line names no plan. Make it again: `make execute`.")
    return first.removeprefix(STAMP).strip()


def read(path: Path, plan: Plan) -> dict[str, Pair]:
    """Read rows.csv; raises ValueError naming the file if it is of another plan, and file and line
    for what is no observation.
    """
    if stamp(path) != plan.hash:
        raise ValueError(
            f"{path}: made under plan {stamp(path)}, and claims.toml is plan {plan.hash}. Run `make"
            " execute` again, or put the plan back."
        )
    table = csv.reader(files.read_text(path).splitlines()[1:])
    if next(table, None) != list(COLUMNS):
        raise ValueError(f"{path}: line 2: the columns must be {','.join(COLUMNS)}. Mend them.")
    found: dict[str, tuple[list, list]] = {}
    for n, cells in enumerate(table, 3):
        try:
            id, arm, seed, order, attack, value, level, reached = cells
            which = ARMS.index(arm)
            run = (int(seed), int(order), int(attack), float(value))
            one = Observation(*run, float(level) if level else None, ("0", "1").index(reached) == 1)
        except ValueError as error:
            raise ValueError(
                f"{path}: line {n}: no observation ({error}). Make the file again: `make execute`."
            ) from error
        found.setdefault(id, ([], []))[which].append(one)
    try:
        check(found, plan)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found

"""The claims ledger: the plan's comparisons, and verdicts that code computes from rows.csv.

Chapters `record` what they observed; `make evidence` recomputes all that follows. Values are first
averaged over orders of erasure and of attack within a seed. The difference is taken seed by seed,
so that its interval (Student's t, 95 %) holds the spread of the base models too.

- *not comparable*: the row asks for a level, and the arms' mean levels lie more than 0.1 nats
  apart; or some run did not reach its level.
- The test. less, more: two-sided t test against no difference. not less, not more: the same
  against the margin.
- *supported*: the test's p, adjusted by Holm over the plan's primaries, is below alpha, and the
  difference lies on the claim's side. *refuted*: the same on the other side. A primary that is
  missing or not comparable counts as p = 1.
- *no difference larger than the margin*: two one-sided tests at alpha, with Holm over the primaries
  as a family of its own. What differs and is too small to matter comes here too; a bound that is
  kept (not less, not more) stays *supported*.
- *undecided*: none of these.
- All other rows are *exploratory*. Their reading (for, against, too small to matter, open)
  follows the same rules without Holm.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import files
from . import observations as seen
from . import pages, stats
from .observations import ARMS, Observation, Pair
from .pages import SAME, summary
from .plan import ENDPOINTS, HONEST, PATH, Plan, Row, load

APART = 0.1  # nats a token: arms whose mean levels differ by more are not compared
READINGS = {
    "supported": "for",
    "refuted": "against",
    SAME: "too small to matter",
    "undecided": "open",
}
SIDE = {"less": -1, "more": 1, "not less": 1, "not more": -1}  # the sign that the claim predicts
COMMAND = "make execute"
EMPTY = dict.fromkeys(
    (
        *("baseline", "sare", "diff", "se", "ci95", "n_seeds", "n_orders", "n_attacks"),
        *("seeds_agreeing", "level_baseline", "level_sare", "reached"),
        *("p", "p_holm", "p_same", "p_same_holm"),
    )
)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_pair(value: object) -> bool:
    return (
        value is None or isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    )


TESTED = ("baseline", "sare", "diff", "ci95", "n_seeds", "n_orders", "n_attacks", "seeds_agreeing")
KINDS: dict[str, Callable[[object], bool]] = {  # what a row of claims*.json holds, key by key
    **dict.fromkeys(EMPTY, lambda value: value is None or _is_number(value)),
    **dict.fromkeys(("ci95", "reached"), _is_pair),
    **dict.fromkeys(
        ("level_baseline", "level_sare"), lambda value: value is None or isinstance(value, dict)
    ),
    **dict.fromkeys(
        ("id", "claim", "command", "chapter", "metric", "endpoint", "expect", "verdict", "plan"),
        lambda value: isinstance(value, str),
    ),
    "reading": lambda value: value is None or isinstance(value, str),
    "primary": lambda value: isinstance(value, bool),
    "margin": _is_number,
}


def judge(observations: Mapping[str, Pair], plan: Plan) -> list[dict]:
    """The ledger: one dict a row of the plan, in its order.

    observations: {id: (the baseline's, sare's)}, in the endpoint's unit. Raises ValueError as
    observations.check does.
    """
    seen.check(observations, plan)
    rows = [_compared(row, observations.get(row.id), plan) for row in plan.rows.values()]
    primaries = [row for row in rows if row["primary"]]
    for key in ("p", "p_same"):
        usable = [r for r in primaries if r["verdict"] is None]
        ps = stats.holm([r[key] for r in usable], len(plan.primaries))
        for row, p in zip(usable, ps, strict=True):
            row[f"{key}_holm"] = p
    for row in rows:
        if row["verdict"] is None and row["primary"]:
            row["verdict"] = _outcome(row, row["p_holm"], row["p_same_holm"], plan.alpha)
        elif row["verdict"] is None:
            outcome = _outcome(row, row["p"], row["p_same"], plan.alpha)
            row["verdict"], row["reading"] = "exploratory", READINGS[outcome]
    return rows


def _outcome(row: Mapping, p: float, p_same: float, alpha: float) -> str:
    """The verdict of a row that may be compared, by the rules above."""
    right = SIDE[row["expect"]] * (row["diff"] - _bound(row["expect"], row["margin"])) > 0
    if row["expect"].startswith("not") and right and p < alpha:
        return "supported"
    if p_same < alpha:
        return SAME
    if p < alpha:
        return "supported" if right else "refuted"
    return "undecided"


def _bound(expect: str, margin: float) -> float:
    """The difference that the test is against."""
    return {"not less": -margin, "not more": margin}.get(expect, 0.0)


def _compared(row: Row, pair: Pair | None, plan: Plan) -> dict:
    """A row of the ledger; its verdict is still None where the plan's rules are to give it."""
    words, unit = ENDPOINTS[row.endpoint]
    found = {
        "id": row.id,
        "claim": plan.claims[row.id[:2]],
        "command": COMMAND,
        "chapter": row.chapter,
        "metric": f"{words}, {unit}: {row.baseline} against {row.sare}",
        "endpoint": row.endpoint,
        "primary": row.primary,
        "expect": row.expect,
        "margin": row.margin,
    } | EMPTY
    last = {"verdict": "not tested", "reading": None, "plan": plan.hash}
    if pair is None:
        return found | last
    _check_asked(row, pair)
    found |= _differences(row, pair) | _levels(row, pair)
    return found | last | {"verdict": None if _is_comparable(row, pair) else "not comparable"}


def differences_of(pair: Pair) -> dict[int, float]:
    """{seed: SARE's value minus the baseline's}, each averaged over orders and attacks first."""
    baseline, sare = (_by_seed(arm, "value") for arm in pair)
    return {seed: sare[seed] - baseline[seed] for seed in sorted(sare)}


def _differences(row: Row, pair: Pair) -> dict:
    baseline, sare = (_by_seed(arm, "value") for arm in pair)
    differences = list(differences_of(pair).values())
    found = stats.paired([sare[s] for s in sorted(sare)], [baseline[s] for s in sorted(sare)])
    return {
        "baseline": float(np.mean(list(baseline.values()))),
        "sare": float(np.mean(list(sare.values()))),
        "diff": found["diff"],
        "se": stats.standard_error(differences) if len(differences) > 1 else None,
        "ci95": found["ci95"],
        "n_seeds": found["n_seeds"],
        "n_orders": max(len({o.order for o in arm}) for arm in pair),
        "n_attacks": max(len({o.attack for o in arm}) for arm in pair),
        "seeds_agreeing": found["seeds_agreeing"],
        "p": stats.two_sided(differences, _bound(row.expect, row.margin)),
        "p_same": stats.tost(differences, row.margin),
    }


def _by_seed(arm: Sequence[Observation], key: str) -> dict[int, float]:
    """{seed: mean over orders and attacks} of values or levels; seeds without any are left out."""
    found: dict[int, list[float]] = {}
    for o in arm:
        if getattr(o, key) is not None:
            found.setdefault(o.seed, []).append(getattr(o, key))
    return {seed: float(np.mean(values)) for seed, values in sorted(found.items())}


def _levels(row: Row, pair: Pair) -> dict:
    """Where each arm's erasures ended: the mean, and the largest distance from what was asked."""
    found: dict[str, object] = {}
    for name, arm, other in zip(ARMS, pair, reversed(pair), strict=True):
        own, partner = _by_seed(arm, "level"), _by_seed(other, "level")
        far = []
        if row.level == HONEST:
            far = [abs(o.level - partner[o.seed]) for o in arm]
        elif row.level is not None:
            far = [abs(o.level - row.level) for o in arm]
        mean = float(np.mean(list(own.values()))) if own else None
        worst = max(far) if far else None
        found[f"level_{name}"] = {"mean": mean, "worst": worst} if own else None
    return found | {"reached": [float(np.mean([o.reached for o in arm])) for arm in pair]}


def _check_asked(row: Row, pair: Pair) -> None:
    """Raise ValueError if both arms reached another level than the plan asks for."""
    if not isinstance(row.level, (int, float)) or not all(o.reached for arm in pair for o in arm):
        return
    means = [float(np.mean([o.level for o in arm])) for arm in pair]
    if all(abs(mean - row.level) > APART for mean in means):
        raise ValueError(
            f"{PATH}: row.{row.id}.level: {row.level} nats are asked, and both arms reached"
            f" {means[0]:.2f}. Plan the level that the runs are given (erasures.STOP_NLL), or give"
            " them this one."
        )


def _is_comparable(row: Row, pair: Pair) -> bool:
    if any(o.level is not None and not o.reached for arm in pair for o in arm):
        return False
    if row.level is None:
        return True
    baseline, sare = (np.mean(list(_by_seed(arm, "level").values())) for arm in pair)
    return bool(abs(baseline - sare) <= APART + 1e-9)  # 8.2 - 8.1 is a rounding above 0.1


def record(found: Mapping[str, Pair], preset: str, seeds: Sequence[int]) -> list[dict]:
    """Merge observations into rows.csv where this preset and these seeds put their figures, judge
    all that stands there, and return the ledger's rows of the given ids.

    found: {id: (the baseline's, sare's)}; they replace the id's earlier ones. A rows.csv of another
    plan is begun anew: plans do not mix. Raises ValueError as observations.check does.
    """
    plan, folder = load(), files.figures_folder(preset, seeds)
    seen.check(found, plan)
    path = folder / "rows.csv"
    with files.alone("rows"):  # what another run adds between reading and writing would be lost
        known = {}
        if path.exists() and seen.stamp(path) == plan.hash:
            known = seen.read(path, plan)
        seen.write(path, known | dict(found), plan)
        return [row for row in _rejudge(path, plan) if row["id"] in found]


def _rejudge(path: Path, plan: Plan) -> list[dict]:
    """Write the claims*.json that belongs to a rows*.csv, from nothing but its text; return it."""
    rows = files.rounded(judge(seen.read(path, plan), plan))
    files.write_json(_claims_of(path), rows)
    return rows


def _claims_of(path: Path) -> Path:
    """claims_X.json, which is made of rows_X.csv."""
    return path.with_name(path.stem.replace("rows", "claims", 1) + ".json")


def rows_files(folder: Path) -> list[Path]:
    """The folder's rows*.csv, the book's own first."""
    return sorted(folder.glob("rows*.csv"), key=lambda path: (path.name != "rows.csv", path))


def rebuild(folder: Path = files.ROOT / "figures") -> list[Path]:
    """Recompute claims*.json from rows*.csv; returns what was read. Raises ValueError if there is
    no rows.csv, one of another plan, or one with a tuning seed.
    """
    plan, paths = load(), rows_files(folder)
    if folder / "rows.csv" not in paths:
        raise ValueError(f"{folder / 'rows.csv'}: not there. Run `make execute` first.")
    for path in paths:
        tried = {o.seed for pair in seen.read(path, plan).values() for arm in pair for o in arm}
        if looked_at := sorted(tried & set(plan.tuning)):
            raise ValueError(
                f"{path}: seed {looked_at[0]} is a tuning seed of claims.toml: settings were tried"
                " on it, so it judges nothing. Take it out, or run other seeds."
            )
        _rejudge(path, plan)
    return paths


def read(path: Path, plan: Plan) -> list[dict]:
    """The rows of a claims*.json; raises ValueError naming the file and the row if it holds
    anything else, or is of another plan.
    """
    rows = files.read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: no list of rows. Make it again: `make evidence`.")
    hashes = {str(row.get("plan")) for row in rows}
    if hashes != {plan.hash}:
        raise ValueError(
            f"{path}: made under plan {', '.join(sorted(hashes))}, and claims.toml is plan"
            f" {plan.hash}. Run `make execute` again, or put the plan back."
        )
    seen = set()
    for number, row in enumerate(rows, 1):
        odd = _odd(row) or (f"{row['id']!r} stands there twice" if row["id"] in seen else "")
        if odd or row["id"] not in plan.rows:
            odd = odd or f"{row['id']!r:.60} is no row of the plan"
            raise ValueError(f"{path}, row {number}: {odd}. Make it again: `make evidence`.")
        seen.add(row["id"])
    return rows


def _odd(row: Mapping) -> str:
    """What is wrong with a row of claims*.json: "" if it is what `judge` writes."""
    for key, is_right in KINDS.items():
        if key not in row:
            return f"{key!r} is missing"
        if not is_right(row[key]):
            return f"{key!r} is {row[key]!r:.60}, of a wrong kind"
    if row["verdict"] not in pages.ORDER and row["verdict"] != "exploratory":
        return f"the verdict {row['verdict']!r:.60} is none of the ledger's"
    for key in TESTED if row["verdict"] != "not tested" else ():
        if row[key] is None:
            return f"{key!r} of a tested row is missing"
    return ""


def blocks(folder: Path) -> dict[str, list[dict]]:
    """The ledger on each set of seeds, the book's first: {"the book": rows, "seeds from 1101":
    rows}; of the claims*.json that have their rows*.csv beside them.
    """
    plan, found = load(), {}
    for path in rows_files(folder):
        name = path.stem.removeprefix("rows").removeprefix("_").replace("-", " ") or "the book"
        found[name] = read(_claims_of(path), plan)
    return found


def page(folder: Path) -> str:
    """figures/claims.md, from the claims*.json of a figures folder."""
    return pages.page(blocks(folder), load())


def write(readme: Path = files.ROOT / "README.md", folder: Path = files.ROOT / "figures") -> None:
    """Recompute claims*.json, write claims.md and the README's table; ValueError as `rebuild`, or
    if the README lacks its two marks.
    """
    rebuild(folder)
    first, *others = blocks(folder).values()
    pages.put_table(readme, summary(first, load(), others[0] if others else ()))
    files.write_text(folder / "claims.md", page(folder))


def keep(run: Path, folder: Path = files.ROOT / "figures") -> Path:
    """Copy the claims and observations of a run on other seeds (build/figures/full-seeds-from-N, or
    headline-) to figures/{claims,rows}_seeds-from-N; returns the claims.
    """
    preset, _, name = run.name.partition("-")
    copied = {run / "claims.json": f"claims_{name}.json", run / "rows.csv": f"rows_{name}.csv"}
    missing = [path.name for path in copied if not path.is_file()]
    if missing or preset not in ("full", "headline") or not name.startswith("seeds-from-"):
        raise ValueError(
            f"{run}: no {' and '.join(missing) or 'run'} of a full or headline run on other seeds:"
            " give build/figures/full-seeds-from-N."
        )
    for path, target in copied.items():
        with files.whole(folder / target) as part:
            shutil.copy(path, part)
    return folder / f"claims_{name}.json"

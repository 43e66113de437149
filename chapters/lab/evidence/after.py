"""Looks that no plan named, taken after the results were known: figures/after.json.

They are made from rows*.csv alone and decide nothing: explorations that qualify a verdict. Each is
a list with one paired difference a seed, so that a marker may show its mean and interval
(quotes.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scipy.stats import pearsonr

from .. import files
from . import ledger
from . import observations as seen
from .plan import Plan, load
from .tables import ATTACK_IDS

TUNED = ("LoRA", "projector", "one place")  # of C7's attacks: these train on hallucinated captions
PROMPTS = ("prefilled", "leading")
BOTH = "both blocks"


def of_blocks(folder: Path, plan: Plan) -> dict[str, dict[str, dict[int, float]]]:
    """{set of seeds: {id: {seed: difference}}}, the book's first, and all of them as one set."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for path in ledger.rows_files(folder):
        name = "the book" if path.name == "rows.csv" else path.stem.removeprefix("rows_")
        found[name] = {
            id: ledger.differences_of(pair) for id, pair in seen.read(path, plan).items()
        }
    ids = dict.fromkeys(id for block in found.values() for id in block)
    together = {id: {s: d for b in found.values() for s, d in b.get(id, {}).items()} for id in ids}
    return found | {BOTH: together}


def over(block: Mapping[str, Mapping[int, float]], attacks: tuple[str, ...]) -> list[float]:
    """The mean of some of C7's differences, a value a seed; [] where one of them was not made."""
    rows = [block.get(ATTACK_IDS[attack], {}) for attack in attacks]
    shared = sorted(set.intersection(*map(set, rows)))
    return [sum(row[seed] for row in rows) / len(rows) for seed in shared]


def together(block: Mapping[str, Mapping[int, float]], one: str, other: str) -> dict[str, float]:
    """Pearson's r of two rows' differences over the seeds that both have, and its p."""
    seeds = sorted(set(block.get(one, {})) & set(block.get(other, {})))
    if len(seeds) < 3:
        return {}
    r, p = pearsonr([block[one][seed] for seed in seeds], [block[other][seed] for seed in seeds])
    return {"r": float(r), "p": float(p), "n": len(seeds)}


def look(folder: Path, plan: Plan) -> dict[str, dict]:
    """What after.json holds under "results"."""
    blocks = of_blocks(folder, plan)
    others = tuple(attack for attack in ATTACK_IDS if attack not in TUNED)
    kinds = {"relearning": TUNED, "the others": others, "prompts": PROMPTS}
    return {
        "primaries": {id: list(blocks[BOTH].get(id, {}).values()) for id in plan.primaries},
        "C7": {
            kind: {name: over(block, attacks) for name, block in blocks.items()}
            for kind, attacks in kinds.items()
        },
        "C3a and C6a": {name: together(block, "C3a", "C6a") for name, block in blocks.items()},
        "C8a and C6a": {name: together(block, "C8a", "C6a") for name, block in blocks.items()},
    }


def write(folder: Path = files.ROOT / "figures") -> Path:
    """Write after.json beside the rows; ValueError as observations.read."""
    path = folder / "after.json"
    files.write_json(path, {"results": look(folder, load())})
    return path

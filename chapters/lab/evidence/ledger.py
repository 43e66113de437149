"""The claims ledger: what the SARE abstract asserts, what we measured, and a verdict that code
computes from the interval.

Chapters `record` their rows into claims.json beside their figures; from chapters/,
`python -m lab.evidence.ledger` writes the book's tables into figures/claims.md and a summary into
the README. Given ../build/figures/full-seeds-from-101, it first keeps that run's claims in
figures/: do the verdicts hold on its seeds?
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import files
from . import stats

CLAIMS = {
    "C1": "standard erasure is superficial: light relearning brings the hallucinations back",
    "C2": "standard erasure ends in sharp minima",
    "C3": "Targeted-SAM flattens the landscape around the hallucinated concepts",
    "C4": "SARE erases better than the baseline",
    "C5": "general generation quality is kept",
    "C6": "suppression persists under relearning",
    "C7": "suppression persists under other weight updates and adversarial prompts",
    "C8": "flatness is the cause, not mere erasure strength or compute",
}
MARK = "<!-- claims: written by `python -m lab.evidence.ledger` from figures/claims.json -->"
VERDICTS = ("supported", "undecided", "not supported")


def row(
    id: str,
    chapter: str,
    metric: str,
    baseline: Sequence[float],
    sare: Sequence[float],
    want: int,
    margin: float = 0.0,
    note: str = "",
) -> dict:
    """One row: the paired difference sare - baseline (one value a seed each) and its verdict.

    want: the sign that the claim predicts. margin: what a claim that something is kept may lose
    (stats.verdict). id: a key of CLAIMS, with a letter where a claim is tested twice ("C6a").
    Raises KeyError for a claim that is not one.
    """
    found = stats.paired(sare, baseline)
    return {
        "id": id,
        "claim": CLAIMS[id[:2]],
        "command": "make execute",
        "chapter": chapter,
        "n_seeds": found["n_seeds"],
        "metric": metric,
        "baseline": float(np.mean(baseline)),
        "sare": float(np.mean(sare)),
        "diff": found["diff"],
        "ci95": found["ci95"],
        "seeds_agreeing": found["seeds_agreeing"],
        "verdict": stats.verdict(sare, baseline, want, margin),
        "note": note,
    }


def record(rows: Sequence[dict], preset: str, seeds: Sequence[int]) -> Path:
    """Merge rows into claims.json where this preset and these seeds put their figures; they replace
    all rows of their chapter.
    """
    path = files.figures_folder(preset, seeds) / "claims.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    chapters = {r["chapter"] for r in rows}
    known = (
        {r["id"]: r for r in json.loads(path.read_text()) if r["chapter"] not in chapters}
        if path.exists()
        else {}
    )
    known |= {r["id"]: r for r in rows}
    for id, claim in CLAIMS.items():
        tested = [key for key in known if key[:2] == id and known[key]["verdict"] != "not tested"]
        if tested:
            known = {key: r for key, r in known.items() if key in tested or key[:2] != id}
        else:
            known[id] = {
                "id": id,
                "claim": claim,
                "command": "",
                "chapter": "",
                "n_seeds": 0,
                "metric": "",
                "baseline": None,
                "sare": None,
                "diff": None,
                "ci95": None,
                "seeds_agreeing": None,
                "verdict": "not tested",
                "note": "",
            }
    files.write_json(path, [known[id] for id in sorted(known)])
    return path


def table(rows: Sequence[dict]) -> str:
    """The ledger as Markdown, claims that fail on top."""
    order = ["not supported", "undecided", "supported", "not tested"]
    lines = [
        (
            "| claim | measured (chapter) | before or baseline | after or SARE | difference, 95 %"
            " interval | seeds | verdict |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: (order.index(r["verdict"]), r["id"])):
        if r["verdict"] == "not tested":
            lines.append(f"| **{r['id']}** {r['claim']} | | | | | | not tested |")
            continue
        low, high = r["ci95"]
        note = f" {r['note']}" if r["note"] else ""
        lines.append(
            f"| **{r['id']}** {r['claim']} | {r['metric']}{note} ({r['chapter']}) |"
            f" {r['baseline']:.2f} | {r['sare']:.2f} | {r['diff']:+.2f} [{low:.2f}, {high:.2f}] |"
            f" {r['seeds_agreeing']} of {r['n_seeds']} | **{r['verdict']}** |"
        )
    return "\n".join(lines)


def seeds_table(
    books: Mapping[str, Sequence[dict]], claims: Sequence[str] = ("C1", "C3", "C6", "C8")
) -> str:
    """The claims about robustness and flatness on each set of seeds, as Markdown: {name of the set:
    its rows}.
    """
    found = {name: {r["id"]: r for r in rows} for name, rows in books.items()}
    ids = sorted({id for rows in found.values() for id in rows if id[:2] in claims})
    lines = [f"| claim | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for id in ids:
        cells = []
        for rows in found.values():
            r = rows.get(id)
            tested = r is not None and r["verdict"] != "not tested"
            cells.append(
                f"{r['diff']:+.2f} [{r['ci95'][0]:.2f}, {r['ci95'][1]:.2f}] **{r['verdict']}**"
                if tested
                else ""
            )
        lines.append(f"| **{id}** | {' | '.join(cells)} |")
    return "\n".join(lines)


def books(folder: Path) -> dict[str, list[dict]]:
    """The claims files of a figures folder, the book's own first: {"the book (8 seeds at most)":
    rows, ...}.
    """
    paths = sorted(
        folder.glob("claims*.json"), key=lambda path: (path.name != "claims.json", path.name)
    )
    rows = {
        path.stem.removeprefix("claims_").replace("-", " "): json.loads(path.read_text())
        for path in paths
    }

    def title(name: str, found: list[dict]) -> str:
        most = max(row["n_seeds"] for row in found)
        return f"{name.replace('claims', 'the book')} ({most} seeds at most)"

    return {title(name, found): found for name, found in rows.items()}


def summary(rows: Sequence[dict]) -> str:
    """Per claim, how many of its rows came out how, as Markdown."""
    lines = [f"| the paper's claim | {' | '.join(VERDICTS)} |", "|---|---|---|---|"]
    for id, claim in CLAIMS.items():
        found = [r["verdict"] for r in rows if r["id"][:2] == id]
        counts = " | ".join(str(found.count(verdict)) for verdict in VERDICTS)
        lines.append(f"| **{id}** {claim} | {counts} |")
    return "\n".join(lines)


def page(folder: Path) -> str:
    """The whole ledger as a Markdown page: the book's rows, then the other sets of seeds."""
    rows = json.loads((folder / "claims.json").read_text())
    return f"""# The claims ledger

Written by `python -m lab.evidence.ledger` from claims*.json; do not edit. A verdict comes from the
95 % t interval of the difference paired by seed: *supported* if it lies wholly on the claim's side
of zero, *not supported* if wholly on the other side, *undecided* if it spans zero. Where a claim
says that something is *kept*, its side begins at the margin that the row names.

{table(rows)}

## The same commands on other seeds

{seeds_table(books(folder))}
"""


def write(readme: Path = files.ROOT / "README.md", folder: Path = files.ROOT / "figures") -> None:
    """Write claims.md, and the summary between the README's two marks; ValueError without them."""
    parts = readme.read_text().split(MARK)
    if len(parts) != 3:
        raise ValueError(f"{readme}: this mark must stand there twice, around the table: {MARK}")
    (folder / "claims.md").write_text(page(folder))
    counts = summary(json.loads((folder / "claims.json").read_text()))
    readme.write_text(f"{parts[0]}{MARK}\n{counts}\n{MARK}{parts[2]}")


def keep(run: Path, folder: Path = files.ROOT / "figures") -> Path:
    """Copy the claims of another run of the full preset (build/figures/full-seeds-from-N) to
    figures/claims_seeds-from-N.json.
    """
    if not (run / "claims.json").is_file() or not run.name.startswith("full-"):
        raise ValueError(
            f"{run}: no claims.json of a full run on other seeds: give"
            " build/figures/full-seeds-from-N."
        )
    return Path(
        shutil.copy(run / "claims.json", folder / f"claims_{run.name.removeprefix('full-')}.json")
    )


if __name__ == "__main__":
    for given in sys.argv[1:]:
        keep(Path(given))
    write()

"""The reproduction report: what the committed run found beside what a new run found, by claim.

`make execute` prints it and writes build/reproduction.html. From chapters/,
`python -m lab.evidence.report ../build/figures/full` redoes it from that folder's claims.json and
run.json, in seconds.
"""

from __future__ import annotations

import math
import platform
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist

from .. import files
from ..shell import ended

OUTCOMES = ("reproduced", "consistent but undecided", "not reproduced", "not run")
MARKS = dict(zip(OUTCOMES, ("✓", "~", "✗", "–"), strict=True))  # beside the colours
PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy")
Z = NormalDist().inv_cdf(0.975)  # 95 % of a normal distribution, two-sided
FEWEST = 3  # seeds; from two, a normal interval of 95 % holds the truth in 70 % of cases
RULE = (
    "A claim's two estimates are compared by the 95 % interval of their difference: normal, from"
    " the two standard errors.",
    "Not reproduced: this interval excludes zero, whatever the verdicts.",
    "Reproduced: it spans zero, and the verdict (of an exploratory row: the reading) is the same.",
    "Consistent but undecided: it spans zero, and they differ, or are undecided, open or not"
    " comparable in both, with unequal estimates; or a run has fewer than"
    f" {FEWEST} seeds, too few for a standard error to be trusted, or no finite interval.",
    "Not run: one side has no results, or those of another endpoint.",
    "Where both runs use the same seeds, the interval is rather too wide. On other seeds, about one"
    " row in twenty comes out as not reproduced by chance alone.",
)
ROW = {  # what a row of claims.json must hold, and of which type
    "id": str,
    "claim": str,
    "metric": str,
    "endpoint": str,
    "primary": bool,
    "verdict": str,
    "reading": (str, type(None)),
    "n_seeds": (int, type(None)),  # none where nothing was tested
    "diff": (int, float, type(None)),
    "se": (int, float, type(None)),
    "ci95": (list, type(None)),
}
MACHINE = {"plan": str, "preset": str, "seeds": list, "processor": str, "versions": dict}
HEAD = ("committed", "new", "new - committed")
WIDTHS = (5, 28, 28, 28)  # of the terminal's columns: the id, then HEAD
WIDE = 260  # of a drawing, px
KEY = (
    'Upper bar: <b class="committed">committed</b>. Lower bar: <b class="new">new</b>.'
    " Upright line: zero. An end without a cap is infinite."
)
MEND = "Write it again with `make execute`, or take the committed file back from git."
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Reproduction report</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; --ink: #1f2937; --paper: #ffffff; --soft: #5b6472;
  --rule: #d5d9e0; --committed: #9a5b00; --new: #01579b; --good: #0f6b3a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --paper: #16181d; --soft: #a3acb9;
  --rule: #3a404a; --committed: #f0a63c; --new: #6cb8f5; --good: #6fd39b; --bad: #ff8a80; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem;
  border-bottom: 1px solid var(--rule); }
small { color: var(--soft); }
.warning { border-left: 4px solid var(--bad); padding-left: .7rem; font-weight: 600; }
.outcome { white-space: nowrap; font-weight: 600; }
.reproduced { color: var(--good); }
.not-reproduced { color: var(--bad); }
.not-run, .consistent-but-undecided { color: var(--soft); }
b.committed { color: var(--committed); }
b.new { color: var(--new); }
svg { display: block; }
svg path { fill: none; stroke-width: 2; }
.committed path { stroke: var(--committed); }
.committed circle { fill: var(--committed); }
.new path { stroke: var(--new); }
.new circle { fill: var(--new); }
.zero { stroke: var(--soft); stroke-dasharray: 3 3; }
</style></head><body>
<h1>Reproduction report</h1>
BODY
</body></html>
"""


@dataclass(frozen=True)
class Run:
    """What a figures folder holds: the ledger's rows by id, and where they come from (machine)."""

    rows: dict[str, dict]
    machine: dict


@dataclass(frozen=True)
class Line:
    """A claim's row on both sides, None where a side has none; apart: the new estimate minus the
    committed one and its 95 % interval, (difference, low, high), None unless both have results.
    """

    id: str
    outcome: str
    committed: dict | None
    new: dict | None
    apart: tuple[float, float, float] | None

    @property
    def row(self) -> dict:
        """The side that names the claim: the committed one, unless only the new one was run."""
        return self.committed if _tested(self.committed) or not self.new else self.new


def processor() -> str:
    """The processor's name and its widest vector instructions, "EPYC 7B13, avx2": the two that
    decide how sums are rounded. Without /proc/cpuinfo only what Python knows.
    """
    path = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "flags" not in facts:
        return name
    flags = facts["flags"].split()
    return f"{name}, {next((flag for flag in ('avx512f', 'avx2') if flag in flags), 'no avx2')}"


def machine(preset: str, seeds: Sequence[int], plan: str) -> dict:
    """What run.json holds: what ran, and where. plan: its hash, "" for none."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return {
        "plan": plan,
        "preset": preset,
        "seeds": list(seeds),
        "processor": processor(),
        "versions": versions,
    }


def read(folder: Path) -> Run:
    """The run that wrote this figures folder.

    Raises ValueError naming the file, the row and the key if claims.json or run.json is missing,
    broken, or of another form.
    """
    rows, found = _json(folder / "claims.json", list), {}
    for place, row in enumerate(rows):
        where = f"{folder / 'claims.json'}, row {place + 1}"
        _check(where, row, ROW)
        _check_numbers(where, row)
        if row["id"] in found:
            raise ValueError(f"{where}: the id {row['id']!r} stands there twice. {MEND}")
        found[row["id"]] = row
    where = _json(folder / "run.json", dict)
    _check(str(folder / "run.json"), where, MACHINE)
    return Run(found, where)


def _json(path: Path, kind: type) -> list | dict:
    content = files.read_json(path, MEND)
    if not isinstance(content, kind):
        raise ValueError(f"{path}: the file holds no {kind.__name__}. {MEND}")
    return content


def _check(where: str, found: object, needed: Mapping[str, type | tuple[type, ...]]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where}: {found!r} is no object. {MEND}")
    for key, kind in needed.items():
        if key not in found:
            raise ValueError(f"{where}: {key!r} is missing. {MEND}")
        # Python counts True as a number
        if not isinstance(found[key], kind) or isinstance(found[key], bool) is not (kind is bool):
            raise ValueError(f"{where}: {key!r} is {found[key]!r}, of a wrong type. {MEND}")


def _check_numbers(where: str, row: dict) -> None:
    """An estimate comes with an interval; infinite bounds are allowed."""
    if not _tested(row):
        return
    if row["n_seeds"] is None:
        raise ValueError(f"{where}: 'n_seeds' of a tested row is None. {MEND}")
    if row["diff"] is None or not math.isfinite(row["diff"]):
        raise ValueError(f"{where}: 'diff' of a tested row is {row['diff']!r}. {MEND}")
    ci95 = row["ci95"] or ()
    if len(ci95) != 2 or not all(type(x) in (int, float) and not math.isnan(x) for x in ci95):
        raise ValueError(f"{where}: 'ci95' is {row['ci95']!r}, not two numbers. {MEND}")


UNDECIDED = ("undecided", "open", "not comparable")


def _tested(row: dict | None) -> bool:
    return row is not None and row["verdict"] != "not tested"


def _decided(row: dict) -> bool:
    """Whether its seeds are enough for an interval."""
    enough = row["n_seeds"] >= FEWEST and row["se"] is not None
    return enough and all(map(math.isfinite, (row["se"], *row["ci95"])))


def conclusion(row: dict) -> str:
    """The verdict; of an exploratory row its reading, unless the arms were not comparable."""
    exploratory = not row["primary"] and row["verdict"] == "exploratory"
    return (row["reading"] or "open") if exploratory else row["verdict"]


def apart(committed: dict, new: dict) -> tuple[float, float, float]:
    """new minus committed estimate and its 95 % interval, (difference, low, high), as of
    independent runs: normal, from both standard errors; infinite where one is not to be trusted.
    """
    difference = new["diff"] - committed["diff"]
    if not (_decided(committed) and _decided(new)):
        return difference, -math.inf, math.inf
    half = Z * math.hypot(committed["se"], new["se"])
    return difference, difference - half, difference + half


def _line(id: str, committed: dict | None, new: dict | None) -> Line:
    """RULE, for one claim."""
    same = committed is None or new is None or committed["endpoint"] == new["endpoint"]
    if not (same and _tested(committed) and _tested(new)):
        return Line(id, "not run", committed, new, None)
    found = apart(committed, new)
    if not found[1] <= 0 <= found[2]:
        outcome = "not reproduced"
    elif math.isinf(found[1]) or conclusion(committed) != conclusion(new):
        outcome = "consistent but undecided"
    elif conclusion(new) in UNDECIDED and new["diff"] != committed["diff"]:
        outcome = "consistent but undecided"  # noise agrees with noise
    else:
        outcome = "reproduced"
    return Line(id, outcome, committed, new, found)


def compare(committed: Run, new: Run) -> list[Line]:
    """One line an id of either side, the primary ones first."""
    ids = committed.rows.keys() | new.rows.keys()
    lines = [_line(id, committed.rows.get(id), new.rows.get(id)) for id in ids]
    return sorted(lines, key=lambda line: (not line.row["primary"], line.id))


def counts(lines: Sequence[Line]) -> list[tuple[str, int, int]]:
    """(outcome, how many primary claims, how many exploratory ones), in OUTCOMES' order."""
    pairs = [(line.outcome, line.row["primary"]) for line in lines]
    return [(o, pairs.count((o, True)), pairs.count((o, False))) for o in OUTCOMES]


def warnings(committed: dict, new: dict) -> list[str]:
    """Of the two machines: why the runs may differ for another reason than chance."""
    found = []
    if committed["plan"] != new["plan"]:
        found.append(
            f"The plans differ ({committed['plan'] or 'none'} and {new['plan'] or 'none'}): the"
            " two runs were not asked the same."
        )
    if new["preset"] == "fast":
        found.append(
            "The new run is not the full preset (a fast run has two seeds: expect undecided)."
        )
    elif new["preset"] != "full":
        found.append(f"The new run's preset is {new['preset']!r}, not 'full': it has fewer rows.")
    return found


def promise(committed: dict, new: dict) -> str:
    """Of the two machines: whether the figures' JSON has to be equal to the byte."""
    odd = [key for key in MACHINE if committed[key] != new[key]]
    if not odd:
        return (
            f"Both have the same {', '.join(MACHINE)}: from the same code, their JSON and CSV have"
            " to be equal to the byte, on any number of cores, and however often a run was stopped."
        )
    return (
        f"Not the same: {', '.join(odd)}. Equal bytes are promised for equal ones alone, on a CPU:"
        " another processor, a GPU or another version rounds differently. The claims are compared."
    )


def facts(committed: dict, new: dict) -> list[tuple[str, str, str]]:
    """(what, committed, new) of the two machines."""
    names = dict.fromkeys([*committed["versions"], *new["versions"]])
    return [
        ("preset", committed["preset"], new["preset"]),
        ("seeds", *(" ".join(map(str, side["seeds"])) for side in (committed, new))),
        ("processor", committed["processor"], new["processor"]),
        ("plan", committed["plan"] or "none", new["plan"] or "none"),
        *((n, *(str(side["versions"].get(n, "")) for side in (committed, new))) for n in names),
    ]


def _decimals(line: Line) -> int:
    """Decimals that give the largest number of a line three digits."""
    rows = [row for row in (line.committed, line.new) if _tested(row)]
    numbers = [abs(x) for row in rows for x in (row["diff"], *row["ci95"]) if math.isfinite(x)]
    scale = max(numbers, default=0) or 1
    return min(6, max(0, 2 - math.floor(math.log10(scale))))


def _spell(difference: float, low: float, high: float, decimals: int) -> str:
    return f"{difference:+.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _sides(line: Line) -> list[tuple[str, str]]:
    """(estimate, conclusion) of the committed run and of the new one, then (difference, "")."""
    decimals = _decimals(line)
    found = [
        (_spell(row["diff"], *row["ci95"], decimals), conclusion(row))
        if _tested(row)
        else ("no results", "")
        for row in (line.committed, line.new)
    ]
    return [*found, (_spell(*line.apart, decimals) if line.apart else "", "")]


def _columns(cells: Sequence[object], widths: Sequence[int]) -> list[str]:
    """Lines of text: cells side by side, each wrapped to its width."""
    wrapped = [textwrap.wrap(str(cell), width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for i in range(max(map(len, wrapped))):
        parts = [cell[i] if i < len(cell) else "" for cell in wrapped]
        lines.append("  ".join(p.ljust(w) for p, w in zip(parts, widths, strict=True)).rstrip())
    return lines


def text(committed: Run, new: Run) -> str:
    """The report for a terminal, under 100 columns."""
    lines, machines = compare(committed, new), (committed.machine, new.machine)
    out = ["REPRODUCTION REPORT", "", *_columns(("", "primary", "exploratory"), (24, 11, 11))]
    for row in counts(lines):
        out += _columns(row, (24, 11, 11))
    for warning in warnings(*machines):
        out += ["", *textwrap.wrap(f"WARNING: {warning}", 96)]
    out += ["", *_columns(("", "committed", "new"), (12, 40, 40))]
    for row in facts(*machines):
        out += _columns(row, (12, 40, 40))
    out += ["", *textwrap.wrap(promise(*machines), 96), ""]
    for sentence in RULE:
        out += textwrap.wrap(sentence, 96)
    for title, chosen in _groups(lines):
        out += ["", title.upper()]
        out += _columns(("", *HEAD), WIDTHS)
        for line in chosen:
            out += _entry(line)
    return "\n".join(out) + "\n"


def _groups(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    titles = (("Primary claims", True), ("Exploratory rows", False))
    groups = [(title, [r for r in lines if r.row["primary"] is which]) for title, which in titles]
    return [(title, chosen) for title, chosen in groups if chosen]


def _words(row: dict) -> str:
    """A primary row's claim and metric; an exploratory one's metric, if it has one."""
    if row["primary"] and row["metric"]:
        return f"{row['claim']}: {row['metric']}"
    return row["metric"] or row["claim"]


def _entry(line: Line) -> list[str]:
    sides = _sides(line)
    return [
        *_columns(
            (line.id, f"{MARKS[line.outcome]} {line.outcome}", _words(line.row)), (5, 26, 62)
        ),
        *_columns(("", *(estimate for estimate, _ in sides)), WIDTHS),
        *(_columns(("", *(found for _, found in sides)), WIDTHS) if line.apart else ()),
    ]


def _drawing(line: Line) -> str:
    """Both intervals as an SVG, committed above new, with a line at zero. An infinite end runs to
    the picture's edge and has no cap.
    """
    rows = [row if _tested(row) else None for row in (line.committed, line.new)]
    ends = [x for row in rows if row for x in (row["diff"], *row["ci95"]) if math.isfinite(x)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    if not ends or low == high:
        low, high = low - 1, high + 1
    scale = (WIDE - 20) / (high - low)

    def at(value: float) -> str:
        return f"{min(max(10 + (value - low) * scale, 0), WIDE):.1f}"

    parts = [f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="40"/>']
    for row, name, y in zip(rows, ("committed", "new"), (12, 28), strict=True):
        if row:
            left, right = map(at, row["ci95"])
            caps = "".join(f"M{at(x)} {y - 4}v8" for x in row["ci95"] if math.isfinite(x))
            parts.append(
                f'<g class="{name}"><path d="M{left} {y}H{right}{caps}"/>'
                f'<circle cx="{at(row["diff"])}" cy="{y}" r="4"/></g>'
            )
    said = escape(" and ".join(estimate for estimate, _ in _sides(line)[:2]))
    size = f'width="{WIDE}" height="40" viewBox="0 0 {WIDE} 40"'
    return f'<svg role="img" aria-label="{said}" {size}>{"".join(parts)}</svg>'


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>\n{body}</table></div>'


def _html_row(line: Line) -> list[str]:
    kind = line.outcome.replace(" ", "-")
    sides = [f"{escape(a)}<br><small>{escape(b)}</small>" for a, b in _sides(line)]
    row = line.row
    return [
        f"<b>{escape(line.id)}</b>",
        f"{escape(row['metric'])}<br><small>{escape(row['claim'])}</small>",
        f'<span class="outcome {kind}">{MARKS[line.outcome]} {line.outcome}</span>',
        _drawing(line),
        *sides,
    ]


def html(committed: Run, new: Run) -> str:
    """The report as one page: no script, nothing fetched, for light and dark."""
    lines, machines = compare(committed, new), (committed.machine, new.machine)
    names = [[f"{MARKS[o]} {o}", str(a), str(b)] for o, a, b in counts(lines)]
    parts = [_html_table(("", "primary", "exploratory"), names)]
    parts += [f'<p class="warning">{escape(warning)}</p>' for warning in warnings(*machines)]
    known = [[escape(cell) for cell in row] for row in facts(*machines)]
    parts += [_html_table(("", "committed", "new"), known)]
    parts += [f"<p>{escape(promise(*machines))}</p>", "<h2>The rule</h2><ul>"]
    parts += [f"<li>{escape(sentence)}</li>" for sentence in RULE]
    parts += [f"</ul><p>{KEY}</p>"]
    head = ("", "measured", "outcome", "95 % intervals", *HEAD)
    for title, chosen in _groups(lines):
        parts += [f"<h2>{title}</h2>", _html_table(head, [_html_row(line) for line in chosen])]
    return PAGE.replace("\nBODY\n", "\n" + "\n".join(parts) + "\n")


def write(committed: Run, new: Run, path: Path | None = None) -> Path:
    """Write the page whole or not at all; path: build/reproduction.html if not given."""
    path = path or files.ROOT / "build/reproduction.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, html(committed, new))
    return path


def main(words: Sequence[str]) -> None:
    """Print the report on a figures folder against the committed one, and write the page."""
    if len(words) != 1:
        raise ValueError("give one folder, as ../build/figures/full")
    book, folder = files.ROOT / "figures", Path(words[0])
    if folder.resolve() == book.resolve():
        raise ValueError(f"{folder}: this is the committed run itself: give a folder of a new one.")
    committed, new = read(book), read(folder)
    print(text(committed, new))
    print(f"As a page: {write(committed, new)}")


if __name__ == "__main__":
    ended(main, sys.argv[1:])

"""Numbers in prose come from a file: markers in Markdown, filled from the figures folder.

`<!-- C6a.diff -->-14.4 [-20.1, -8.7]<!-- / -->` is filled from claims.json; after the dot stands a
key of CLAIMED, and `C6a.diff@1101` is of the block of seeds from 1101.
`<!-- fig:04_x:results.path:.1f -->14.2<!-- / -->` is filled from 04_x.json, with a format and
perhaps a factor, `:.1f:100`; a list stands for its mean, with an i after the format (`:.1fi`) for
the mean and its 95 % interval. (Links to code find their lines at the same time: links.py.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean

from .. import files
from . import ledger, links, pages, stats
from .plan import load

MARKER = re.compile(r"<!-- (/|fig:(?:(?!-->).)+?|C\d+[a-z]*\.\w+(?:@\d+)?) -->")
FIGURE = re.compile(r"fig:([\w-]+):(.+?):([+]?(?:\.\d+)?[dfeg])(i?)(?::([\d.eE+-]+))?")
CLAIMED: dict[str, Callable[[Mapping], str]] = {  # key -> what it shows of a row of the ledger
    "diff": pages.difference,
    "baseline": lambda row: _mean(row, "baseline"),
    "sare": lambda row: _mean(row, "sare"),
    "verdict": lambda row: row["reading"] or row["verdict"],
    "n": lambda row: str(row["n_seeds"] or 0),
    "p": lambda row: (
        pages.p_value(row["p"] if row["p_holm"] is None else row["p_holm"]) or "not tested"
    ),
}


def fill(text: str, folder: Path, name: str = "text") -> str:
    """The text with every marker filled; filling twice is the same.

    Raises ValueError naming `name` and the marker for an unknown row, key, figure or path, and for
    a marker that is not closed.
    """
    found, end, opened = [], 0, None
    rows = lru_cache(partial(_ledger, folder))
    for marker in MARKER.finditer(text):
        what = marker[1]
        if (what == "/") == (opened is None):
            odd = marker[0] if opened is None else f"<!-- {opened} -->"
            raise ValueError(
                f"{name}: {odd}: put <!-- / --> after each known marker, and no other."
            )
        if what == "/":
            opened, end = None, marker.start()
            continue
        opened = what
        found.append(text[end : marker.end()])
        try:
            if what.startswith("fig:"):
                found.append(_figure(what, folder))
            else:
                found.append(_claim(what, rows))
        except ValueError as error:
            raise ValueError(f"{name}: {marker[0]}: {error}") from error
    if opened is not None:
        raise ValueError(f"{name}: <!-- {opened} -->: put <!-- / --> after what it fills.")
    return "".join([*found, text[end:]])


def _mean(row: Mapping, arm: str) -> str:
    return "not tested" if row[arm] is None else f"{row[arm]:.{pages.digits(row)}f}"


def _ledger(folder: Path, block: str) -> dict[str, dict]:
    """The rows by id; block: the first seed of another block's file, or nothing for the book's."""
    name = f"claims_seeds-from-{block}.json" if block else "claims.json"
    return {row["id"]: row for row in ledger.read(folder / name, load())}


def _claim(marker: str, rows: Callable[[str], Mapping[str, dict]]) -> str:
    where, _, block = marker.partition("@")
    id, _, key = where.partition(".")
    found = rows(block)
    if id not in found:
        raise ValueError(f"{id} is no row of claims.json: name one that is.")
    if key not in CLAIMED:
        raise ValueError(f"{key!r} is unknown: there are {', '.join(CLAIMED)}.")
    return CLAIMED[key](found[id])


def _figure(marker: str, folder: Path) -> str:
    given = FIGURE.fullmatch(marker)
    if given is None:
        raise ValueError("write fig:NAME:path.to.value:.1f, perhaps with a factor, :.1f:100.")
    figure, path, spec, with_interval, factor = given.groups()
    content = files.read_json(folder / f"{figure}.json")
    try:
        values = [value * float(factor or 1) for value in _values(content, path)]
    except ValueError as error:
        raise ValueError(f"{folder / figure}.json: {error}") from error
    mean, low, high = stats.interval(values) if with_interval else (fmean(values), None, None)
    shown = format(round(mean) if spec.endswith("d") else mean, spec)
    if low is None or high is None:
        return shown
    return f"{shown} [{low:{spec.removeprefix('+')}}, {high:{spec.removeprefix('+')}}]"


def _values(content: object, path: str) -> list[float]:
    """The number at a path, or the numbers of a list there.

    Keys may hold dots themselves ("worst_ball_0.5"), so the longest key that fits is taken; `*`
    stands for each of a list (curves.*.3: the fourth point of every curve). Raises ValueError
    naming the keys there are.
    """
    left = path
    while left:
        if isinstance(content, list) and left.startswith("*."):
            return [value for one in content for value in _values(one, left[2:])]
        if isinstance(content, list):
            content = dict(zip(map(str, range(len(content))), content))
        keys = list(content) if isinstance(content, dict) else []
        fitting = [key for key in keys if left == key or left.startswith(f"{key}.")]
        if not fitting:
            raise ValueError(f"no {left!r} there: there are {', '.join(keys) or 'no keys'}.")
        key = max(fitting, key=len)
        content, left = content[key], left[len(key) + 1 :]
    values = content if isinstance(content, list) else [content]
    numbers = [v for v in values if type(v) in (int, float) and math.isfinite(v)]
    if not numbers or len(numbers) < len(values):
        raise ValueError(f"{path} is no number, nor a list of numbers: give the path of one.")
    return numbers


def places() -> list[Path]:
    """What is filled: README, glossary, chapters and their notebooks, which say the same;
    a number and a verdict need no escape in a notebook's JSON.
    """
    chapters = [path for kind in ("py", "ipynb") for path in files.CHAPTERS.glob(f"[0-9]*.{kind}")]
    pages = [files.ROOT / "README.md", files.CHAPTERS / "glossary.md"]
    return [*pages, *sorted(chapters)]


def write(paths: Sequence[Path] | None = None, folder: Path = files.ROOT / "figures") -> list[Path]:
    """Fill the markers in `places` (or the given files); returns the files that changed."""
    changed = []
    for path in places() if paths is None else paths:
        text = path.read_text(encoding="utf-8")
        filled = links.aimed(fill(text, folder, path.name), path.parent, path.name)
        if filled != text:
            files.write_text(path, filled)
            changed.append(path)
    return changed

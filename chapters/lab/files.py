"""Where things lie, and how they are read and written: no torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

LAB = Path(__file__).resolve().parent
CHAPTERS, ROOT = LAB.parent, LAB.parents[1]
BOOK_SEEDS = tuple(range(1001, 1013))  # of the figures that are committed, as the plan has them


def is_book(preset: str, seeds: Sequence[int]) -> bool:
    """Is this the book's own run, the full preset on its seeds or the first few of them?"""
    return preset == "full" and tuple(seeds) == BOOK_SEEDS[: len(seeds)]


def figures_folder(preset: str, seeds: Sequence[int]) -> Path:
    """figures/ for the full preset on its own seeds, or the first few of them, with KEEP=1 in the
    environment; without it build/figures/full. build/figures/NAME for anything else.

    Another processor rounds differently, so a reader's run never equals the committed bytes. It
    must not overwrite them unless he means it, nor must a trial.
    """
    if is_book(preset, seeds):
        return ROOT / ("figures" if os.environ.get("KEEP") == "1" else "build/figures/full")
    return ROOT / f"build/figures/{preset}-seeds-from-{seeds[0]}"


def write_json(path: Path, content: object) -> None:
    """Write JSON whole or not at all, keys as given, floats to 6 significant digits, so that equal
    results are equal bytes.
    """
    part = Path(f"{path}.part")
    part.write_text(json.dumps(rounded(content), indent=1, allow_nan=True) + "\n")
    part.replace(path)


def rounded(content: object) -> object:
    """Floats to 6 significant digits, through lists and dicts."""
    if isinstance(content, dict):
        return {str(k): rounded(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [rounded(v) for v in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content


def read_text(path: str | Path) -> str:
    """The file's text; raises ValueError naming the file if it is missing, is not UTF-8, or holds
    zero bytes.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # the second: bytes that are not UTF-8, an odd name
        raise ValueError(
            f"{path}: the file could not be read as text ({error}). Check the path and what it"
            " holds."
        ) from error
    if "\0" in text:
        raise ValueError(f"{path}: the file holds zero bytes, so it is no text. Fetch it again.")
    return text

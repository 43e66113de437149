"""Fewer of POPE's questions, in POPE's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .. import files
from . import coco


def fewer_questions(paths: Mapping[str, Path], n_images: int, folder: Path) -> dict[str, Path]:
    """Write POPE's questions about the first n_images images, in the first file's order, under
    their own names into `folder`; {kind: where it lies}.

    Raises ValueError naming the file if it asks about fewer images.
    """
    asked = {kind: coco.read_questions(path) for kind, path in paths.items()}
    first = dict.fromkeys(row["image"] for rows in asked.values() for row in rows)
    chosen = set(list(first)[:n_images])
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind, rows in asked.items():
        kept = [row for row in rows if row["image"] in chosen]
        if n_images < 1 or len({row["image"] for row in kept}) != n_images:
            there = len({row["image"] for row in rows})
            raise ValueError(
                f"{paths[kind]}: asks about {there} images, not about the {n_images} wanted: give a"
                " number from 1 to that."
            )
        found[kind] = folder / paths[kind].name
        files.write_text(found[kind], "".join(json.dumps(row) + "\n" for row in kept))
    return found

"""Parts of an audit as files: each says what it was measured for, and none is trusted that is
broken or was measured for something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files import named, rounded, write_text


def seal(stamp: object, found: object) -> str:
    """A hash by which a file that was cut off or edited is known."""
    text = json.dumps([stamp, found], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(content: object) -> object:
    """As JSON gives it back: lists for tuples, 6 significant digits."""
    return json.loads(json.dumps(rounded(content), allow_nan=False))


def write(path: Path, text: str) -> None:
    """Whole or not at all; raises OSError naming the file."""
    with named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


@dataclass(frozen=True)
class Shelf:
    """A folder of parts."""

    folder: Path

    def path(self, name: str) -> Path:
        """The file of a part."""
        return self.folder / f"{name.replace(' ', '_')}.json"

    def read(self, name: str, stamp: Mapping) -> tuple[dict | None, str]:
        """(what was found, ""), or (None, why it cannot be used: "" if there is no file)."""
        path = self.path(name)
        if not path.exists():
            return None, ""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            is_whole = kept["seal"] == seal(kept["for"], kept["found"])
        except (OSError, ValueError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            return None, f"{path} is broken"
        wanted = plain(stamp)
        if kept["for"] == wanted:
            return kept["found"], ""
        keys = kept["for"].keys() | wanted.keys()
        odd = sorted(key for key in keys if kept["for"].get(key) != wanted.get(key))
        return None, f"{path} was measured for another {' and '.join(odd)}"

    def write(self, name: str, stamp: Mapping, found: Mapping) -> dict:
        """Keep a part; returns what a later `read` will give."""
        stamp, found = plain(stamp), plain(found)
        whole = {"for": stamp, "found": found, "seal": seal(stamp, found)}
        write(self.path(name), json.dumps(whole, indent=1) + "\n")
        return found

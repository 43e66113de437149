"""An entry of the cache: a folder that carries the checksums of its files, so that what was cut
short, changed or mixed up on the disk is rebuilt, and never read.

Whole files are hashed by SHA-256, about 1 ms a megabyte, once a process and entry: 0.5 ms for a
run's weights, 16 ms for the features of a seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

SEAL = "checksums.json"
VERSION = 1  # of this format


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seal(folder: Path, name: str) -> None:
    """Write the checksums of all files in the folder, after all else; `name` is what the entry is
    looked up by.
    """
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _digest(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
    part = folder / f"{SEAL}.part"
    text = json.dumps({"version": VERSION, "entry": name, "files": files}, indent=1)
    part.write_text(text + "\n")
    part.replace(folder / SEAL)


def is_sealed(folder: Path) -> bool:
    return (folder / SEAL).exists()


def fault(folder: Path, name: str, only: Collection[str] | None = None) -> str:
    """Why the entry must not be read, "" if it may; only: the files to look at, instead of all.

    Files without a checksum are let be: nothing reads them.
    """
    try:
        known = json.loads((folder / SEAL).read_text())
        version, entry, files = known["version"], known["entry"], known["files"]
        listed = {file: (int(size), str(digest)) for file, (size, digest) in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{SEAL} cannot be read ({type(error).__name__}: {error})"
    if version != VERSION:
        return f"version {version} of the cache's format, not {VERSION}"
    if entry != name:
        return f"it is the entry of {entry}"
    for file in listed if only is None else only:
        if file not in listed:
            return f"{file} has no checksum"
        size, digest = listed[file]
        try:
            found = (folder / file).stat().st_size
            if found != size:
                return f"{file} has {found} bytes instead of {size}"
            if _digest(folder / file) != digest:
                return f"{file} has changed since it was written"
        except OSError as error:
            return f"{file} cannot be read ({type(error).__name__}: {error})"
    return ""


def parses(folder: Path) -> bool:
    """Do the JSON files of an entry without checksums, from before there were any, hold JSON?"""
    try:
        for path in folder.rglob("*.json"):
            json.loads(path.read_text())
        float((folder / "seconds").read_text())  # it was written last
    except (OSError, ValueError):
        return False
    return True

"""A cache on disk, keyed by every setting and by the code that the result depends on.

(Jobs side by side: engine.py. Their names stand here, too.)
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from . import entries, files
from .engine import one_thread, rows_side_by_side, side_by_side, warm_up  # noqa: F401
from .files import CACHE, ROOT


def key(settings: object, sources: Sequence[str]) -> str:
    """A short hash of the settings (their repr), the named sources (comments, docstrings, layout
    aside) and the libraries' versions.

    sources: paths from the repository's root, without ".py".
    """
    code = [_code(source) for source in sources]
    return hashlib.sha256(repr([settings, code, *_versions()]).encode()).hexdigest()[:16]


@lru_cache
def _versions() -> list[str]:
    return [version(name) for name in ("torch", "transformers", "peft", "pillow")]


@lru_cache
def _code(source: str) -> str:
    """The source as this process knows it, without comments, layout and docstrings: rewording must
    not retrain a model.
    """
    tree = ast.parse((ROOT / f"{source}.py").read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def remember(sources: Sequence[str]) -> None:
    """Read the sources now, when their module is imported: an edit in a live kernel must not put
    old results under the new key.
    """
    for source in sources:
        _code(source)


def folder(
    kind: str, settings: object, sources: Sequence[str], build: Callable[[Path], None]
) -> Path:
    """The cached folder for these settings; `build(path)` fills it if it is missing. Another
    process building it is waited for.

    A folder appears under its name only when it is whole: a build that dies leaves nothing behind
    that a later run would trust. It carries checksums, which a process checks before its first use;
    one that does not hold them is built again, with a line on stderr that says why. What is there
    is read where nothing may be written, too. Raises OSError naming the folder and the mend if it
    must be built and the disk is full, or may only be read.
    """
    path = CACHE / kind / key(settings, sources)
    if path in _whole or not _fault(path):
        _whole.add(path)
        return path
    start = time.perf_counter()
    with files.named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path.parent)
    with _locked(path):
        if why := _fault(path, adopts=True):  # nobody has built it meanwhile
            if why != MISSING:
                _tell(path, f"{why}: built again")
            _build(path, build)
    if _inside:  # what this build, or the wait for it, took is not the outer one's work
        _inside[-1] += time.perf_counter() - start
    _whole.add(path)
    return path


MISSING = "missing"
PATIENCE = 10.0  # seconds of waiting for another process before a line says so
_whole: set[Path] = set()  # entries that this process has checked, or built


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _tell(path: Path, what: str) -> None:
    print(f"cache, {_name(path)}: {what}", file=sys.stderr, flush=True)


def _fault(path: Path, adopts: bool = False) -> str:
    """Why the entry must not be read, "" if it may. adopts: give one from before there were
    checksums, if it looks whole, its own (the lock must be held).
    """
    if not os.path.exists(path):  # not path's own: that one fails in a folder closed to this user
        return MISSING
    if path.is_dir() and not entries.is_sealed(path):
        if not entries.parses(path):
            return "it has no checksums, and does not look whole"
        if adopts:
            with files.named(path):
                entries.seal(path, _name(path))
    return entries.fault(path, _name(path))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone in this entry, over all processes."""
    with files.named(path):
        tell = partial(_tell, path, "another process is building it: waiting")
        lock = files.acquired(f"{path}.lock", tell, PATIENCE)
    try:
        yield
    finally:
        lock.release()


@lru_cache
def _clear_leftovers(folder: Path) -> None:
    """Remove what builds of this kind left half done, where their process is gone; once a process
    and kind.
    """
    for left in (*folder.glob("*.part"), *folder.glob("*.bad")):
        try:
            with FileLock(left.with_suffix(".lock"), timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        except Timeout:  # it is being built
            continue


def _build(path: Path, build: Callable[[Path], None]) -> None:
    """Fill the entry; what stands there gives way when the new one is whole."""
    part, bad = Path(f"{path}.part"), Path(f"{path}.bad")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        took = _timed(part, build)
        (part / "seconds").write_text(f"{took:.2f}\n")
        entries.seal(part, _name(path))
        if path.exists():
            path.replace(bad)
        part.replace(path)
    except BaseException as error:  # a full disk stays full otherwise
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, Exception) and files.is_full(error):
            raise files.unwritten(path, error) from error
        raise
    if bad.exists():
        shutil.rmtree(bad, ignore_errors=True) if bad.is_dir() else bad.unlink()


def _timed(part: Path, build: Callable[[Path], None]) -> float:
    """Do the build; the seconds it took, without those of builds inside it."""
    begun = time.perf_counter()
    _inside.append(0.0)
    try:
        # A fresh LoRA draws from the global generator: the same draw in every build
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            build(part)
    finally:
        inside = _inside.pop()
    return time.perf_counter() - begun - inside


# For each build that is under way, the outermost first: seconds spent in builds inside it
_inside: list[float] = []


def seconds(kind: str, settings: object, sources: Sequence[str]) -> float:
    """What this folder took to build, seconds on one core; FileNotFoundError if it is not there, or
    not as it was written.
    """
    path = CACHE / kind / key(settings, sources)
    if path not in _whole and (why := _fault(path)):
        raise FileNotFoundError(f"{path}: {why}. Run it again.")
    return float((path / "seconds").read_text())


def profile(since: float = 0.0) -> dict[str, dict[str, float]]:
    """Where the time went: per kind of folder built after `since` (a time.time()), how many and
    their seconds on one core.
    """
    found: dict[str, dict[str, float]] = {}
    for file in sorted(CACHE.glob("*/*/seconds")):
        name = _name(file.parent)
        if file.stat().st_mtime >= since and not entries.fault(file.parent, name, {file.name}):
            row = found.setdefault(file.parent.parent.name, {"jobs": 0, "seconds": 0.0})
            row["jobs"] += 1
            row["seconds"] += float(file.read_text())
    return found

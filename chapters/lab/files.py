"""Where things lie, and how they are read and written: no torch here."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

LAB = Path(__file__).resolve().parent
CHAPTERS, ROOT = LAB.parent, LAB.parents[1]
# LAB_CACHE: for the study of other kernels alone (experiments/variance.py)
CACHE = Path(os.environ.get("LAB_CACHE", CHAPTERS / ".cache"))
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


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A file that appears whole or not at all: the body writes the path that is yielded, which then
    takes the file's place.

    Raises OSError naming the file and the mend if it cannot be written: a full disk, a folder that
    may only be read. What stood there before then still stands, and nothing half written beside it.
    """
    part = Path(f"{path}.{os.getpid()}.part")  # a name of its own: two runs may write at once
    try:
        _clear(Path(path))
        yield part
        part.replace(path)
    except Exception as error:
        if isinstance(error, OSError) or is_full(error):
            raise unwritten(path, error) from error
        raise
    finally:
        with suppress(OSError):  # a folder that may not be written holds no part of ours
            part.unlink(missing_ok=True)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """An OSError of the body names the path that could not be written, and the mend."""
    try:
        yield
    except OSError as error:
        raise unwritten(path, error) from error


def unwritten(path: str | Path, error: Exception) -> OSError:
    """The error to raise where this path could not be written."""
    why = NO_ROOM.get(_code(error), getattr(error, "strerror", "") or error)
    return OSError(
        f"{path}: cannot be written ({why}). Make room on the disk, or ask for leave to write"
        " there, and run it again."
    )


NO_ROOM = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}


def is_full(error: BaseException) -> bool:
    """Was there no room on the disk?"""
    return _code(error) in NO_ROOM


def _code(error: BaseException) -> int | None:
    """The system's number of an error; safetensors has it in its words alone."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else getattr(error, "errno", None)


def _clear(path: Path) -> None:
    """Remove what a process that was killed had begun to write in this file's place."""
    for part in path.parent.glob("*.part"):
        name, _, owner = part.name.removesuffix(".part").rpartition(".")
        if name == path.name and owner.isdigit() and not _runs(int(owner)):
            part.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name != "posix":  # where signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, and is another user's
        pass
    return True


def acquired(path: str | Path, waiting: Callable[[], object], patience: float = 0.0) -> FileLock:
    """A lock between processes, held; release it. A dead process's is free. waiting: called once if
    another process holds it for more than `patience` seconds.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        waiting()
        lock.acquire()
    return lock


@contextmanager
def alone(name: str, waiting: str = "") -> Iterator[None]:
    """No other process of this checkout is in here under the same name.

    waiting: a line to print, if another one has to be waited for.
    """
    (ROOT / "build").mkdir(exist_ok=True)
    tell = partial(print, waiting, flush=True) if waiting else lambda: None
    lock = acquired(ROOT / f"build/{name}.lock", tell)
    try:
        yield
    finally:
        lock.release()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole or not at all; raises OSError as `whole`."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object) -> None:
    """Write JSON whole or not at all, keys as given, floats to 6 significant digits, so that equal
    results are equal bytes; raises OSError as `whole`.
    """
    write_text(path, json.dumps(rounded(content), indent=1, allow_nan=True) + "\n")


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


def read_json(path: str | Path, mend: str = "Make it again.") -> object:
    """What a JSON file holds; raises ValueError as read_text, and naming file and mend if it is no
    JSON, or holds what cannot be written again.
    """
    text = read_text(path)
    try:
        found = json.loads(text)
        if "\\ud" in text.lower():  # half a surrogate pair is no text, and cannot be written again
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except RecursionError as error:  # lists in lists in lists
        raise ValueError(f"{path}: the file nests too deep. {mend}") from error
    except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
        raise ValueError(f"{path}: the file is no JSON ({error}). {mend}") from error

"""A cache on disk, keyed by every setting and by the code that the result depends on; and jobs side
by side, one thread each.
"""

from __future__ import annotations

import ast
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from multiprocessing import forkserver
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from . import entries, files
from .files import CHAPTERS, ROOT

# LAB_CACHE, LAB_THREADS: for the study of other kernels alone (experiments/variance.py)
CACHE = Path(os.environ.get("LAB_CACHE", CHAPTERS / ".cache"))
THREADS = int(os.environ.get("LAB_THREADS", "1"))  # a job
# The second on Windows
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


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
    """Alone in this entry, over all processes; a dead one's lock is free."""
    lock = FileLock(f"{path}.lock")
    with files.named(path):
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            _tell(path, "another process is building it: waiting")
            lock.acquire()
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


def one_thread() -> None:
    """Small matrices gain nothing from two threads, and with one a repeat is equal to the bit."""
    torch.set_num_threads(THREADS)


def _new_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers, multiprocessing.get_context(START), initializer=_start_worker
    )


@lru_cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """One pool for the life of this process: starting a worker costs seconds, and a worker keeps
    the base models it has loaded.
    """
    return _new_pool(workers)


def warm_up() -> None:
    """Let the server that workers are forked from load the libraries now, while this process loads
    its own; returns at once.
    """
    if START == "spawn":
        return
    before = os.environ.get("PYTHONPATH")
    try:  # the server does not get this process's sys.path
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT), str(CHAPTERS), *([before] if before else [])]
        )
        multiprocessing.set_forkserver_preload(
            ["lab.experiments.gauges", "lab.experiments.quality"]
        )
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def _end_with_parent() -> None:
    """A kernel that is killed ends its workers, too: they would wait for its next job for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _start_worker() -> None:
    one_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A stopped cell or kernel ends its workers, too, without a word
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def side_by_side(
    work: Callable, jobs: Sequence, label: str, workers: int | None = None, progress: bool = True
) -> list:
    """[work(job) for job in jobs], on all cores, in the order of `jobs`; the bar shows jobs done
    and the time left.

    A job that fails lets the others finish; then one RuntimeError names every failed job and its
    error. A job whose worker is killed is done again, once and alone, and a line on stderr names
    it; killed again, it has failed.
    """
    if THREADS > 1:  # a forked process hangs where its parent's threads were
        one_thread()
        return [work(job) for job in tqdm(jobs, desc=label, disable=not progress)]
    ended: dict[int, Future] = {}
    killed: set[int] = set()
    n_workers = workers or os.cpu_count() or 1
    bar = tqdm(total=len(jobs), desc=label, disable=not progress)
    with bar, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as marks:
        while left := {i: job for i, job in enumerate(jobs) if i not in ended.keys() | killed}:
            broken = _attempt(work, left, lambda _: _pool(n_workers), Path(marks), ended, bar)
            if broken:
                _pool.cache_clear()  # this call and the next one start a new pool
                again = {i: left[i] for i in broken if (Path(marks) / str(i)).exists()}
                killed |= _alone(work, again, label, Path(marks), ended, bar)
    errors = {i: future.exception() for i, future in ended.items()}
    failed = [f"{jobs[i]}: {type(e).__name__}: {e}" for i, e in errors.items() if e is not None]
    failed += [f"{jobs[i]}: its worker was killed, twice. Is there memory?" for i in sorted(killed)]
    if failed:
        raise RuntimeError(
            f"{label}: {len(failed)} of {len(jobs)} jobs failed:\n" + "\n".join(failed)
        )
    return [ended[i].result() for i in range(len(jobs))]


def _attempt(
    work: Callable,
    jobs: dict[int, object],
    pool_of: Callable[[int], ProcessPoolExecutor],
    marks: Path,
    ended: dict[int, Future],
    bar: tqdm,
) -> set[int]:
    """Put the jobs that end, well or with an error of their own, into `ended`; return those that
    did not, because a worker of their pool was killed. Those under way then have left a mark.
    """
    futures: dict[Future, int] = {}
    for i, job in jobs.items():
        try:
            futures[pool_of(i).submit(_marked, work, job, marks / str(i))] = i
        except BrokenExecutor:  # now, or while nobody looked, as by a stopped cell
            break
    for future in as_completed(futures):
        if not isinstance(future.exception(), BrokenExecutor):
            ended[futures[future]] = future
            bar.update()
    return jobs.keys() - ended.keys()


def _marked(work: Callable, job: object, mark: Path) -> object:
    mark.touch()
    try:
        return work(job)
    finally:  # not where the process is killed
        mark.unlink(missing_ok=True)


def _alone(
    work: Callable,
    jobs: dict[int, object],
    label: str,
    marks: Path,
    ended: dict[int, Future],
    bar: tqdm,
) -> set[int]:
    """Do jobs again whose workers died together, each in a pool of its own, so that the one that
    kills its worker is known; return those that do.
    """
    if not jobs:
        return set()
    names = ", ".join(map(str, jobs.values()))
    print(f"{label}: a worker was killed; done again: {names}", file=sys.stderr, flush=True)
    pools = {i: _new_pool(1) for i in jobs}
    try:
        return _attempt(work, jobs, pools.__getitem__, marks, ended, bar)
    finally:
        for pool in pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def rows_side_by_side(
    work: Callable,
    rows: dict[str, Sequence],
    label: str,
    order: Callable | None = None,
    progress: bool = True,
) -> dict[str, list]:
    """side_by_side for named rows of hashable jobs, all together, sorted by `order`; one that
    stands in several rows is done once.
    """
    jobs = list(dict.fromkeys(job for row in rows.values() for job in row))
    if order:
        jobs.sort(key=order)
    results = dict(zip(jobs, side_by_side(work, jobs, label, progress=progress), strict=True))
    return {name: [results[job] for job in row] for name, row in rows.items()}

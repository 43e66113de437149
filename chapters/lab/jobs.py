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
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from functools import lru_cache
from importlib.metadata import version
from multiprocessing import forkserver
from pathlib import Path

import torch
from filelock import FileLock
from tqdm.auto import tqdm

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
    that a later run would trust.
    """
    path = CACHE / kind / key(settings, sources)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with FileLock(f"{path}.lock"):
        if not path.exists():
            begun = time.perf_counter()
            part = Path(f"{path}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            _inside.append(0.0)
            try:
                with torch.random.fork_rng(
                    devices=[]
                ):  # a fresh LoRA draws from the global generator: the same draw in every build
                    torch.manual_seed(0)
                    build(part)
            finally:
                inside = _inside.pop()
            (part / "seconds").write_text(f"{time.perf_counter() - begun - inside:.2f}\n")
            part.replace(path)
    if _inside:  # what this build, or the wait for it, took is not the outer one's work
        _inside[-1] += time.perf_counter() - start
    return path


# For each build that is under way, the outermost first: seconds spent in builds inside it
_inside: list[float] = []


def seconds(kind: str, settings: object, sources: Sequence[str]) -> float:
    """What this folder took to build, seconds on one core; FileNotFoundError if it is not there."""
    return float((CACHE / kind / key(settings, sources) / "seconds").read_text())


def profile(since: float = 0.0) -> dict[str, dict[str, float]]:
    """Where the time went: per kind of folder built after `since` (a time.time()), how many and
    their seconds on one core.
    """
    found: dict[str, dict[str, float]] = {}
    for file in sorted(CACHE.glob("*/*/seconds")):
        if file.stat().st_mtime >= since:
            row = found.setdefault(file.parent.parent.name, {"jobs": 0, "seconds": 0.0})
            row["jobs"] += 1
            row["seconds"] += float(file.read_text())
    return found


def one_thread() -> None:
    """Small matrices gain nothing from two threads, and with one a repeat is equal to the bit."""
    torch.set_num_threads(THREADS)


@lru_cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """One pool for the life of this process: starting a worker costs seconds, and a worker keeps
    the base models it has loaded.
    """
    return ProcessPoolExecutor(
        workers, multiprocessing.get_context(START), initializer=_start_worker
    )


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


def _start_worker() -> None:
    one_thread()
    # A stopped cell or kernel ends its workers, too, without a word
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def side_by_side(
    work: Callable, jobs: Sequence, label: str, workers: int | None = None, progress: bool = True
) -> list:
    """[work(job) for job in jobs], on all cores, in the order of `jobs`; the bar shows jobs done
    and the time left.

    A job that fails lets the others finish; then one RuntimeError names every failed job and its
    error.
    """
    if THREADS > 1:  # a forked process hangs where its parent's threads were
        one_thread()
        return [work(job) for job in tqdm(jobs, desc=label, disable=not progress)]
    results, failed, n_workers = {}, [], workers or os.cpu_count() or 1
    try:
        futures = {_pool(n_workers).submit(work, job): i for i, job in enumerate(jobs)}
    except BrokenExecutor:  # its workers were killed while nobody looked, by a stopped cell
        _pool.cache_clear()
        futures = {_pool(n_workers).submit(work, job): i for i, job in enumerate(jobs)}
    for future in tqdm(as_completed(futures), total=len(jobs), desc=label, disable=not progress):
        error = future.exception()
        if error is None:
            results[futures[future]] = future.result()
        else:
            failed.append(f"{jobs[futures[future]]}: {type(error).__name__}: {error}")
            if isinstance(error, BrokenExecutor):
                _pool.cache_clear()  # the next call starts a new pool
    if failed:
        raise RuntimeError(
            f"{label}: {len(failed)} of {len(jobs)} jobs failed:\n" + "\n".join(failed)
        )
    return [results[i] for i in range(len(jobs))]


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

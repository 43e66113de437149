"""Jobs side by side, one thread each, by dask.distributed: on this machine's cores, or on the
cluster that ENGINE names.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import sys
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import lru_cache
from multiprocessing import forkserver
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from .files import CACHE, CHAPTERS, LAB, ROOT

if TYPE_CHECKING:  # imported where jobs are sent: what needs none runs without dask
    from distributed import Client, Future, LocalCluster

THREADS = int(os.environ.get("LAB_THREADS", "1"))  # a job; for experiments/variance.py alone
# The second on Windows
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
SETTINGS = {
    "distributed.worker.multiprocessing-method": START,
    "distributed.worker.profile.enabled": False,  # it would stop each job a hundred times a second
    "distributed.admin.tick.interval": "5s",  # what else wakes a worker takes time from its job
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.scheduler.allowed-failures": 1,  # a job whose worker is killed is done once more
    "distributed.scheduler.worker-ttl": None,  # a laptop that slept has lost nobody
    "distributed.deploy.lost-worker-timeout": "60s",  # a starved machine starts one in more than 15
}
ASKED = 20.0  # seconds between two looks whether all workers are there


def one_thread() -> None:
    """Small matrices gain nothing from two threads, and with one a repeat is equal to the bit."""
    torch.set_num_threads(THREADS)


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


@lru_cache
def _client(engine: str, workers: int) -> Client:
    """One for the life of this process: starting a worker costs seconds, and a worker keeps the
    base models it has loaded.
    """
    return _far(engine) if engine else _near(workers)


def _near(workers: int) -> Client:
    """Workers on this machine, which end with this process."""
    import dask
    from distributed import Client, LocalCluster

    warm_up()
    dask.config.set(SETTINGS)
    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=0,  # the system's own is enough
        dashboard_address="127.0.0.1:0",  # any free port
        security=True,  # keys of its own: a port of this machine is open to all who use it
        silence_logs=logging.CRITICAL,
    )
    _keep(cluster, workers)
    return Client(cluster)


def _keep(cluster: LocalCluster, workers: int) -> None:
    """See to it that there are so many workers until the cluster ends. One that is killed is
    replaced by its nanny, but one that is killed while it starts is given up, and without this the
    jobs would wait for ever.
    """
    from tornado.ioloop import PeriodicCallback

    def ask() -> None:
        if cluster.status.name == "running":
            cluster.scale(workers)
        else:
            looks.stop()

    looks = PeriodicCallback(ask, 1000 * ASKED)
    cluster.loop.add_callback(looks.start)


def _far(engine: str) -> Client:
    """The cluster at ENGINE=dask://host:port, after a look whether its workers are of use.

    Raises ValueError if ENGINE is no address, OSError if nobody is there, RuntimeError if a worker
    has other code or does not see the cache.
    """
    from distributed import Client

    scheme, _, place = engine.partition("://")
    if scheme not in ("dask", "tcp", "tls") or not place:
        raise ValueError(f"ENGINE={engine}: write dask://host:port, or leave it empty.")
    try:
        client = Client(f"tcp://{place}" if scheme == "dask" else engine)
    except OSError as error:
        raise OSError(f"ENGINE={engine}: no dask scheduler answers there ({error}).") from error
    try:
        _look(client, engine)
    except BaseException:
        client.close()
        raise
    return client


def _look(client: Client, engine: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    mark = CACHE / f"{uuid.uuid4()}.seen"
    mark.touch()
    try:
        client.wait_for_workers(1, timeout=60)
        seen = client.run(_seen, str(mark))
    finally:
        mark.unlink()
    for worker, (code, shares) in seen.items():
        if code != _digest():
            raise RuntimeError(f"ENGINE={engine}: {worker} has other code. Install this commit.")
        if not shares:
            raise RuntimeError(f"ENGINE={engine}: {worker} does not see {CACHE}. Share the folder.")


def _seen(mark: str) -> tuple[str, bool]:
    return _digest(), os.path.exists(mark)


def _digest() -> str:
    """Of all code that a job may run."""
    paths = sorted(path for folder in (ROOT / "sare_min", LAB) for path in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def side_by_side(
    work: Callable, jobs: Sequence, label: str, workers: int | None = None, progress: bool = True
) -> list:
    """[work(job) for job in jobs], on all cores or on ENGINE's, in the order of `jobs`; the bar
    shows jobs done and the time left.

    A job that fails lets the others finish; then one RuntimeError names every failed job and its
    error. A job whose worker is killed is done again, once, and a line on stderr names it; killed
    again, it has failed. (On a cluster its scheduler counts, three times by default, and logs.)
    """
    if THREADS > 1:  # a forked process hangs where its parent's threads were
        one_thread()
        return [work(job) for job in tqdm(jobs, desc=label, disable=not progress)]
    client = _client(os.environ.get("ENGINE", ""), workers or os.cpu_count() or 1)
    ended: dict[int, object] = {}
    failed: dict[int, str] = {}
    with closing(_ended(client, work, jobs, label)) as ending:
        for i, future, result in tqdm(ending, label, len(jobs), disable=not progress):
            if future.status == "error":
                failed[i] = f"{jobs[i]}: {_reason(result[1])}"
            ended[i] = result
    if failed:
        lines = "\n".join(failed[i] for i in sorted(failed))
        raise RuntimeError(f"{label}: {len(failed)} of {len(jobs)} jobs failed:\n{lines}")
    return [ended[i] for i in range(len(jobs))]


def _reason(error: BaseException) -> str:
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return "its worker was killed, twice. Is there memory?"
    return f"{type(error).__name__}: {error}"


def _ended(
    client: Client, work: Callable, jobs: Sequence, label: str
) -> Generator[tuple[int, Future, object]]:
    """(number of the job, its future, its result or exc_info) as they end.

    No more are out than there are workers: they begin in their order, and a worker that is killed
    takes no job with it that only waited.
    """
    from distributed import as_completed

    waiting, out = iter(enumerate(jobs)), {}
    ending = as_completed(with_results=True, raise_errors=False, loop=client.loop)

    def send() -> None:
        for i, job in waiting:
            future = client.submit(_work, work, job, pure=False)
            out[future] = i
            ending.add(future)
            if len(out) >= sum(client.nthreads().values()):
                break

    try:
        send()
        for future, result in ending:
            i = out.pop(future)
            if _again(client, future):
                again = f"{label}: a worker was killed; done again: {jobs[i]}"
                print(again, file=sys.stderr, flush=True)
            yield i, future, result
            send()
    except BaseException:  # a stopped cell
        _drop(client, list(out))
        raise


def _work(work: Callable, job: object) -> object:
    one_thread()
    return work(job)


def _again(client: Client, future: Future) -> bool:
    return client.cluster is not None and client.cluster.scheduler.tasks[future.key].suspicious > 0


def _drop(client: Client, futures: list[Future]) -> None:
    """End what is under way; on a cluster, which may be others' too, what has begun ends itself."""
    if client.cluster is None:
        client.cancel(futures)
        return
    _client.cache_clear()
    client.run(os._exit, 1, wait=False, on_error="ignore")  # a job hears no signal
    client.cluster.close()
    client.close()


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

"""Jobs side by side: their order, their failures, workers that are killed, and a cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest
import torch
from distributed import LocalCluster

from lab import engine, files, jobs


def work(job):
    if job == 3:
        raise ValueError("no such seed")
    return job * job


def kill_once(job):
    """Kills its worker the first time."""
    folder, n = job
    mark = Path(folder) / f"killed {n}"
    if n == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def kill_always(job):
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


def squares(what, work_items, **settings):
    return engine.side_by_side(what, work_items, "squares", 2, progress=False, **settings)


def test_side_by_side_keeps_order_and_names_what_failed():
    """Fails if one failing job hides its name or keeps the others from finishing."""
    assert squares(work, [2, 1, 4]) == [4, 1, 16] and squares(work, []) == []
    with pytest.raises(RuntimeError, match="1 of 3 jobs failed:\n3: ValueError: no such seed"):
        squares(work, [2, 3, 4])


def draws(job):
    """Keeps drawn numbers, and weights as a fresh adapter's, in an entry of the cache."""
    cache, n = job

    def build(path):
        drawn = torch.nn.Linear(n + 1, 4).weight.tolist()
        (path / "found.json").write_text(json.dumps([n, drawn, torch.rand(n).tolist()]))

    with pytest.MonkeyPatch.context() as patch:  # the worker is another test's, too
        patch.setattr(jobs, "CACHE", Path(cache))
        return json.loads((jobs.folder("thing", n, (), build) / "found.json").read_text())


def drawn(cache, order, work):
    """(results by job, the bytes of the files that they stand in)."""
    found = work(draws, [(str(cache), n) for n in order])
    written = {p.relative_to(cache): p.read_bytes() for p in cache.glob("*/*/found.json")}
    return dict(zip(order, found)), written


def test_one_process_or_two_workers_in_any_order_give_the_same_bytes(tmp_path):
    """Fails if a job's result depends on what its worker did before it, or on its place."""
    straight = drawn(tmp_path / "0", range(6), lambda *given: [*map(*given)])
    assert len(straight[1]) == 6 == len(set(straight[1].values()))
    for place, order in enumerate((range(6), [4, 2, 5, 1, 0, 3]), 1):
        assert drawn(tmp_path / str(place), order, squares) == straight


def stamp(job):
    time.sleep(0.02)
    return time.time()


def test_jobs_begin_in_their_order():
    """Fails if the engine sorts jobs by their names, and the longest is no longer the first."""
    began = squares(stamp, range(30))
    assert all(later > earlier for earlier, later in zip(began, began[4:], strict=False))


def test_rows_side_by_side_does_a_shared_job_once():
    """Fails if a row gets another's results, or if the order of the work shows in them."""
    rows = {"a": [5, 1, 4], "b": [4, 2], "none": []}
    found = jobs.rows_side_by_side(work, rows, "squares", order=lambda job: -job, progress=False)
    assert found == {"a": [25, 1, 16], "b": [16, 4], "none": []}


@pytest.mark.skipif(engine.START == "spawn", reason="no fork server on this system")
def test_workers_find_the_libraries_loaded(monkeypatch):
    """Fails if the server that workers are forked from does not find the book's modules, or if its
    path leaks into this process.
    """
    script = (
        "import os, sys; sys.path[:0] = sys.argv[1:]; from lab import jobs; jobs.warm_up(); seen"
        ' = jobs.side_by_side(eval, [\'"lab.experiments.gauges" in __import__("sys").modules\'],'
        " 'seen', progress=False); print(seen, os.environ.get('PYTHONPATH'))"
    )
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", script, str(files.ROOT), str(files.LAB.parent)],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["[True]", "elsewhere"], done.stderr


def test_a_worker_keeps_what_it_has_loaded():
    """Fails if each job, or each call, gets a new process: every job would load its base model."""
    first, second = (set(squares(process, range(6))) for _ in range(2))
    assert first | second == first and len(first) <= 2 and os.getpid() not in first


def process(_):
    return os.getpid()


def test_the_jobs_of_a_killed_worker_are_done_again(tmp_path, capsys):
    """Fails if one killed worker ends the run, or if it goes unnamed."""
    items = [(str(tmp_path), n) for n in range(6)]
    assert squares(kill_once, items) == [0, 1, 4, 9, 16, 25]
    lines = capsys.readouterr().err.splitlines()
    assert f"squares: a worker was killed; done again: {items[2]}" in lines
    assert all("done again: " in line for line in lines)  # the engine itself is silent


def test_a_job_that_always_kills_its_worker_is_named(capsys):
    """Fails if it is tried for ever, if its neighbours are blamed, or if they are not done."""
    with pytest.raises(RuntimeError, match="1 of 6 jobs failed:\n2: its worker was killed, twice"):
        squares(kill_always, range(6))
    assert "done again: 2" in capsys.readouterr().err
    assert squares(kill_always, [1, 3]) == [1, 9]


def test_a_worker_killed_between_two_calls_is_replaced():
    """Fails if a call finds a worker of the one before it dead, and gives up."""
    os.kill(squares(process, [0])[0], signal.SIGKILL)
    assert squares(work, [2, 1]) == [4, 1]


def test_workers_that_were_given_up_are_replaced(monkeypatch):
    """Fails if jobs wait for ever where no worker is left: one that is killed while it starts again
    is given up by the nanny that would have replaced it, and on a starved machine that was both.
    """
    monkeypatch.setattr(engine, "ASKED", 0.2)
    client = engine._near(2)
    monkeypatch.setattr(engine, "_client", lambda *_: client)
    dask.config.set({"distributed.deploy.lost-worker-timeout": "0s"})
    try:
        for nanny in list(client.cluster.workers.values()):
            client.sync(nanny.close)
        assert squares(work, [2, 1]) == [4, 1]
    finally:
        dask.config.set(engine.SETTINGS)
        client.cluster.close()
        client.close()


def test_a_stopped_cell_leaves_no_job_behind(tmp_path):
    """Fails if a job runs on after its cell was stopped, or if the next cell cannot run."""
    before = set(squares(process, range(6)))
    signal.signal(signal.SIGALRM, interrupt_here)
    signal.alarm(1)
    with pytest.raises(KeyboardInterrupt):
        squares(time.sleep, [600, 601, 602])
    assert squares(work, [2, 1]) == [4, 1]
    assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]


def interrupt_here(*_):
    raise KeyboardInterrupt


def builds(job):
    """A cache entry under the shared folder; its number, and the process that built it."""
    folder, n, kills = job
    jobs.CACHE = Path(folder)

    def build(path):
        mark = Path(folder) / "killed"
        if kills and n == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        files.write_json(path / "found.json", [n, n * n])

    return jobs.folder("thing", n, (), build).name, os.getpid()


def built(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("found.json")}


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """Two workers that are not of this process's making."""
    squares(work, [1])  # the settings
    monkeypatch.setattr(engine, "CACHE", tmp_path)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        address = cluster.scheduler_address.replace("tcp", "dask")
        monkeypatch.setenv("ENGINE", address)
        yield address


def test_a_cluster_writes_the_same_files(cluster, tmp_path, monkeypatch):
    """Fails if ENGINE is not used, or if a run on it, one of its workers killed midway, leaves
    other files than one without.
    """
    found = squares(builds, [(str(tmp_path / "far"), n, True) for n in range(6)])
    assert (tmp_path / "far" / "killed").exists()
    monkeypatch.delenv("ENGINE")
    near = squares(builds, [(str(tmp_path / "near"), n, False) for n in range(6)])
    assert [name for name, _ in found] == [name for name, _ in near]
    assert not {pid for _, pid in found} & {pid for _, pid in near}
    assert built(tmp_path / "far") == built(tmp_path / "near") and len(built(tmp_path / "far")) == 6
    engine._client(cluster, 2).close()


@pytest.mark.parametrize("fault, words", [("code", "has other code"), ("folder", "Share the")])
def test_a_cluster_that_is_of_no_use_is_refused(cluster, monkeypatch, fault, words):
    """Fails if jobs are sent to workers with other code, or whose results would not be found."""
    if fault == "code":
        monkeypatch.setattr(engine, "_digest", lambda: "another")
    else:
        monkeypatch.setattr(engine, "_seen", lambda mark: (engine._digest(), False))
    with pytest.raises(RuntimeError, match=words):
        squares(work, [1])
    monkeypatch.undo()


@pytest.mark.parametrize("address", ["host:1", "http://host:1", "dask://"])
def test_a_bad_engine_is_named(monkeypatch, address):
    """Fails if a typing error ends in a wait of half a minute, or in the embedded engine."""
    monkeypatch.setenv("ENGINE", address)
    with pytest.raises(ValueError, match=f"ENGINE={address}: write dask://host:port"):
        squares(work, [1])

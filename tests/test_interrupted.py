"""The pieces of `lab.tools.interrupted`, which kills runs and compares what they write."""

import json
import random
import signal

import nbformat
import pytest

from lab.tools import interrupted


@pytest.fixture
def place(tmp_path):
    found = interrupted.Place(tmp_path)
    for path in (found.root / "chapters", found.root / "build/executed", found.cache / "run/a"):
        path.mkdir(parents=True)
    return found


def notebook(seconds: float, said: str) -> str:
    note = {"papermill": {"duration": seconds}}
    output = nbformat.v4.new_output("stream", text=said)
    cell = nbformat.v4.new_code_cell("1", id="a", metadata=note, outputs=[output])
    given = nbformat.v4.new_code_cell("2", metadata={"tags": ["injected-parameters"]})  # random id
    return nbformat.writes(nbformat.v4.new_notebook(cells=[given, cell], metadata=note))


def test_a_difference_is_named_and_a_time_is_none(place):
    """Fails if a changed, a missing or a half file passes, or if two runs' times count."""
    executed, build = place.root / "build/executed/00_x.ipynb", place.root / "build"
    for name in ("changed.json", "missing.json"):
        (build / name).write_text("1")
    (build / "profile.json").write_text("3 seconds")
    (place.cache / "run/a/seconds").write_text("3")
    executed.write_text(notebook(3, "a"))
    right = interrupted.written(place)
    assert set(right) == {f"build/{n}" for n in ("changed.json", "missing.json")} | {
        "build/executed/00_x.ipynb"
    }
    (build / "profile.json").write_text("4 seconds")
    (place.cache / "run/a/seconds").write_text("4")
    executed.write_text(notebook(4, "a"))
    assert not interrupted.differences(interrupted.written(place), right)
    executed.write_text(notebook(4, "b"))
    (build / "changed.json").write_text("2")
    (build / "missing.json").rename(build / "missing.json.7.part")
    names = ("changed.json", "executed/00_x.ipynb", "missing.json", "missing.json.7.part")
    found = interrupted.differences(interrupted.written(place), right)
    assert found == [f"build/{name}" for name in names]


LEAVES = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
"""


def test_an_adapters_modules_are_a_set():
    """Fails if their order counts, or if other modules pass."""

    def config(*names):
        text = json.dumps({"r": 8, "target_modules": names}).encode()
        return interrupted.content("build/a/adapter_config.json", text)

    assert config("q", "k") == config("k", "q") != config("k", "v")


def test_an_orphan_is_found_and_ended(place):
    """Fails if what a killed run left is not seen, not named, or left alive."""
    run = place.start(["-c", LEAVES], place.at / "log")
    assert run.wait() == 0
    (left,) = interrupted.running(place)
    assert interrupted.strays(place, 0) == [f"{left.pid} helper"]
    left.wait(10)
    assert not interrupted.strays(place, 0)


def test_the_victim_dies_or_the_run_in_its_stead(place):
    """Fails if a kill hits nothing, and so proves nothing."""
    run = place.start(["-c", "import time; time.sleep(600)"], place.at / "log")
    assert interrupted.kill(place, run, "kernel", random.Random(0)) == "run"
    assert run.wait(10) == -signal.SIGKILL
    words = ["-c", "import time; time.sleep(600)", "ipykernel_launcher"]
    kernel = place.start(words, place.at / "log")
    assert interrupted.kill(place, kernel, "kernel", random.Random(0)) == "kernel"
    assert kernel.wait(10) == -signal.SIGKILL


def test_what_is_taken_away_took_its_share_of_the_time(place):
    """Fails if a later round has nothing left to do, or begins from nothing."""
    for name, seconds in (("run/a", 1), ("run/b", 2), ("base/c", 30), ("said/d", 0.1)):
        (place.cache / name).mkdir(parents=True, exist_ok=True)
        (place.cache / name / "seconds").write_text(f"{seconds}\n")
    n_gone = interrupted.thin(place, 0.3, random.Random(0))
    assert 0 < n_gone == 4 - len(list(place.cache.glob("*/*"))) < 4
    assert not (place.cache / "base/c").exists() and not (place.root / "build").exists()


def test_the_copys_jobs_are_shuffled_and_their_results_are_not():
    """Fails if the command compares one order with the same one, or mixes results up."""
    seen = []

    def side_by_side(work, jobs, label, workers=None, progress=True):
        seen.extend((workers, job) for job in jobs)
        return [work(job) for job in jobs]

    copy = {"side_by_side": side_by_side}
    exec(interrupted.SHUFFLED, copy)
    assert copy["side_by_side"](str, range(20), "") == [str(n) for n in range(20)]
    assert sorted(seen) == [(1, n) for n in range(20)] != seen


def test_a_run_that_fails_is_not_taken_for_one_that_ended(place):
    """Fails if the command goes on after a run that ended in an error."""
    with pytest.raises(RuntimeError, match="the run failed: see .*log"):
        interrupted.finished(place, ["-c", "raise SystemExit(1)"], place.at / "log")
    interrupted.finished(place, ["-c", ""], place.at / "log")

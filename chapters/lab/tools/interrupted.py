"""Killed and started again, run twice at once, run in another order: are the bytes the same?

From chapters/, `python -m lab.tools.interrupted --into DIR` copies this checkout into DIR, which
gets a cache of its own, and runs there what `make execute PRESET=fast` calls:

- `whole`: from nothing to the end. What it wrote is what the others are held against.
- `kills`: kill -9 of the run, its kernel or a worker, in turn, at random moments of each chapter;
  started again each time. After each kill nothing may be left running.
- `two`: two runs at once.
- `nbval`: chapter 02 under nbval, killed and run again; then a whole run.
- `order`: one worker instead of one a core, and the jobs of each call shuffled.

`--parts kills two` does some of them again, against the whole run that lies in DIR; `--share 0.1`
begins with most of its cache instead of none. From nothing all take hours on two cores, so CI tests
the pieces alone (tests/test_interrupted.py).
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil  # ipykernel brings it

from .. import entries, files
from ..shell import ended
from .execute import NAMES, strip

RUN = ("-m", "lab.tools.execute", "--preset", "fast")
NBVAL = ("-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider")
VICTIMS = ("run", "kernel", "worker")
MARK = "SARE_INTERRUPTED"  # in the environment of all that a place runs
WARM = 5.0  # seconds that a chapter takes at least
# Seconds in which a killed run's processes must be gone. The server that workers are forked from
# hears of the end once it has loaded its libraries, which takes a starved machine half a minute.
PATIENCE = 120.0
NOT_COPIED = (".git", ".venv*", "build", ".cache", "__pycache__", ".*_cache")
NOT_COMPARED = {  # what two equal runs may write differently, and why
    "build/profile.json": "it holds times",
    "cache/*/seconds": "a time",
    f"cache/*/{entries.SEAL}": "it holds the checksum of that time",
    "*.lock": "empty, and left lying by the library that locks",
}
SHUFFLED = '''

_in_order = side_by_side


def side_by_side(work, jobs, label, workers=None, progress=True):
    """The copy's own: the jobs shuffled, on one worker."""
    import random

    order = random.Random(len(jobs)).sample(range(len(jobs)), len(jobs))
    found = _in_order(work, [jobs[i] for i in order], label, 1, progress)
    return [found[order.index(i)] for i in range(len(jobs))]
'''


@dataclass(frozen=True)
class Place:
    """A copy of the checkout, with a cache, temporary files and logs of its own."""

    at: Path

    @property
    def root(self) -> Path:
        return self.at / "checkout"

    @property
    def cache(self) -> Path:
        return self.at / "cache"

    def environment(self) -> dict[str, str]:
        """This process's, with the copy's modules, cache and temporary files."""
        own = {k: v for k, v in os.environ.items() if k not in ("KEEP", "LAB_THREADS", "ENGINE")}
        paths = os.pathsep.join([str(self.root), str(self.root / "chapters")])
        return own | {
            MARK: str(self.at),
            "PYTHONPATH": paths,
            "LAB_CACHE": str(self.cache),
            "TMPDIR": str(self.at / "tmp"),
        }

    def start(self, words: Sequence[str], log: Path) -> subprocess.Popen:
        """Python with these words, from the copy's chapters/, all that it says in the log."""
        for folder in (self.cache, self.at / "tmp", log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with log.open("w") as said:
            return subprocess.Popen(
                [sys.executable, *words],
                cwd=self.root / "chapters",
                env=self.environment(),
                stdout=said,
                stderr=subprocess.STDOUT,
            )


def copied(place: Place) -> None:
    """A new copy of the checkout, and an empty cache."""
    for folder in (place.root, place.cache):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(files.ROOT, place.root, ignore=shutil.ignore_patterns(*NOT_COPIED))


def running(place: Place) -> list[psutil.Process]:
    """All processes that were started for this place and live, orphans among them."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get(MARK) == str(place.at)
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it ended meanwhile, or is another user's
            continue
    return found


def part_of(process: psutil.Process) -> str:
    """What a process of a run is: "kernel", "worker", or "" for the run and its helpers."""
    try:
        words = " ".join(process.cmdline())
        if "ipykernel_launcher" in words:
            return "kernel"
        is_worker = "resource_tracker" not in words and not process.children()
        return "worker" if is_worker and "multiprocessing" in words else ""
    except psutil.Error:
        return ""


def kill(place: Place, run: subprocess.Popen, victim: str, rng: random.Random) -> str:
    """Kill -9 the victim, or the run itself if there is none of its kind now; what was killed."""
    chosen = [process for process in running(place) if part_of(process) == victim]
    try:
        rng.choice(chosen).kill()
        return victim
    except (IndexError, psutil.Error):
        run.kill()
        return "run"


def strays(place: Place, seconds: float = PATIENCE) -> list[str]:
    """What still runs after so many seconds, and is killed now; [] as soon as nothing does."""
    end = time.monotonic() + seconds
    while (left := running(place)) and time.monotonic() < end:
        time.sleep(0.2)
    names = [f"{process.pid} {part_of(process) or 'helper'}" for process in left]
    for process in left:
        process.kill()
    return names


def content(file: str, data: bytes) -> bytes:
    """What must be equal of a file: an executed notebook without what `strip` drops and without the
    parameters' cell, which papermill gives a random id; an adapter's modules, which peft keeps as a
    set, in order.
    """
    if file.startswith("build/executed/"):
        notebook = strip(nbformat.reads(data.decode(), 4))
        notebook.cells = [
            cell
            for cell in notebook.cells
            if "injected-parameters" not in cell.metadata.get("tags", [])
        ]
        return nbformat.writes(notebook).encode()
    if file.endswith("/adapter_config.json"):
        config = json.loads(data)
        return json.dumps(config | {"target_modules": sorted(config["target_modules"])}).encode()
    return data


def written(place: Place) -> dict[str, str]:
    """{file: SHA-256 of its content} of all that runs have written, but NOT_COMPARED."""
    found = {}
    for name, top in (("build", place.root / "build"), ("cache", place.cache)):
        for path in sorted(p for p in top.rglob("*") if p.is_file()):
            file = f"{name}/{path.relative_to(top).as_posix()}"
            if not any(fnmatch.fnmatch(file, pattern) for pattern in NOT_COMPARED):
                found[file] = hashlib.sha256(content(file, path.read_bytes())).hexdigest()
    return found


def differences(found: dict[str, str], right: dict[str, str]) -> list[str]:
    """The files that one side lacks, or that differ; a half file is one too many."""
    names = sorted(found.keys() | right.keys())
    return [name for name in names if found.get(name) != right.get(name)]


def thin(place: Place, share: float, rng: random.Random) -> int:
    """Take random entries away from the cache until this share of their building time is gone, and
    all of build/; how many entries.
    """
    shutil.rmtree(place.root / "build", ignore_errors=True)
    seconds = {path.parent: float(path.read_text()) for path in place.cache.glob("*/*/seconds")}
    order, gone, n_gone = sorted(seconds), 0.0, 0
    rng.shuffle(order)
    for path in order:
        if gone >= share * sum(seconds.values()):
            break
        shutil.rmtree(path)
        gone, n_gone = gone + seconds[path], n_gone + 1
    return n_gone


def wait_for(log: Path, chapter: str, run: subprocess.Popen) -> bool:
    """Until the run has begun the chapter; False if it ended before."""
    while run.poll() is None:
        if f"== {chapter}" in log.read_text(errors="replace"):
            return True
        time.sleep(0.2)
    return False


def finished(place: Place, words: Sequence[str], log: Path) -> None:
    """Run to the end; RuntimeError naming the log if it fails."""
    if place.start(words, log).wait():
        raise RuntimeError(f"the run failed: see {log}")


def same(place: Place) -> None:
    """Raise RuntimeError naming the files that are not those of the whole run."""
    right = json.loads((place.at / "whole.json").read_text())
    if wrong := differences(written(place), right):
        raise RuntimeError(f"{len(wrong)} of {len(right)} files differ: {', '.join(wrong)}")
    print(f"   {len(right)} files, all equal", flush=True)


def whole(place: Place, *_: object) -> None:
    copied(place)
    finished(place, RUN, place.at / "logs/whole.log")
    files.write_json(place.at / "whole.json", written(place))
    shutil.copy(place.root / "build/profile.json", place.at / "took.json")


def kills(place: Place, share: float, rng: random.Random, n: int = 30) -> None:
    """Rounds of one kill in each chapter, and then a whole run; before each round this share of the
    cache's building time is taken away.
    """
    took = json.loads((place.at / "took.json").read_text())["chapters"]
    done = 0
    while done < n:
        print(f"   {thin(place, share, rng)} entries taken away", flush=True)
        for chapter in NAMES:
            victim = VICTIMS[(done + done // len(NAMES)) % len(VICTIMS)]  # another in each round
            moment = rng.uniform(0, share * took[chapter] + WARM)
            what = killed(place, chapter, moment, victim, rng)
            done += what in VICTIMS
            print(f"   kill {done}: {chapter} after {moment:.1f} s: {what}", flush=True)
        finished(place, RUN, place.at / f"logs/after-{done:02}.log")
        same(place)


def killed(place: Place, chapter: str, moment: float, victim: str, rng: random.Random) -> str:
    """Run a chapter and kill so many seconds after its beginning; what was killed. One that loses a
    worker has to go on to its end. Raises RuntimeError if it does not, or if something still runs.
    """
    log = place.at / f"logs/killed-{chapter}-{victim}.log"
    run, what = place.start((*RUN, "--only", chapter), log), "none: it had ended"
    if wait_for(log, chapter, run):
        with suppress(subprocess.TimeoutExpired):
            run.wait(moment)
    if run.poll() is None:
        what = kill(place, run, victim, rng)
    if run.wait() and what not in ("run", "kernel"):
        raise RuntimeError(f"a run that should have gone on failed: see {log}")
    if left := strays(place):
        raise RuntimeError(f"left running {PATIENCE:.0f} s after a kill: {', '.join(left)}")
    return what


def two(place: Place, share: float, rng: random.Random) -> None:
    thin(place, share, rng)
    logs = [place.at / f"logs/two-{i}.log" for i in range(2)]
    runs = [place.start(RUN, log) for log in logs]
    if any(codes := [run.wait() for run in runs]):
        raise RuntimeError(f"two at once ended with {codes}: see {logs[0].parent}")
    same(place)


def nbval(place: Place, share: float, rng: random.Random) -> None:
    thin(place, share, rng)
    words = (*NBVAL, str(place.root / "chapters/02_fragile_erasure.ipynb"))
    run = place.start(words, place.at / "logs/nbval-killed.log")
    with suppress(subprocess.TimeoutExpired):
        run.wait(rng.uniform(15, 30))
    if run.poll() is not None:
        raise RuntimeError("nbval ended before it was killed: see logs/nbval-killed.log")
    run.kill()
    run.wait()
    if left := strays(place):
        raise RuntimeError(f"left running {PATIENCE:.0f} s after a kill: {', '.join(left)}")
    finished(place, words, place.at / "logs/nbval.log")
    finished(place, RUN, place.at / "logs/nbval-whole.log")
    same(place)


def order(place: Place, share: float, rng: random.Random) -> None:
    thin(place, share, rng)
    engine = place.root / "chapters/lab/engine.py"
    straight = engine.read_text()
    try:
        engine.write_text(straight + SHUFFLED)
        finished(place, RUN, place.at / "logs/order.log")
    finally:
        engine.write_text(straight)
    same(place)


PARTS: dict[str, Callable[..., None]] = {
    "whole": whole,
    "kills": kills,
    "two": two,
    "nbval": nbval,
    "order": order,
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", required=True, help="a folder for copy, cache and logs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of the cache's building time, taken away before each round; 1: from nothing",
    )
    given = parser.parse_args(words)
    place, rng = Place(Path(given.into).resolve()), random.Random(given.seed)
    for name in given.parts:
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        PARTS[name](place, given.share, rng, *([given.kills] if name == "kills" else []))
        print(f"   {name}: passed, {(time.monotonic() - begun) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    ended(main, None)

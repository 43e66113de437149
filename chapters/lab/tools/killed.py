"""Is `make real` the same to the byte when it is killed? From chapters/:

    python -m lab.tools.killed --data DIR --checkpoint DIR/llava --out DIR [--kills 20]

runs it once to its end, then kills it (the parent, its kernel and all that they started, by
SIGKILL) at random moments and starts it again, until there were so many kills and every run that
was begun has ended. Then all that they keep is compared: adapters, captions, answers, checkpoints
and the figure byte for byte, databases row for row. DIR may be a microworld that field/export.py
wrote.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import psutil

from ..files import CHAPTERS
from ..shell import ended

TABLES = {"said.db": "said", "again.db": "said", "clip_scores.db": "score"}


def start(words: Sequence[str], out: Path) -> subprocess.Popen:
    """`make real` in a process of its own; what it says goes to OUT.log."""
    whole = [sys.executable, "-m", "lab.tools.real", *words, "--out", str(out)]
    with Path(f"{out}.log").open("a") as log:
        return subprocess.Popen(whole, cwd=CHAPTERS, stdout=log, stderr=subprocess.STDOUT)


def kill(process: subprocess.Popen) -> None:
    """Kill a process and all below it (a kernel leads a group of its own) at once."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        whole = [top, *top.children(recursive=True)]
        for one in whole:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(whole[1:])
    process.wait()


def finish(process: subprocess.Popen, out: Path) -> None:
    """Wait for its end; raises RuntimeError with its last words if it ended badly."""
    if process.wait():
        last = Path(f"{out}.log").read_text().strip().splitlines()[-1]
        raise RuntimeError(f"{out}: {last}")


def contents(out: Path) -> dict[str, object]:
    """All that a run keeps, by its path in OUT; notebooks hold times and are left out."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        if path.name in TABLES:
            with closing(sqlite3.connect(path)) as memory:
                every = "SELECT * FROM " + TABLES[path.name]
                rows = memory.execute(every).fetchall()
            found[str(path.relative_to(out))] = sorted(rows, key=repr)
        elif path.is_file() and path.suffix != ".ipynb":
            found[str(path.relative_to(out))] = path.read_bytes()
    return found


def differences(whole: dict[str, object], other: dict[str, object]) -> list[str]:
    """The paths at which two runs differ."""
    return sorted(
        path for path in whole.keys() | other.keys() if whole.get(path) != other.get(path)
    )


def run(words: Sequence[str], out: Path, kills: int, seed: int = 0) -> int:
    """Run, kill and compare; returns how many killed runs were compared. Raises ValueError naming
    the files at which one differs.
    """
    begun, rng = time.monotonic(), random.Random(seed)
    finish(start(words, out / "whole"), out / "whole")
    took = time.monotonic() - begun
    whole, killed, n_runs = contents(out / "whole"), 0, 0
    print(f"whole: {took:.0f} seconds, {len(whole)} files", flush=True)
    while killed < kills:
        n_runs += 1
        own, moments = out / f"killed-{n_runs}", []
        process = start(words, own)
        while killed < kills and process.poll() is None:
            moment = rng.uniform(0, took / 2)  # a start goes on, so each part is reached
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment)
                break
            kill(process)
            killed += 1
            moments.append(moment)
            process = start(words, own)
        finish(process, own)
        print(f"{own.name}: killed after", *(f"{at:.0f}" for at in moments), "seconds", flush=True)
        if odd := differences(whole, contents(own)):
            raise ValueError(f"{own}: differs from the whole run in {', '.join(odd)}.")
        print(f"{own.name}: equal, {killed} kills so far", flush=True)
    return n_runs


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--preset", default="t4")
    parser.add_argument("--images", default="200")
    parser.add_argument("--tested", default="16")
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args(words)
    out = Path(given.out).resolve()
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out}: holds something: give a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    names = ("preset", "data", "checkpoint", "images", "tested")
    own = [word for name in names for word in (f"--{name}", getattr(given, name))]
    n_runs = run(own, out, given.kills)
    print(f"{given.kills} kills, {n_runs} runs: each equals the whole one.")
    shutil.rmtree(out)


if __name__ == "__main__":
    ended(main, None)

"""The cache under faults: whatever happens to an entry on the disk, the right result is read, or
built again.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_llava
from safetensors.torch import save_file

from lab import entries, files, jobs
from lab.experiments import (
    attacks,
    erasures,
    gauges,
    landscape,
    quality,
    surroundings,
    told,
)
from lab.experiments.erasures import Run
from lab.field import export
from lab.llava.checkpoints import save
from lab.world import bases, kit
from lab.world.models import build_processor

RUN = Run(1, "EFUF")
SMALL = {"chair_s": 0.25, "words": ["a", "cup"] * 9, "shown": 0.5}


def writes(name):
    """A stand-in for a build that ends in one JSON file; its folder may be any of its arguments."""

    def build(*given):
        path = next(value for value in given if isinstance(value, Path))
        (path / name).write_text(json.dumps(SMALL) + "\n")

    return build


def does_run(path, spec):
    writes("run.json")(path)
    model = torch.nn.Linear(30, 4)
    save_file({"0": model.weight.detach(), "1": model.bias.detach()}, path / "weights.safetensors")


def hears(path, seed):
    save_file({"test": torch.arange(500.0)}, path / "features.safetensors")
    writes("said.json")(path)


def scores(self, path):
    save_file({"scores": torch.rand(3, len(kit.OBJECTS))}, path / "scores.safetensors")


def builds_base(path, seed, world):
    save(tiny_llava(), build_processor(), path / "llava")


def exports(path, *_):
    for place in ("annotations", "train", "val"):
        (path / place).mkdir()
        for i in range(3):
            (path / place / f"{i}.json").write_text(json.dumps([place, i]))


def held(path):
    """All that a folder of the cache holds, but when and how fast it was built."""
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {k: v for k, v in found.items() if k not in ("seconds", entries.SEAL)}


def weights(model):
    return [p.tolist() for p in model.parameters()]


def bare_kit():
    found = object.__new__(kit.Kit)
    found.seed = 1
    return found


# kind -> (module, its build, the stand-in, how an entry of this kind is read)
KINDS = {
    "run": (erasures, "_do_run", does_run, lambda: erasures.run(RUN)),
    "weights": (erasures, "_do_run", does_run, lambda: weights(erasures.erased(RUN))),
    "answers": (erasures.measured, "yes_rates", lambda *_: SMALL, lambda: erasures.answers(RUN)),
    "attack": (
        attacks,
        "_do_attack",
        writes("curve.json"),
        lambda: attacks.attack(attacks.Attack(RUN, (0,))),
    ),
    "gauges": (
        gauges,
        "_measure",
        writes("gauges.json"),
        lambda: gauges.measure(gauges.Gauges(RUN)),
    ),
    "planes": (
        gauges,
        "_measure_plane",
        writes("plane.json"),
        lambda: gauges.measure_plane(gauges.Plane(RUN)),
    ),
    "quality": (
        quality,
        "_measure",
        writes("quality.json"),
        lambda: quality.measure(quality.Quality(RUN)),
    ),
    "slices": (
        landscape,
        "_measure_slices",
        writes("slices.json"),
        lambda: landscape.slices(landscape.Slices(RUN)),
    ),
    "around": (surroundings, "_measure", writes("around.json"), lambda: surroundings.around(1)),
    "told": (told, "_listen", writes("told.json"), lambda: told.listen(told.Told(RUN, (0,)))),
    "said": (bases, "_hear", hears, lambda: held(bases.said_folder(1))),
    "clip": (bases, "_build_clip", exports, lambda: held(bases.clip_folder())),
    "scores": (kit.Kit, "_score", scores, lambda: bare_kit().scores),
    "base": (bases, "_build_base", builds_base, lambda: weights(bases.base_model(1)[0])),
    "export": (
        export,
        "export",
        exports,
        lambda: held(jobs.folder("export", 1, export.SOURCES, exports)),
    ),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, whose builds are small, and quick."""
    monkeypatch.setattr(jobs, "CACHE", tmp_path)
    monkeypatch.setattr(jobs, "_whole", set())
    monkeypatch.setattr(erasures, "get_kit", lambda seed: SimpleNamespace(fresh=fresh))
    for module, name, stand_in, _ in KINDS.values():
        monkeypatch.setattr(module, name, stand_in)
    return tmp_path


def fresh(part):
    return torch.nn.Linear(30, 4)


def files_of(entry):
    return sorted(p for p in entry.rglob("*") if p.is_file() and p.name != "seconds")


def truncate(rng, entry, other):
    path = rng.choice(files_of(entry))
    os.truncate(path, rng.randrange(path.stat().st_size))
    return path.name


def empty(rng, entry, other):
    path = rng.choice(files_of(entry))
    os.truncate(path, 0)
    return path.name


def flip(rng, entry, other):
    path = rng.choice(files_of(entry))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return path.name


def lose(rng, entry, other):
    path = rng.choice([p for p in files_of(entry) if p.name != entries.SEAL])
    path.unlink()
    return path.name


def make_unreadable(rng, entry, other):
    path = rng.choice(files_of(entry))
    path.unlink()
    path.mkdir()
    return path.name


def age(rng, entry, other):
    seal = entry / entries.SEAL
    seal.write_text(seal.read_text().replace('"version": 1', f'"version": {rng.randint(2, 99)}'))
    return "version"


def mix_up(rng, entry, other):
    shutil.rmtree(entry)
    shutil.copytree(other, entry)
    return "it is the entry of"


def flatten(rng, entry, other):
    shutil.rmtree(entry)
    entry.write_text("a file")
    return entries.SEAL


def unseal(rng, entry, other):
    (entry / entries.SEAL).unlink()
    return ""  # as entries were before there were checksums: taken as its own


def leave_part(rng, entry, other):
    shutil.copytree(entry, Path(f"{entry}.part"))
    shutil.rmtree(entry)
    return ""  # somebody died while building: nothing to tell


FAULTS = (
    truncate,
    flip,
    empty,
    lose,
    make_unreadable,
    age,
    mix_up,
    flatten,
    unseal,
    leave_part,
)


def check(cache, kind, fault, rng, capsys):
    """Read an entry, hurt it, read it again as another process would."""
    read = KINDS[kind][3]
    right = read()
    folder = "run" if kind == "weights" else kind
    entry = next(p for p in (cache / folder).iterdir() if p.is_dir())
    other = next(p for p in cache.glob("*/*") if p.is_dir() and p != entry)
    says = fault(rng, entry, other)
    was = jobs._fault(entry)
    jobs._whole.clear()
    jobs._clear_leftovers.cache_clear()
    capsys.readouterr()
    assert read() == right
    lines = capsys.readouterr().err.splitlines()
    if says and was:
        assert len(lines) == 1 and f"cache, {folder}/{entry.name}: " in lines[0], lines
        # Bits of the checksums' own file may speak of another version, entry or file
        assert (says in lines[0] or says == entries.SEAL) and lines[0].endswith(": built again")
    else:  # a space of the checksums' own file, or nothing that was ever whole
        assert not lines or not says
    assert not jobs._fault(entry)
    assert not [*cache.glob("*/*.part"), *cache.glob("*/*.bad")]


def test_500_faults_500_right_results(cache, capsys):
    """Fails if any fault of the disk, in any kind of entry, is read as a result, ends in an error,
    or is mended without a line that names it.
    """
    torch.manual_seed(0)
    rng = random.Random(0)
    for kind in KINDS:
        KINDS[kind][3]()
    for i in range(500):
        kind = [*KINDS][i % len(KINDS)] if i % 10 or i < 100 else "run"
        if kind == "base" and i > 60:  # its reading alone takes a tenth of a second
            kind = "weights"
        torch.manual_seed(0)
        check(cache, kind, FAULTS[i // len(KINDS) % len(FAULTS)], rng, capsys)


def test_an_entry_is_checked_once(cache, monkeypatch):
    """Fails if each reading hashes the files again, or none does."""
    seen, fault = [], entries.fault
    monkeypatch.setattr(entries, "fault", lambda *given: seen.append(1) or fault(*given))
    erasures.run(RUN)
    jobs._whole.clear()
    seen.clear()
    for _ in range(3):
        erasures.run(RUN)
    assert len(seen) == 1


def test_an_entry_without_checksums_is_taken_if_it_looks_whole(cache, capsys):
    """Fails if entries from before there were checksums are trained again, or if one that was cut
    short is taken.
    """
    path = jobs.folder("thing", 1, (), exports)
    (path / entries.SEAL).unlink()
    jobs._whole.clear()
    assert jobs.folder("thing", 1, (), pytest.fail) == path and entries.is_sealed(path)
    (path / entries.SEAL).unlink()
    (path / "val" / "0.json").write_text("[")
    jobs._whole.clear()
    jobs.folder("thing", 1, (), exports)
    assert "does not look whole: built again" in capsys.readouterr().err
    assert json.loads((path / "val" / "0.json").read_text()) == ["val", 0]


OTHER = """
import os, sys, time
from pathlib import Path
from lab import jobs
jobs.CACHE = Path(sys.argv[1])

def build(path):
    (path / "result").write_text("the other's")
    print("building", flush=True)
    sys.stdin.readline()

jobs.folder("thing", 1, (), build)
"""


@pytest.fixture
def other(cache):
    """Another process in the middle of a build of ("thing", 1), until a line is written to it."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(cache)],
        cwd=files.CHAPTERS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "building\n"
        yield process
        process.kill()


def test_what_another_process_builds_is_waited_for(cache, other, monkeypatch):
    """Fails if both build, if the half is read, or if the wait goes without a word."""
    said = []
    monkeypatch.setattr(jobs, "PATIENCE", 0.01)

    def tell(path, what):
        said.append(what)
        other.stdin.write("go on\n")
        other.stdin.flush()

    monkeypatch.setattr(jobs, "_tell", tell)
    path = jobs.folder("thing", 1, (), pytest.fail)
    assert (path / "result").read_text() == "the other's"
    assert said == ["another process is building it: waiting"]


def test_what_a_killed_process_left_is_cleared(cache, other, capsys):
    """Fails if a half build is read, if it stays for ever, or if its lock does."""
    half = next(cache.glob("thing/*.part"))
    jobs._clear_leftovers(cache / "thing")
    assert half.exists(), "its writer lives"
    jobs._clear_leftovers.cache_clear()
    other.kill()
    other.wait()
    path = jobs.folder("thing", 2, (), exports)  # another entry of this kind
    assert not half.exists() and path.exists()
    assert jobs.folder("thing", 1, (), exports).exists() and not capsys.readouterr().err


def test_a_build_that_fails_leaves_no_half(cache):
    """Fails if a full disk stays full of what was begun."""

    def build(path):
        (path / "file").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        jobs.folder("thing", 1, (), build)
    assert not [p for p in cache.glob("thing/*") if p.suffix != ".lock"]


def test_times_of_a_changed_entry_are_not_read(cache):
    """Fails if the profile counts seconds that were not written."""
    path = jobs.folder("thing", 1, (), exports)
    assert jobs.profile()["thing"]["jobs"] == 1
    (path / "seconds").write_text("9999.00\n")
    jobs._whole.clear()
    assert jobs.profile() == {}
    with pytest.raises(FileNotFoundError, match="seconds has .* bytes instead of"):
        jobs.seconds("thing", 1, ())


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


def test_any_order_and_any_number_of_workers_give_the_same_bytes(tmp_path):
    """Fails if a job's result depends on what its worker did before it, or on its place."""
    straight = drawn(tmp_path / "0", range(6), lambda *given: [*map(*given)])
    assert len(straight[1]) == 6 == len(set(straight[1].values()))
    for workers, order in ((2, range(6)), (2, [4, 2, 5, 1, 0, 3]), (1, [5, 3, 0, 4, 2, 1])):
        work = partial(jobs.side_by_side, label="", workers=workers, progress=False)
        cache = tmp_path / f"{workers} {[*order]}"
        assert drawn(cache, order, work) == straight

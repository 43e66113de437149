"""No room on a real disk, no leave to write in a real folder: one error that names file and mend,
nothing left that a later run would trust, and the right result once there is room.
"""

import contextlib
import errno
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import disk_of
from safetensors.torch import load_file, save_file
from test_faults import chapter
from test_fuzz import FIELDS, NOBODY
from test_resuming import erase

from lab import entries, files, jobs
from lab.audit.shelf import Shelf
from lab.field import judge, photos
from lab.llava.resuming import STATE
from lab.tools import execute
from lab.world.models import build_clip, build_tokenizer, image_processor

resource = pytest.importorskip("resource", reason="limits of POSIX")
is_root = os.geteuid() == 0
FULL = "cannot be written .(No space left on device|File too large).*Make room"


@contextlib.contextmanager
def limited(n_bytes: int):
    """No file of this process, or of one that it starts, may grow longer: the system refuses the
    rest of the write, as a full disk does, in every library and for any user.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(tmp_path):
    """A disk of 256 KiB."""
    with disk_of("256k", tmp_path / "disk") as at:
        yield at


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, in which this process has checked nothing."""
    return empty(tmp_path / "cache", monkeypatch)


def empty(at: Path, monkeypatch) -> Path:
    monkeypatch.setattr(jobs, "CACHE", at)
    monkeypatch.setattr(jobs, "_whole", set())
    jobs._clear_leftovers.cache_clear()
    return at


def weights(path: Path) -> None:
    save_file({"w": torch.arange(90_000.0)}, path / "w.safetensors")


def values(path: Path) -> None:
    (path / "run.json").write_text(json.dumps(list(range(60_000))))


def pictures(path: Path) -> None:
    """So many files that their checksums are what finds no room."""
    for i in range(2000):
        (path / f"{i}.json").touch()


def within(path: Path) -> None:
    """A build that needs another one, as an erasure needs its base model."""
    jobs.folder("base", 1, (), weights)
    values(path)


def found(build) -> list:
    """What a build leaves, as it is read."""
    path = jobs.folder("run", 1, (), build)
    texts = [p.read_text() for p in sorted(path.glob("*.json")) if p.name != entries.SEAL]
    return texts + [load_file(p)["w"].tolist() for p in path.glob("*.safetensors")]


BUILDS = {"weights": weights, "values": values, "checksums": pictures, "within": within}


def refused(build, cache: Path) -> None:
    """The build ends in the named error and leaves nothing."""
    kind = "base" if build is within else "run"
    with pytest.raises(OSError, match=rf"cache/{kind}/\w+: {FULL}|disk/{kind}/\w+: {FULL}"):
        jobs.folder("run", 1, (), build)
    assert not [p for p in cache.glob("*/*") if p.suffix != ".lock"]


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_a_build_that_finds_no_room(cache, capsys, build):
    """Fails if a build that is refused in the middle of its weights, its JSON or its checksums ends
    in a bare error, leaves a half, or is not done anew once there is room.
    """
    with limited(100_000):
        refused(build, cache)
    whole = found(build)
    jobs._whole.clear()
    assert found(pytest.fail) == whole and whole
    assert not capsys.readouterr().err


@pytest.mark.skipif(not is_root, reason="root alone may mount a disk")
def test_a_build_on_a_disk_that_is_full(disk, monkeypatch):
    """Fails as above, on a real disk: room is made by removing what else lies there."""
    empty(disk, monkeypatch)
    for build in (weights, values, within):
        refused(build, disk)
    (disk / "ballast").write_bytes(bytes(200_000))

    def small(path):
        save_file({"w": torch.arange(20_000.0)}, path / "w.safetensors")

    refused(small, disk)
    (disk / "ballast").unlink()
    assert found(small) == [torch.arange(20_000.0).tolist()]


def test_a_changed_entry_and_no_room(cache, capsys):
    """Fails if an entry that must be built again is read as it stands because it cannot be."""
    path = jobs.folder("run", 1, (), values)
    (path / "run.json").write_text("[1]")
    jobs._whole.clear()
    with limited(100_000), pytest.raises(OSError, match=FULL):
        jobs.folder("run", 1, (), values)
    assert "run.json has 3 bytes instead of" in capsys.readouterr().err
    assert json.loads((jobs.folder("run", 1, (), values) / "run.json").read_text())[-1] == 59_999


def test_an_error_of_the_build_is_its_own(cache):
    """Fails if a file that a build misses is told as a full disk."""
    with pytest.raises(FileNotFoundError, match="^.Errno 2. No such file or directory: 'nowhere'"):
        jobs.folder("run", 1, (), lambda path: Path("nowhere").read_text())


@pytest.mark.parametrize("at, says", [("file", "File exists"), ("file/in", "Not a directory")])
def test_a_cache_that_is_a_file(tmp_path, monkeypatch, at, says):
    """Fails if LAB_CACHE that leads to a file ends in a bare error."""
    (tmp_path / "file").touch()
    empty(tmp_path / at, monkeypatch)
    with pytest.raises(OSError, match=rf"run/\w+: cannot be written .({says}|Not a directory)"):
        jobs.folder("run", 1, (), values)


def test_a_cache_that_is_not_there_is_made(tmp_path, monkeypatch):
    """Fails if LAB_CACHE must be made by hand."""
    empty(tmp_path / "a/b", monkeypatch)
    assert found(values) and (tmp_path / "a/b/run").is_dir()


@contextlib.contextmanager
def may_only_read(folder: Path):
    """As a user who may read the folder, and write nothing in it."""
    places = [folder, *(p for p in folder.rglob("*"))]
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for place in places:
            place.chmod(0o755)


@pytest.fixture
def shared(monkeypatch):
    """A cache where another user may look, with a whole entry, a changed one, and one without
    checksums.
    """
    with TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        at = empty(Path(parent) / "cache", monkeypatch)
        for n in range(3):
            jobs.folder("run", n, (), values)
        (jobs.CACHE / "run" / jobs.key(1, ()) / "run.json").write_text("[1]")
        (jobs.CACHE / "run" / jobs.key(2, ()) / entries.SEAL).unlink()
        empty(at, monkeypatch)
        yield at


CASES = ["changed", "without checksums", "missing", "left half built"]


@pytest.mark.parametrize("n", [1, 2, 3, 4], ids=CASES)
def test_a_cache_that_may_only_be_read(shared, n):
    """Fails if a whole entry cannot be read there, or what must be built ends in a bare error."""
    if n == 4:
        (shared / "run/dead.part").mkdir()
    with may_only_read(shared):
        assert jobs.folder("run", 0, (), pytest.fail).exists()
        with pytest.raises(OSError, match=r"run/\w+: cannot be written .Permission denied.*leave"):
            jobs.folder("run", n, (), pytest.fail)
        assert jobs.folder("run", 0, (), pytest.fail).exists()


@pytest.mark.skipif(not is_root, reason="root alone can be another user")
def test_a_cache_that_is_closed(shared):
    """Fails if a folder of another user's, closed to this one, ends in a bare error."""
    shared.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(OSError, match=r"run/\w+: cannot be written .Permission denied"):
            jobs.folder("run", 0, (), pytest.fail)
    finally:
        os.seteuid(0)


def test_a_checkpoint_that_finds_no_room(data, tmp_path):
    """Fails if a run that cannot keep its checkpoint loses the one before, goes on without a word,
    or ends with other bytes once there is room.
    """
    whole = erase(data)
    with contextlib.ExitStack() as until:

        def fills(now):
            if now == 7:
                until.enter_context(limited(9000))
            return False

        with pytest.raises(OSError, match=rf"state-00000008.safetensors: {FULL}"):
            erase(data, tmp_path, stop=fills)
    kept = json.loads((tmp_path / STATE).read_text())
    assert len(kept["log"]) == 6 and len([*tmp_path.iterdir()]) == 2
    assert erase(data, tmp_path) == whole


def test_scores_of_clip_that_find_no_room(tmp_path):
    """Fails if a full disk ends in SQLite's bare error, or spoils the scores that were kept."""
    files.write_json(tmp_path / "instances.json", FIELDS["instances.json"])
    for row in FIELDS["instances.json"]["images"]:
        photos.Image.new("RGB", (8, 8), row["id"]).save(tmp_path / row["file_name"])
    shown = photos.read_images(tmp_path / "instances.json", tmp_path)

    class Processor:
        image_processor, tokenizer = image_processor(), build_tokenizer(for_clip=True)

    clip, path = build_clip().eval(), tmp_path / "scores.sqlite"
    texts = [f"a picture of {i} cups" for i in range(400)]

    def scores(texts, at=path):
        return judge.scores(clip, Processor, shown, texts, at)

    first = scores(texts[:2])
    with limited(path.stat().st_size + 5000):
        with pytest.raises(ValueError, match=r"scores.sqlite: .*Is the disk full. Make room"):
            scores(texts)
        assert scores(texts[:2]).equal(first)
    assert scores(texts).equal(scores(texts, tmp_path / "another"))


def test_a_part_of_an_audit_that_finds_no_room(tmp_path):
    """Fails if a part is torn, or its error names no file."""
    shelf, stamp = Shelf(tmp_path / "parts"), {"for": 1}
    shelf.write("a part", stamp, {"values": [1.5]})
    with limited(2000), pytest.raises(OSError, match=f"parts/a_part.json: {FULL}"):
        shelf.write("a part", stamp, {"values": list(range(5000))})
    assert [p.name for p in shelf.folder.iterdir()] == ["a_part.json"]
    assert shelf.read("a part", stamp) == ({"values": [1.5]}, "")


def test_a_notebook_that_finds_no_room(tmp_path, monkeypatch):
    """Fails if a run that papermill cannot write names no file."""
    out = chapter(tmp_path, monkeypatch, "print('a line\\n' * 40_000)")
    with limited(100_000), pytest.raises(OSError, match=f"out.ipynb: {FULL}"):
        execute.execute("00_x", {"preset": "fast"}, out)


def test_every_error_of_no_room_is_known():
    """Fails if a quota, or the way in which safetensors tells it, is not seen as a full disk."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert files.is_full(OSError(code, "x"))
        assert files.is_full(Exception(f"Error: I/O error: x (os error {code})"))
    for error in (OSError(errno.ENOENT, "x"), Exception("os error 28"), ValueError("28")):
        assert not files.is_full(error)

"""A full disk, a folder that may only be read, a missing font, a killed parent: one error that
names what is wrong, nothing half written, nothing left running.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
import pytest
from PIL import Image
from test_fuzz import NOBODY

from lab import files
from lab.evidence import figures, ledger, observations, plan, quotes, report
from lab.evidence.__main__ import main as evidence
from lab.field import photos, score
from lab.shell import ended
from lab.tools import execute

is_root = os.name == "posix" and os.geteuid() == 0
PLAN = plan.load()
MARKED = f"Before.\n{ledger.pages.MARK}\nold\n{ledger.pages.MARK}\n"


def rows():
    """Observations of each primary row, so that a README can be written from them."""
    found = {}
    for id in PLAN.primaries:
        level = PLAN.rows[id].level
        level = level if isinstance(level, float) else 8.0
        arms = [
            [observations.Observation(s, 0, 0, 0.5 + s % 3, level, True) for s in PLAN.seeds[:3]]
            for _ in observations.ARMS
        ]
        found[id] = (arms[0], arms[1])
    return found


def publish(folder: Path) -> None:
    figures.publish("fig_dots", "04_x", {"SARE": [1.0, 2.0]}, "full", [1, 2], "Dots.", xlabel="x")
    figures.plt.close("all")


def keep(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(execute, "CHAPTERS", folder)
    execute.keep("00_x", notebook("1 + 1"))


def notebook(code: str) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell
    cells = [cell("preset = 'fast'", metadata={"tags": ["parameters"]}), cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


WRITERS = {  # what is written -> by what, given its folder
    "run.json": lambda at, _: files.write_json(at / "run.json", {"a": 0.5}),
    "rows.csv": lambda at, _: observations.write(at / "rows.csv", rows(), PLAN),
    "claims.json": lambda at, _: ledger.rebuild(at),
    "README.md": lambda at, _: ledger.pages.put_table(at / "README.md", "new"),
    "prose.md": lambda at, _: quotes.write([at / "prose.md"], at),
    "page.html": lambda at, _: report.write(report.read(at), report.read(at), at / "page.html"),
    "04_x.png": lambda at, _: publish(at),
    "00_x.ipynb": keep,
}


@pytest.fixture
def book(monkeypatch):
    """A figures folder in which every writer has written once, where another user may look."""
    with TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        yield filled(Path(parent) / "figures", monkeypatch)


def filled(at, monkeypatch):
    at.mkdir(mode=0o755)
    monkeypatch.setattr(files, "figures_folder", lambda *_: at)
    (at / "README.md").write_text(MARKED)
    nbformat.write(notebook("1 + 1"), at / "00_x.ipynb")
    files.write_json(at / "run.json", report.machine("full", PLAN.seeds[:3], PLAN.hash))
    observations.write(at / "rows.csv", rows(), PLAN)
    ledger.rebuild(at)
    publish(at)
    (at / "page.html").write_text("old")
    (at / "prose.md").write_text("<!-- C6a.n -->?<!-- / -->")
    return at


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(book, monkeypatch, name):
    """Fails if a writer that finds no room ends in a bare error, tears the old file, or leaves half
    of a new one.
    """
    before = contents(book)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half(self, data, *_, **__):
        with open(self, "w") as file:
            file.write(str(data)[:10])
        raise full

    def half_a_figure(_, path, **__):
        half(Path(path), "a figure")

    monkeypatch.setattr(Path, "write_text", half)
    monkeypatch.setattr(figures.Figure, "savefig", half_a_figure)
    with pytest.raises(OSError, match=f"{name}: cannot be written .No space left.*Make room"):
        WRITERS[name](book, monkeypatch)
    assert contents(book) == before


@contextmanager
def small_disk(at: Path):
    """A disk of 256 KiB; the test is skipped where none may be mounted."""
    at.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(at)]
    if (
        not (is_root and shutil.which("mount"))
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("no disk may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_a_real_full_disk(tmp_path, monkeypatch):
    """Fails if a disk that fills up tears what stands on it."""
    at = tmp_path / "disk"
    monkeypatch.setattr(files, "figures_folder", lambda *_: at)
    with small_disk(at):
        files.write_json(at / "run.json", {"whole": True})
        (at / "ballast").write_bytes(bytes(240 * 1024))
        for write in (
            lambda: files.write_json(at / "run.json", list(range(50_000))),
            lambda: publish(at),
        ):
            with pytest.raises(OSError, match="cannot be written .No space left on device"):
                write()
            assert sorted(path.name for path in at.iterdir()) == ["ballast", "run.json"]
            assert json.loads((at / "run.json").read_text()) == {"whole": True}


@contextmanager
def as_nobody():
    """As a user who may read the folder and not write it."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not is_root, reason="root alone can be another user")
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_may_only_be_read(book, monkeypatch, name):
    """Fails if leave to write is missing and the error does not say where."""
    before = contents(book)
    with as_nobody(), pytest.raises(OSError, match=f"{name}: cannot be written .Permission"):
        WRITERS[name](book, monkeypatch)
    assert contents(book) == before


@pytest.mark.skipif(not is_root, reason="root alone can be another user")
def test_the_command_on_a_folder_that_may_only_be_read(book):
    """Fails if `make evidence` ends in a traceback, with exit status 0, or half done."""
    before = contents(book)
    with as_nobody(), pytest.raises(OSError, match="claims.json: cannot be written"):
        evidence(folder=book, readme=book / "README.md", prose=[])
    assert contents(book) == before


def test_the_command_says_one_line_and_fails(tmp_path, monkeypatch):
    """Fails if `make execute` on a folder that cannot be made ends in a traceback or in success."""
    (tmp_path / "figures").write_text("a file, where the folder should be")
    monkeypatch.setattr(files, "figures_folder", lambda *_: tmp_path / "figures/full")
    with pytest.raises(SystemExit) as found:
        ended(execute.main, ["--preset", "fast"])
    assert str(found.value).startswith("error: ") and str(tmp_path / "figures") in str(found.value)


def test_a_missing_font_is_named(tmp_path, monkeypatch):
    """Fails if figures are drawn in another font without a word, and every picture changes."""
    monkeypatch.setattr(files, "figures_folder", lambda *_: tmp_path)
    monkeypatch.setattr(figures, "FONT", "No Such Font")
    with pytest.raises(OSError, match="04_x.png: the font No Such Font is missing. Install"):
        publish(tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_runs_write_one_file(tmp_path):
    """Fails if two processes that write a file share its unfinished part, or the part of a killed
    one stays.
    """
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"a.json.{dead.pid}.part").write_text("half")
    (tmp_path / f"a.json.{os.getppid()}.part").write_text("another's, and at work")
    files.write_json(tmp_path / "a.json", [1])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.json", f"a.json.{os.getppid()}.part"]
    with pytest.raises(RuntimeError), files.whole(tmp_path / "a.json") as part:
        part.write_text("half")
        raise RuntimeError("stopped")
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "a.json").read_text() == "[\n 1\n]\n"


def chapter(folder: Path, monkeypatch, code: str) -> Path:
    """A chapter of one cell in the folder; returns where it is executed to."""
    monkeypatch.setattr(execute, "CHAPTERS", folder)
    code = code.strip()
    nbformat.write(notebook(code), folder / "00_x.ipynb")
    jupytext.write(notebook(code), folder / "00_x.py", fmt="py:percent")
    return folder / "out.ipynb"


def test_a_failing_cell_is_named(tmp_path, monkeypatch):
    """Fails if a run of an hour ends without saying in which chapter and cell."""
    out = chapter(tmp_path, monkeypatch, "x = 1\n1 / (x - 1)")
    with pytest.raises(RuntimeError, match=r"^00_x, cell \d \(x = 1\): ZeroDivisionError: .*out"):
        execute.execute("00_x", {"preset": "fast"}, out)
    assert "ZeroDivisionError" in out.read_text()


BUSY = """import sys, time
sys.path[:0] = [{root!r}, {chapters!r}]
from lab import jobs
jobs.side_by_side(len, ["a", "b"], "", workers=2, progress=False)
open({up!r}, "w").close()
jobs.side_by_side(time.sleep, [600, 601], "", workers=2, progress=False)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_killed_parent_leaves_nothing_running(tmp_path, monkeypatch):
    """Fails if kill -9 of `make execute` leaves a kernel or one of its workers behind."""
    psutil = pytest.importorskip("psutil")
    up = tmp_path / "up"
    code = BUSY.format(root=str(files.ROOT), chapters=str(files.CHAPTERS), up=str(up))
    chapter(tmp_path, monkeypatch, code)
    command = "from pathlib import Path; from lab.tools import execute\n"
    command += f"execute.CHAPTERS = Path({str(tmp_path)!r})\n"
    command += f"execute.execute('00_x', {{}}, Path({str(tmp_path / 'out.ipynb')!r}))"
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", command],
        cwd=files.CHAPTERS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    children = []
    try:
        wait_for(lambda: up.exists() or parent.poll() is not None, 120)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 3  # the kernel, and workers
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert wait_for(lambda: not alive(psutil, children), 15), alive(psutil, children)
    finally:
        parent.kill()
        for child in alive(psutil, children):
            child.kill()


def wait_for(what, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.1)
    return what()


def alive(psutil, processes) -> list:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_what_is_said_and_scored_is_written_whole(tmp_path, monkeypatch):
    """Fails if a score's file of captions is torn by a full disk."""
    monkeypatch.setattr(Path, "replace", fails(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))))
    with pytest.raises(ValueError, match="--per-caption .*out: cannot be written .*quota"):
        score._write(tmp_path / "out", "text", tmp_path / "captions")
    assert not list(tmp_path.iterdir())


def fails(error):
    def raises(*_, **__):
        raise error

    return raises


def test_a_picture_filled_with_zeros_is_refused(tmp_path):
    """Fails if a picture whose tail was never written is shown as grey."""
    for kind, how in (("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})):
        Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "a", kind, **how)
        whole = (tmp_path / "a").read_bytes()
        assert photos.open_image(tmp_path / "a").size == (64, 64)
        for share in (0.3, 0.6, 0.85):
            filled = whole[: int(share * len(whole))].ljust(len(whole), b"\0")
            (tmp_path / "a").write_bytes(filled)
            with pytest.raises(ValueError, match="a: no usable image"):
                photos.open_image(tmp_path / "a")
    for size in (8, 3000):  # which of one colour holds many zeros
        for how in ({}, {"lossless": True}):
            Image.new("RGB", (size, size)).save(tmp_path / "a", "WEBP", **how)
            assert photos.open_image(tmp_path / "a").size == (size, size)

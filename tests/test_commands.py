"""What each command says of input that is broken: one line, that names the file or the word and the
mend, and an exit status that is not 0.
"""

import contextlib
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from lab import files
from lab.evidence import __main__ as evidence
from lab.evidence import plan, report
from lab.shell import ended
from lab.tools import book, cli, execute, real
from lab.tools.notebooks import read_notebook

EMPTY = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of what the commands read and write, small: one chapter, the figures' values, the
    README; what is there is in order.
    """
    figures = tmp_path / "figures"
    figures.mkdir()
    for path in (files.ROOT / "figures").glob("*.[cj]s*"):
        shutil.copy(path, figures)
    shutil.copy(files.ROOT / "README.md", tmp_path)
    for end in ("py", "ipynb"):
        shutil.copy(files.CHAPTERS / f"00_hallucination.{end}", tmp_path)
    shutil.copy(plan.PATH, tmp_path / "claims.toml")
    monkeypatch.setattr(execute, "CHAPTERS", tmp_path)
    monkeypatch.setattr(plan.load, "__defaults__", (tmp_path / "claims.toml",))
    monkeypatch.setattr(files, "figures_folder", lambda *_: tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def says(work, words: str | list[str], capsys) -> str:
    """The one line with which the command ends."""
    with pytest.raises(SystemExit) as end:
        ended(work, words.split() if isinstance(words, str) else words)
    code, printed = end.value.code, capsys.readouterr().err
    assert code not in (None, 0) and "Traceback" not in printed
    if isinstance(code, str):  # which Python prints, with status 1
        return code
    *above, line = printed.splitlines()
    assert not above or above[0].startswith("usage: ")  # argparse's, with status 2
    return line


def seeks(folder: Path):
    """`make evidence`, of the folder."""
    return lambda runs: evidence.main(runs, folder / "figures", folder / "README.md", [])


COMMANDS = {  # the command's words, and what it says
    "make execute": (
        execute.main,
        [
            ("--preset quick", "error: unknown preset 'quick': there are fast, full, headline"),
            (["--preset", "fast", "--seeds", "a b"], "error: seeds 'a b': give distinct whole n"),
            (["--seeds", "3 3"], "error: seeds '3 3': give distinct"),
            (["--seeds", "\N{SUPERSCRIPT TWO}"], "error: seeds '.': give distinct"),
            (["--seeds", "1" + "0" * 30], "error: seeds '10+': give distinct .* nine digits"),
            ("--only 09", "--only 09: no chapter's name starts so; there are 00_hallucination"),
        ],
    ),
    "make real": (
        real.main,
        [
            ("", "error: PRESET=: the real settings are t4, gpu"),
            ("--preset t4 --data nowhere", "error: DATA=nowhere: no such folder. Run `sare-min f"),
            ("--preset t4 --data figures", "error: .*figures, instances_train.*json: no such file"),
            ("--preset t4 --bits 3 --data figures", "error: BITS=3: give 16, or 4"),
        ],
    ),
    "sare-min": (
        cli.main,
        [
            ("scorn", "error: no such command: scorn. See `sare-min --help`"),
            ("score pope --questions no --answers no", "error: no: the file could not be read"),
            (
                "score pope --questions README.md --answers README.md",
                "error: README.md, row 1 .line 1.: broken JSON",
            ),
            (
                "score chair --captions no --instances no --human no --convention efuf",
                "error: no: the file could not be read",
            ),
            ("score chair --captions no", "error: .*required: --instances, --human, --convention"),
            ("compare no README.md", "error: no: the file could not be read as text"),
            ("compare README.md README.md", "error: README.md, row 1 .line 1.: broken JSON"),
            ("compare figures/run.json figures/run.json", "error: figures/run.json: .*'card'"),
            ("fetch coco --into README.md", "error: .*README.md"),
            ("fetch coco --into in --mirror nowhere", "error: .*--mirror: 'nowhere' is no URL"),
            ("audit --base no", "error: .*required: --erased, --data, --out"),
        ],
    ),
}
CASES = [(name, *case) for name, (_, cases) in COMMANDS.items() for case in cases]


@pytest.mark.parametrize("name, words, wanted", CASES)
def test_words(house, capsys, name, words, wanted):
    """Fails if a wrong word ends in a traceback or in status 0, or the line does not name it."""
    assert re.search(wanted, says(COMMANDS[name][0], words, capsys))
    assert not (house / "new").exists() and not (house / "out").exists()


def test_seeds_beside_keep(house, monkeypatch, capsys):
    """Fails if a run on the book's first seeds may come over the figures of all of them."""
    monkeypatch.setattr(files, "figures_folder", lambda *_: files.ROOT / "figures")
    line = says(execute.main, ["--seeds", "1001 1002"], capsys)
    assert "error: KEEP=1 keeps the book's own seeds: leave SEEDS empty, or KEEP unset" in line


NO_NOTEBOOK = {
    "not JSON": ("{", r"no notebook \(NotJSONError: .*make sync"),
    "empty": ("", r"no notebook \(NotJSONError: .*make sync"),
    "a list": ("[]", r"no notebook \(\w+: .*make sync"),
    "another document": ('{"cells": 3}', r"no notebook \(\w+: .*make sync"),
    "odd cells": (EMPTY.replace("[]", "[{}]"), r"no notebook \(\w*ValidationError: .*make sync"),
    "a cell of a number": (
        EMPTY.replace("[]", '[{"cell_type": "raw", "id": "a", "metadata": {}, "source": 3}]'),
        r"no notebook \(\w*ValidationError: .*make sync",
    ),
    "another's": (EMPTY, "is not what 00_hallucination.py says"),
    "zeros": ("\0" * 99, "00_hallucination.ipynb: the file holds zero bytes"),
    "gone": (None, "00_hallucination.ipynb: the file could not be read .*No such file"),
}


@pytest.mark.parametrize("text, wanted", NO_NOTEBOOK.values(), ids=NO_NOTEBOOK)
def test_make_execute_of_no_notebook(house, capsys, text, wanted):
    """Fails if a chapter's notebook that is none does not end the command by its name."""
    path = house / "00_hallucination.ipynb"
    path.unlink()
    if text is not None:
        path.write_text(text)
    line = says(execute.main, "--preset fast --only 00", capsys)
    assert re.match(rf"error: .*00_hallucination.ipynb.*{wanted}|error: .*{wanted}", line)


def test_make_sync_of_no_notebook(house, capsys):
    """Fails if `make sync` ends in jupytext's traceback, or cannot make what is not there."""
    path = house / "00_hallucination.ipynb"
    path.write_text("{")
    line = says(execute.main, "--sync --only 00", capsys)
    assert re.match(f"error: {path}: no notebook .*or delete it: `make sync` makes one", line)
    path.unlink()
    execute.main(["--sync", "--only", "00"])
    assert execute.cells(read_notebook(path)) == execute.cells(
        nbformat.read(files.CHAPTERS / path.name, as_version=4)
    )
    path.with_suffix(".py").unlink()
    assert re.match(f"error: {path}: jupytext could not", says(execute.main, "--sync", capsys))


BROKEN = {  # file -> (what it then holds, what `make evidence` says)
    "gone rows": ("figures/rows.csv", None, "rows.csv: not there. Run `make execute`"),
    "no rows": ("figures/rows.csv", "", "rows.csv"),
    "gone README": ("README.md", None, "README.md: the file could not be read"),
    "a README without marks": ("README.md", "text", "README.md: .*"),
    "a wrong row": ("claims.toml", "[row.C9z]", "claims.toml: row.C9z: no claim's row"),
    "no plan": ("claims.toml", None, "claims.toml: the file could not be read"),
    "an empty figure": ("figures/00_base.json", "", "00_base.json: the file is no JSON"),
}


@pytest.mark.parametrize("name, text, wanted", BROKEN.values(), ids=BROKEN)
def test_make_evidence(house, capsys, name, text, wanted):
    """Fails if a broken file is a traceback, is not named, or passes."""
    path = house / name
    if text is None:
        path.unlink()
    else:
        path.write_text((path.read_text() if name == "claims.toml" else "") + text)
    assert re.match(f"error: .*{wanted}", says(seeks(house), "", capsys))


def test_make_evidence_of_no_run(house, capsys):
    """Fails if RUNS that leads nowhere is not named."""
    assert re.match("error: nowhere: no claims.json", says(seeks(house), "nowhere", capsys))
    assert re.match(
        "error: nowhere/claims.json: the file could not", says(report.main, "nowhere", capsys)
    )
    assert re.match("error: give one folder", says(report.main, "", capsys))


def test_make_book(house, monkeypatch, capsys):
    """Fails if a site that cannot be made ends in a traceback, or names no file."""
    monkeypatch.setattr(book, "build", lambda *_: pytest.fail("it was built"))
    line = says(book.main, f"{house}/README.md/site", capsys)
    assert re.match("error: .*README.md/site-pages: cannot be written .Not a directory", line)
    line = says(book.main, f"{house}/site {house}/nowhere", capsys)
    assert re.match(f"error: .*{house}/nowhere/.*json: the file could not be read", line)
    path = house / "00_hallucination.ipynb"
    path.write_text("{")
    with pytest.raises(ValueError, match=f"{path}: no notebook"):
        book.notebook(path, path.name, house / "figures")
    for text, wanted in (("", "is no JSON"), ("3", "no caption there"), ("{}", "no caption")):
        (house / "figures/00_base.json").write_text(text)
        with pytest.raises(ValueError, match=f"00_base.json: .*{wanted}"):
            book.about(house / "figures/00_base.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_output_that_finds_no_room(monkeypatch, capsys):
    """Fails if a score that cannot be written passes for one, or ends in Python's traceback."""
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full):
        assert cli.main(["--help"]) == 1
    assert capsys.readouterr().err == (
        "error: the output cannot be written: No space left on device\n"
    )

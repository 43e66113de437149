"""The ledger: verdicts computed, failures on top, README and file in step."""

import json

import pytest

from lab import files
from lab.evidence import ledger

BASE, SARE = [200.0, 210.0, 190.0, 205.0], [300.0, 320.0, 280.0, 310.0]


def test_verdict_follows_the_interval():
    """Fails if a verdict is typed, or the claim's direction is lost."""
    assert ledger.row("C6a", "ch. 04", "samples", BASE, SARE, want=1)["verdict"] == "supported"
    assert ledger.row("C6a", "ch. 04", "samples", BASE, SARE, want=-1)["verdict"] == "not supported"
    assert (
        ledger.row("C4", "ch. 03", "CHAIR_s", BASE, [201.0, 209.0, 191.0, 204.0], want=1)["verdict"]
        == "undecided"
    )
    with pytest.raises(KeyError):
        ledger.row("C9", "ch. 09", "magic", BASE, SARE, want=1)


def test_record_merges_and_lists_what_was_not_tested(tmp_path, monkeypatch):
    """Fails if a chapter that runs again doubles its row, or an untested claim is left out."""
    monkeypatch.setattr(files, "figures_folder", lambda preset, seeds: tmp_path)
    for sare in (BASE, SARE):
        path = ledger.record(
            [ledger.row("C6a", "ch. 04", "samples", BASE, sare, want=1)], "full", (1, 2, 3, 4)
        )
    rows = json.loads(path.read_text())
    assert [r["id"] for r in rows] == ["C1", "C2", "C3", "C4", "C5", "C6a", "C7", "C8"]
    assert {r["verdict"] for r in rows if r["id"] != "C6a"} == {"not tested"}
    assert rows[5]["diff"] == 101.25 and rows[5]["seeds_agreeing"] == 4
    ledger.record(
        [ledger.row("C6b", "ch. 04", "samples", BASE, SARE, want=1)], "full", (1, 2, 3, 4)
    )
    assert [r["id"] for r in json.loads(path.read_text()) if r["chapter"] == "ch. 04"] == ["C6b"], (
        "a row that a chapter drops must go"
    )


def test_what_fails_stands_on_top():
    rows = [
        ledger.row("C1", "ch. 02", "x", BASE, SARE, want=1),
        ledger.row("C4", "ch. 03", "y", BASE, SARE, want=-1),
    ]
    lines = ledger.table(rows).splitlines()
    assert "**C4**" in lines[2] and "**not supported**" in lines[2] and "**C1**" in lines[3]


def test_readme_and_page_show_the_books_ledger():
    """Fails if a table is edited by hand, or the book was run and they were not written."""
    folder = files.ROOT / "figures"
    rows = json.loads((folder / "claims.json").read_text())
    parts = (files.ROOT / "README.md").read_text().split(ledger.MARK)
    assert len(parts) == 3 and parts[1].strip() == ledger.summary(rows)
    assert (folder / "claims.md").read_text() == ledger.page(folder)
    assert ledger.table(rows) in ledger.page(folder)
    counts = [
        int(cell)
        for line in parts[1].splitlines()
        for cell in line.split("|")
        if cell.strip().isdigit()
    ]
    assert sum(counts) == len(rows)


def test_other_seeds_stand_beside_the_books(tmp_path):
    """Fails if another run's verdict is lost, is put under a wrong name, or a claim that it did not
    test seems tested.
    """
    run = tmp_path / "full-seeds-from-5"
    run.mkdir()
    book = [
        ledger.row("C6a", "ch. 04", "samples", BASE, SARE, want=1),
        ledger.row("C6b", "ch. 04", "samples", BASE, SARE, want=1),
    ]
    (tmp_path / "claims.json").write_text(json.dumps(book))
    (run / "claims.json").write_text(
        json.dumps([ledger.row("C6a", "ch. 04", "samples", BASE[:3], SARE[:3], want=-1)])
    )
    assert ledger.keep(run, tmp_path).name == "claims_seeds-from-5.json"
    lines = ledger.seeds_table(ledger.books(tmp_path)).splitlines()
    assert lines[0] == "| claim | the book (4 seeds at most) | seeds from 5 (3 seeds at most) |"
    assert (
        "**supported**" in lines[2].split("|")[2] and "**not supported**" in lines[2].split("|")[3]
    )
    assert lines[3].startswith("| **C6b** | +101.25") and lines[3].endswith("|  |")
    with pytest.raises(ValueError, match="full-seeds-from-6: no claims.json"):
        ledger.keep(tmp_path / "full-seeds-from-6", tmp_path)


@pytest.mark.parametrize("text", ["nothing", ledger.MARK])
def test_a_readme_without_marks_is_named(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "claims.json").write_text(
        json.dumps([ledger.row("C1", "ch. 02", "x", BASE, SARE, want=1)])
    )
    with pytest.raises(ValueError, match="README.md: this mark must stand there twice"):
        ledger.write(tmp_path / "README.md", tmp_path)

"""The reproduction report: four outcomes, the interval behind them, and what a run prints."""

import json
import math
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from lab import files
from lab.evidence import report
from lab.tools import execute

MACHINE = {
    "plan": "abc",
    "preset": "full",
    "seeds": [1, 2, 3],
    "processor": "EPYC, avx2",
    "versions": {"python": "3.12.1", "torch": "2.11.0"},
}


def row(id: str = "C6a", diff: float = -10.0, se: float = 2.0, **changes) -> dict:
    """A primary row, supported; changes: other fields."""
    found = {
        "id": id,
        "claim": "suppression persists",
        "metric": "mean CHAIR_s",
        "endpoint": "mean_chair_s",
        "primary": True,
        "n_seeds": 6,
        "diff": diff,
        "se": se,
        "ci95": [diff - 2.5 * se, diff + 2.5 * se],
        "verdict": "supported",
        "reading": None,
    }
    return found | changes


def run(*rows: dict, **changes) -> report.Run:
    return report.Run({r["id"]: r for r in rows}, MACHINE | changes)


def outcome(committed: dict, new: dict) -> str:
    (line,) = report.compare(run(committed), run(new))
    return line.outcome


def saved(folder: Path, *rows: dict, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "claims.json", rows)
    files.write_json(folder / "run.json", MACHINE | changes)
    return folder


EXPLORATORY = {"primary": False, "verdict": "exploratory", "reading": "for"}
UNTESTED = {"verdict": "not tested", "diff": None, "se": None, "ci95": None, "n_seeds": 0}
INFINITE = {"ci95": [-math.inf, math.inf]}
CASES = [  # (outcome, changes of the committed row, changes of the new one)
    ("reproduced", {}, {"diff": -9.0}),
    ("reproduced", EXPLORATORY, EXPLORATORY | {"diff": -9.0}),
    ("reproduced", {"verdict": "undecided"}, {"verdict": "undecided"}),
    ("consistent but undecided", {}, {"verdict": "undecided", "diff": -8.0}),
    ("consistent but undecided", *({"verdict": "undecided", "diff": x} for x in (-9.0, -8.0))),
    ("consistent but undecided", *({"verdict": "not comparable", "diff": x} for x in (-9.0, -8.0))),
    ("consistent but undecided", EXPLORATORY, EXPLORATORY | {"reading": "open"}),
    ("consistent but undecided", EXPLORATORY, EXPLORATORY | {"verdict": "not comparable"}),
    # Too little is known for more, however far apart
    ("consistent but undecided", {}, {"diff": 50.0, "ci95": [-math.inf, math.inf]}),
    ("consistent but undecided", {"n_seeds": 2}, {"diff": 50.0}),
    ("consistent but undecided", {}, {"se": math.nan}),
    ("not reproduced", {}, {"diff": -1.0}),
    ("not reproduced", {}, {"diff": -1.0, "verdict": "undecided"}),
    ("not reproduced", EXPLORATORY, EXPLORATORY | {"diff": -1.0}),
    ("not run", {}, UNTESTED),
    ("not run", UNTESTED, {}),
    ("not run", {}, {"endpoint": "half_life"}),
]


@pytest.mark.parametrize("expected, committed, new", CASES)
def test_outcomes(expected, committed, new):
    """Fails if a claim comes out otherwise than the rule says."""
    assert outcome(row() | committed, row() | new) == expected


def test_a_row_of_one_side_is_not_run():
    lines = report.compare(run(row("C1a"), row("C2a")), run(row("C2a"), row("C3a")))
    assert [line.outcome for line in lines] == ["not run", "reproduced", "not run"]


def test_interval_by_hand():
    """Fails if the standard errors are not added in squares, or the normal factor is another:
    sqrt(3^2 + 4^2) = 5, times 1.96.
    """
    found = report.apart(row(diff=-10, se=3), row(diff=-2, se=4))
    assert found == pytest.approx((8, 8 - 9.79982, 8 + 9.79982), abs=1e-5)
    # The interval's edge: 1.96 standard errors apart, 2.5 each side of an estimate
    assert outcome(row(diff=0, se=3), row(diff=9.79, se=4)) == "reproduced"
    assert outcome(row(diff=0, se=3), row(diff=9.81, se=4)) == "not reproduced"


def test_equal_runs_without_spread_are_reproduced():
    assert outcome(row(se=0.0), row(se=0.0)) == "reproduced"
    assert outcome(row(se=0.0), row(diff=-10.1, se=0.0)) == "not reproduced"


def test_primaries_come_first_and_are_counted():
    rows = [row("C1b", **EXPLORATORY), row("C8a"), row("C3a")]
    lines = report.compare(run(*rows), run(*rows))
    assert [line.id for line in lines] == ["C3a", "C8a", "C1b"]
    assert report.counts(lines)[0] == ("reproduced", 2, 1)
    text = report.text(run(*rows), run(*rows))
    assert re.search(r"reproduced +2 +1\n", text) and text.index("C8a") < text.index("C1b")


def long_runs() -> tuple[report.Run, report.Run]:
    """Every width that a cell can have, and every outcome."""
    wide = {"claim": "a claim " * 12, "metric": "a metric of many words " * 6}
    committed = [row("C1a"), row("C6a", **wide), row("C7b", **EXPLORATORY), row("C8a")]
    verdict = {"verdict": "no difference larger than the margin"}
    new = [
        row("C1a", 1234.5, 300.0),
        row("C6a", **wide, **verdict, **INFINITE),
        row("C7b", -9.9, **EXPLORATORY),
    ]
    far = {"seeds": list(range(1001, 1013)), "processor": "Some Long Name " * 5, "plan": "def"}
    return run(*committed), run(*new, **far | {"preset": "fast"})


def test_text_fits_a_terminal():
    committed, new = long_runs()
    text = report.text(committed, new)
    assert max(map(len, text.splitlines())) < 100
    assert all(f"{report.MARKS[o]} {o}" in text for o in report.OUTCOMES)
    flat = " ".join(text.split())
    assert all(sentence in flat for sentence in report.RULE)
    assert "-10.0 [-15.0, -5.0] -10.0 [-inf, inf] +0.0 [-inf, inf]" in flat
    assert "1001 1002 1003" in text and "EPYC, avx2" in text and "2.11.0" in text


@pytest.mark.parametrize(
    "changes, warned",
    [
        ({}, []),
        ({"plan": "def"}, ["plans differ (abc and def)"]),
        ({"preset": "fast"}, ["a fast run has two seeds: expect undecided"]),
        ({"preset": "headline", "plan": ""}, ["(abc and none)", "preset is 'headline'"]),
    ],
)
def test_warnings(changes, warned):
    """Fails if a reader is not told that the two runs were not the same, or is warned in vain."""
    found = report.warnings(MACHINE, MACHINE | changes)
    assert len(found) == len(warned) and all(w in f for w, f in zip(warned, found))
    text, page = (make(run(row()), run(row(), **changes)) for make in (report.text, report.html))
    assert text.count("WARNING") == page.count('<p class="warning">') == len(warned)


@pytest.mark.parametrize("key", ["", *MACHINE])
def test_equal_bytes_are_promised_for_equal_runs_alone(key):
    """Fails if a reader on another processor is told to expect the committed bytes, or one on the
    same is not.
    """
    new = {"versions": MACHINE["versions"] | {"torch": "0"}}.get(key, ["other"])
    found = report.promise(MACHINE, MACHINE | ({key: new} if key else {}))
    assert ("have to be equal to the byte" in found) is (not key)
    assert found.startswith(f"Not the same: {key}. " if key else "Both have the same ")
    text = " ".join(report.text(run(row()), run(row())).split())
    assert report.promise(MACHINE, MACHINE) in text
    assert report.promise(MACHINE, MACHINE) in report.html(run(row()), run(row()))


class Closed(HTMLParser):
    """Fails on a tag that closes another."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone():
    """Fails if it fetches something, leaves a tag open, or names no style for the dark."""
    page = report.html(*long_runs())
    assert not re.search(r"http|//|<script|<link|<img|@import|url\(", page)
    assert not Closed(page).open
    assert "prefers-color-scheme: dark" in page and report.RULE[1] in page
    assert all(f"{report.MARKS[o]} {o}" in page for o in report.OUTCOMES)


def test_the_page_escapes_what_it_is_given():
    bad = '<b onload="x">&'
    rows = row(id="C6<", claim=bad, metric=bad, verdict=bad)
    page = report.html(run(rows), run(rows, processor=bad, plan=bad, versions={bad: bad}))
    assert bad not in page and "C6<" not in page
    assert page.count("&lt;b onload=&quot;x&quot;&gt;&amp;") >= 6


def test_drawings_hold_both_intervals_on_one_scale():
    """Fails if the committed interval is not above the new one, zero is not marked, or an infinite
    end gets a cap or leaves the picture.
    """
    lines = report.compare(run(row(diff=-10, se=4)), run(row(diff=-5, **INFINITE)))
    picture = ElementTree.fromstring(report._drawing(lines[0]))
    zero, committed, new = picture
    assert (zero.get("class"), committed.get("class"), new.get("class")) == (
        "zero",
        "committed",
        "new",
    )
    x = [float(p.find("circle").get("cx")) for p in (committed, new)]
    y = [float(p.find("circle").get("cy")) for p in (committed, new)]
    # From -20 to 0 the picture is 240 px wide, with a border of 10
    assert x == [130.0, 190.0] and y[0] < y[1] and float(zero.get("x1")) == 250.0
    assert committed.find("path").get("d") == "M10.0 12H250.0M10.0 8v8M250.0 8v8"
    assert new.find("path").get("d") == "M0.0 28H260.0"


def test_a_run_is_read_as_it_was_written(tmp_path):
    folder = saved(tmp_path / "run", row(), row("C7b", **EXPLORATORY, **INFINITE))
    assert "-Infinity" in (folder / "claims.json").read_text()
    found = report.read(folder)
    assert found == run(row(), row("C7b", **EXPLORATORY, **INFINITE))


BROKEN = {  # file's text -> what the error says beside the file's name
    "[": "no JSON",
    "{}": "holds no list",
    "[3]": "row 1: 3 is no object",
    json.dumps([row() | {"ci95": [1]}]): "row 1: 'ci95' is [1], not two numbers",
    json.dumps([row() | {"ci95": [math.nan, 1]}]): "row 1: 'ci95' is [nan, 1], not two numbers",
    json.dumps([row() | {"diff": None}]): "'diff' of a tested row is None",
    json.dumps([row() | {"diff": "3"}]): "'diff' is '3', of a wrong type",
    json.dumps([row() | {"diff": True}]): "'diff' is True, of a wrong type",
    json.dumps([row() | {"primary": 1}]): "'primary' is 1, of a wrong type",
    json.dumps([row("C1a"), row(), row()]): "row 3: the id 'C6a' stands there twice",
} | {
    json.dumps([{k: v for k, v in row().items() if k != key}]): f"row 1: {key!r} is missing"
    for key in report.ROW
}


@pytest.mark.parametrize("text, said", BROKEN.items(), ids=BROKEN.values())
def test_a_broken_file_is_named(tmp_path, text, said):
    folder = saved(tmp_path / "run", row())
    (folder / "claims.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        report.read(folder)
    assert "claims.json" in str(error.value) and report.MEND in str(error.value)


@pytest.mark.parametrize("name", ["claims.json", "run.json"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = saved(tmp_path / "run", row())
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        report.read(folder)


def test_a_machine_without_a_key_is_named(tmp_path):
    folder = saved(tmp_path / "run", row())
    files.write_json(folder / "run.json", {k: v for k, v in MACHINE.items() if k != "seeds"})
    with pytest.raises(ValueError, match="run.json: 'seeds' is missing"):
        report.read(folder)


@pytest.mark.parametrize(
    "flags, best",
    [("fpu avx2 avx512f", ", avx512f"), ("fpu avx2", ", avx2"), ("fpu", ", no avx2"), (None, "")],
)
def test_the_processor_is_named_with_what_decides_rounding(tmp_path, monkeypatch, flags, best):
    lines = ["processor : 0", "model name : EPYC 7B13", *([f"flags : {flags}"] if flags else [])]
    (tmp_path / "cpuinfo").write_text("\n".join(lines))
    monkeypatch.setattr(report, "Path", lambda path: tmp_path / Path(path).name)
    assert report.processor() == f"EPYC 7B13{best}"


def test_a_machine_is_one_that_can_be_read(tmp_path):
    folder = saved(tmp_path / "run", row(), **report.machine("fast", (7, 8), "abc"))
    found = report.read(folder).machine
    assert (found["preset"], found["seeds"], found["plan"]) == ("fast", [7, 8], "abc")
    assert found["processor"] and found["versions"].keys() >= {"python", "torch", "numpy"}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A checkout with committed results, in which `execute` runs no notebook but writes a row."""
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.delenv("KEEP", raising=False)
    saved(tmp_path / "figures", row())
    tried = SimpleNamespace(root=tmp_path, written=[], rows=[row(diff=-9.0)])

    def execute_one(name, given, out):
        seeds = [int(seed) for seed in given["seeds"].split()] or list(files.BOOK_SEEDS)
        folder = files.figures_folder(given["preset"], seeds)
        files.write_json(folder / "claims.json", tried.rows)

    monkeypatch.setattr(execute, "execute", execute_one)
    monkeypatch.setattr(execute, "sync", lambda name: None)
    monkeypatch.setattr(execute, "keep", lambda name, executed: tried.written.append(name))
    monkeypatch.setattr(execute, "plan_hash", lambda: "abc")
    monkeypatch.setattr(execute.jobs, "profile", lambda start: {})
    monkeypatch.setattr(execute, "evidence", lambda: tried.written.append("evidence"))
    (tmp_path / "build").mkdir()
    return tried


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_run_without_keep_leaves_the_book_alone(house, capsys):
    """Fails if a newcomer's `make execute` would leave changes in his checkout."""
    before = contents(house.root / "figures")
    execute.main([])
    assert contents(house.root / "figures") == before and not house.written
    assert {path.name for path in house.root.iterdir()} == {"figures", "build"}
    made = json.loads((house.root / "build/figures/full/run.json").read_text())
    assert (made["plan"], made["preset"]) == ("abc", "full")
    said, page = capsys.readouterr().out, house.root / "build/reproduction.html"
    assert "✓ reproduced" in said and f"As a page: {page}" in said
    assert "-9.0 [-14.0, -4.0]" in page.read_text()
    assert not page.with_name("reproduction.html.part").exists()


def test_a_second_run_waits_for_the_first(house, capsys):
    """Fails if two runs write one build/ at once, or if the wait goes without a word."""
    second = threading.Thread(target=execute.main, args=([],), daemon=True)
    with files.alone("execute"):
        second.start()
        said = ""
        while "waiting" not in said and second.is_alive():
            said += capsys.readouterr().out
        assert "another run writes to build/: waiting for its end" in said
        assert not (house.root / "build/figures/full/run.json").exists()
    second.join(60)
    assert (house.root / "build/reproduction.html").exists()


def test_keep_writes_the_book_and_compares_with_what_stood_there(house, monkeypatch, capsys):
    """Fails if the new rows are compared with themselves."""
    monkeypatch.setenv("KEEP", "1")
    house.rows = [row(diff=40.0)]
    execute.main([])
    assert house.written == [*execute.NAMES, "evidence"]
    assert json.loads((house.root / "figures/claims.json").read_text())[0]["diff"] == 40
    made = json.loads((house.root / "figures/run.json").read_text())
    assert made["seeds"] == list(files.BOOK_SEEDS)
    assert "✗ not reproduced" in capsys.readouterr().out


def test_keep_with_some_of_the_books_seeds_is_refused(house, monkeypatch, capsys):
    """Fails if two seeds would come over the book's eight."""
    monkeypatch.setenv("KEEP", "1")
    with pytest.raises(SystemExit):
        execute.main(["--seeds", " ".join(map(str, files.BOOK_SEEDS[:2]))])
    assert "leave SEEDS empty" in capsys.readouterr().err
    execute.main(["--seeds", "3 4"])  # goes to build/
    assert not house.written


@pytest.mark.parametrize("words", [["--only", "03"], ["--sync"]])
def test_no_report_on_a_part_of_a_run(house, capsys, words):
    execute.main(words)
    assert "REPRODUCTION" not in capsys.readouterr().out
    assert not (house.root / "build/reproduction.html").exists()
    assert (house.root / "build/figures/full/run.json").exists() is (words != ["--sync"])


@pytest.mark.parametrize("side", ["figures", "new"])
def test_a_run_ends_well_without_a_report(house, capsys, side):
    """Fails if a run of half an hour ends in a traceback since one side cannot be read."""
    if side == "new":
        house.rows = [{"id": "C1a"}]
    else:
        (house.root / "figures/run.json").unlink()
    execute.main([])
    said = capsys.readouterr().out
    assert "No reproduction report." in said
    assert ("run.json" if side == "figures" else "row 1: 'claim' is missing") in said


def test_the_report_is_redone_without_a_run(house, capsys):
    folder = saved(house.root / "build/figures/full", row(diff=-8.0))
    report.main([str(folder)])
    assert "-8.0 [-13.0, -3.0]" in capsys.readouterr().out
    assert (house.root / "build/reproduction.html").exists()
    for words, said in (([], "give one folder"), ([str(house.root / "figures")], "itself")):
        with pytest.raises(ValueError, match=said):
            report.main(words)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("given, passed", [(["KEEP=1"], "1"), ([], "")])
def test_make_passes_keep_on(given, passed, monkeypatch):
    """Fails if KEEP=1 before or after `make execute` does not reach the run."""
    for before in (False, True):
        monkeypatch.setenv("KEEP", passed) if before else monkeypatch.delenv("KEEP", raising=False)
        words = ["make", "-n", "execute", *([] if before else given)]
        said = subprocess.run(words, cwd=files.ROOT, capture_output=True, text=True).stdout
        assert f'KEEP="{passed}" ' in said, said


def test_the_ledgers_own_rows_can_be_read(tmp_path):
    """Fails if a run that left rows untested, as a fast one does, ends without a report."""
    from lab.evidence import ledger, plan

    rows = ledger.judge({}, plan.load())
    found = report.read(saved(tmp_path / "run", *rows, **MACHINE))
    assert len(found.rows) == len(rows) > 40
    assert {line.outcome for line in report.compare(found, found)} == {"not run"}
    with pytest.raises(ValueError, match="'n_seeds' of a tested row is None"):
        report.read(saved(tmp_path / "other", row(n_seeds=None), **MACHINE))

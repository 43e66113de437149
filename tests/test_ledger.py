"""The ledger: the plan's rules on constructed values, rows.csv, and what a reader sees."""

import dataclasses
import json
import subprocess
import sys
import threading

import pytest
from scipy.stats import ttest_1samp

from lab import files
from lab.evidence import ledger, observations, pages, plan
from lab.evidence.observations import Observation

PLAN = plan.load()
SPREAD = [-1.5, -1.2, -0.9, -0.6, -0.3, -0.1, 0.1, 0.3, 0.6, 0.9, 1.2, 1.5]  # mean 0, sd near 1
BASE = [20.0, 31.0, 44.0, 18.0, 27.0, 35.0, 40.0, 22.0, 29.0, 33.0, 25.0, 38.0]  # seeds differ


def arm(values, level=8.0, reached=True, first=1001):
    return [Observation(first + i, 0, 0, v, level, reached) for i, v in enumerate(values)]


def pair(mean, sd=1.0, levels=(8.0, 8.0), reached=(True, True), n=12):
    """Arms whose difference over 12 seeds has about this mean and spread."""
    sare = [base + mean + sd * x for base, x in zip(BASE, SPREAD)][:n]
    return arm(BASE[:n], levels[0], reached[0]), arm(sare, levels[1], reached[1])


def judged(id, *given, **others):
    rows = {row["id"]: row for row in ledger.judge({id: pair(*given, **others)}, PLAN)}
    return rows[id]


@pytest.mark.parametrize(
    "id, mean, sd, verdict",
    [
        ("C6a", -20, 3, "supported"),
        ("C6a", 20, 3, "refuted"),
        ("C6a", -2, 0.5, pages.SAME),  # there, and too small to matter
        ("C6a", 2, 0.5, pages.SAME),  # the same on the other side
        ("C6a", 0, 1, pages.SAME),
        ("C6a", -5, 20, "undecided"),
        ("C6a", -8, 10, "undecided"),  # alone it would be supported: p is near 0.02
        ("C1a", 40, 3, "supported"),
        ("C1a", -40, 3, "refuted"),
        ("C5a", -0.1, 0.1, "supported"),  # not less, by a margin of 1; and no difference
        ("C5a", 5, 0.1, "supported"),
        ("C5a", -3, 0.1, "refuted"),
        ("C5a", -1, 1, "undecided"),
        ("C5a", 0, 3, "undecided"),
    ],
)
def test_verdicts_of_primaries(id, mean, sd, verdict):
    """Fails if a rule is lost, a side is taken for the other, or Holm is left out."""
    row = judged(id, mean, sd)
    assert row["verdict"] == verdict and row["reading"] is None and row["plan"] == PLAN.hash


@pytest.mark.parametrize(
    "id, mean, sd, reading",
    [
        ("C6e", -20, 3, "for"),
        ("C6e", 20, 3, "against"),
        ("C6e", -8, 10, "for"),  # without Holm
        ("C6e", -2, 0.5, "too small to matter"),
        ("C6e", -5, 20, "open"),
        ("C6b", 3, 1, "for"),  # not more, by a margin of 10
        ("C6b", 30, 1, "against"),
        ("C6b", 10, 1, "open"),
        ("C5b", -30, 1, "against"),
    ],
)
def test_readings_of_exploratory_rows(id, mean, sd, reading):
    row = judged(id, mean, sd)
    assert (row["verdict"], row["reading"]) == ("exploratory", reading)
    assert row["p_holm"] is row["p_same_holm"] is None


def test_holm_by_hand():
    """Fails if the family is not the plan's nine primaries, or secondary rows count in it."""
    given = {"C6a": pair(-8, 10), "C7a": pair(-20, 3), "C8a": pair(-3, 10), "C6e": pair(-20, 3)}
    rows = {row["id"]: row for row in ledger.judge(given, PLAN)}
    p = {
        id: ttest_1samp([s.value - b.value for b, s in zip(*arms)], 0).pvalue
        for id, arms in given.items()
    }
    assert p["C7a"] < p["C6a"] < p["C8a"]
    for id in given:
        assert rows[id]["p"] == pytest.approx(p[id])
    assert rows["C7a"]["p_holm"] == pytest.approx(9 * p["C7a"])
    assert rows["C6a"]["p_holm"] == pytest.approx(8 * p["C6a"])
    assert rows["C8a"]["p_holm"] == 1.0 and rows["C6e"]["p_holm"] is None


def test_the_last_of_the_family_bears_no_multiplier():
    """Fails if Holm is Bonferroni: where all else is clear, p near 0.02 is enough."""
    given = {id: pair(-50 if PLAN.rows[id].expect == "less" else 50) for id in PLAN.primaries}
    rows = {row["id"]: row for row in ledger.judge(given | {"C6a": pair(-8, 10)}, PLAN)}
    assert rows["C6a"]["verdict"] == "supported" and rows["C6a"]["p_holm"] == rows["C6a"]["p"]
    # One that cannot be compared counts as a test whose p is 1
    apart = {"C1a": pair(50, levels=(8.0, 7.0)), "C6a": pair(-8, 10)}
    rows = {row["id"]: row for row in ledger.judge(given | apart, PLAN)}
    assert rows["C6a"]["p_holm"] == pytest.approx(2 * rows["C6a"]["p"])
    assert rows["C1a"]["p_holm"] is None


def test_a_kept_bound_is_tested_at_the_margin():
    """Fails if "not less" is tested against zero, or one-sided where all else is two-sided."""
    row, arms = judged("C5a", -0.5, 1), pair(-0.5, 1)
    differences = [s.value - b.value for b, s in zip(*arms)]
    assert row["p"] == pytest.approx(2 * ttest_1samp(differences, -1, alternative="greater").pvalue)
    assert (row["p"] < 0.05) == (row["ci95"][0] > -1)
    same = max(
        ttest_1samp(differences, -1, alternative="greater").pvalue,
        ttest_1samp(differences, 1, alternative="less").pvalue,
    )
    assert row["p_same"] == pytest.approx(same)
    assert row["p_same_holm"] == pytest.approx(min(1, 9 * same))


@pytest.mark.parametrize("id", ["C6a", "C6e"])
@pytest.mark.parametrize(
    "levels, reached, comparable",
    [
        ((8.0, 8.1), (True, True), True),
        ((8.2, 8.1), (True, True), True),  # 8.2 - 8.1 is a rounding above 0.1
        ((8.0, 8.11), (True, True), False),
        ((8.3, 8.1), (True, True), False),
        ((8.0, 8.0), (True, False), False),
        ((8.0, 8.0), (False, True), False),
    ],
)
def test_unequal_levels_are_not_compared(id, levels, reached, comparable):
    """Fails if a weaker erasure is set against a stronger one, however clear the difference."""
    row = judged(id, -20, 3, levels=levels, reached=reached)
    assert (row["verdict"] == "not comparable") is not comparable
    assert row["level_sare"]["mean"] == pytest.approx(levels[1])
    assert row["level_sare"]["worst"] == pytest.approx(levels[1] - 8.0)
    assert row["reached"] == [float(share) for share in reached]
    if not comparable:
        assert row["reading"] is None
        assert f"baseline at {levels[0]:.2f} nats" in pages.verdict(row)


def test_what_was_never_erased_has_no_level():
    """Fails if the base model keeps C5 from being judged, or a failed erasure passes there."""
    row = judged("C5a", 0, 0.1, levels=(None, 7.0), reached=(False, True))
    assert row["verdict"] == "supported" and row["level_baseline"] is None
    assert row["level_sare"] == {"mean": 7.0, "worst": None}
    row = judged("C5a", 0, 0.1, levels=(None, 7.0), reached=(False, False))
    assert row["verdict"] == "not comparable"


def test_an_honest_level_is_its_seeds_own():
    """Fails if the distance is taken from another seed's honest model, or from 8 nats."""
    honest = [Observation(1001, 0, 0, 1.0, 3.0, True), Observation(1002, 0, 0, 2.0, 5.0, True)]
    efuf = [Observation(1001, 0, 0, 4.0, 3.05, True), Observation(1002, 0, 0, 6.0, 4.98, True)]
    row = {r["id"]: r for r in ledger.judge({"C2a": (honest, efuf)}, PLAN)}["C2a"]
    assert row["level_sare"]["worst"] == pytest.approx(0.05) and row["verdict"] != "not comparable"


def test_orders_and_attacks_are_averaged_within_seeds():
    """Fails if runs of one seed count as seeds: their number would make up for the base models'
    spread.
    """
    baseline = [
        Observation(seed, order, attack, 10.0 * (seed - 1000) + order + 2 * attack, 8.0, True)
        for seed in (1001, 1002)
        for order in (0, 1)
        for attack in (0, 1)
    ]
    sare = [o._replace(value=o.value - 4 - (o.seed - 1000)) for o in baseline]
    row = {r["id"]: r for r in ledger.judge({"C6a": (baseline, sare)}, PLAN)}["C6a"]
    assert (row["n_seeds"], row["n_orders"], row["n_attacks"]) == (2, 2, 2)
    assert row["baseline"] == pytest.approx(16.5) and row["diff"] == pytest.approx(-5.5)
    assert row["se"] == pytest.approx(0.5) and row["ci95"][0] == pytest.approx(-5.5 - 6.3531)
    assert row["seeds_agreeing"] == 2


def test_one_seed_decides_nothing():
    assert judged("C6a", -20, 3, n=1)["verdict"] == "undecided"


def test_what_was_not_run_is_listed():
    """Fails if a claim that was not tested can go unseen."""
    rows = ledger.judge({"C6a": pair(-20, 3)}, PLAN)
    assert [row["id"] for row in rows] == list(PLAN.rows)
    assert {row["verdict"] for row in rows if row["id"] != "C6a"} == {"not tested"}
    assert all(row.keys() == rows[0].keys() for row in rows)


# rows.csv


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A figures folder of its own, and a README with marks."""
    monkeypatch.setattr(files, "figures_folder", lambda preset, seeds: tmp_path)
    (tmp_path / "README.md").write_text(f"Before.\n{pages.MARK}\nold\n{pages.MARK}\nAfter.\n")
    return tmp_path


def record(found):
    return ledger.record(found, "full", PLAN.seeds)


def test_record_merges_and_recomputes(book):
    """Fails if a chapter that runs again doubles its rows, or drops another's."""
    record({"C7a": pair(-1 / 3, 3)})
    record({"C6a": pair(20, 3)})
    (row,) = record({"C6a": pair(-20, 3)})
    assert row["id"] == "C6a" and row["verdict"] == "supported"
    rows = json.loads((book / "claims.json").read_text())
    tested = [r["id"] for r in rows if r["verdict"] != "not tested"]
    assert tested == ["C6a", "C7a"] and row in rows
    lines = (book / "rows.csv").read_text().splitlines()
    assert lines[0] == f"# plan: {PLAN.hash}" and lines[1] == ",".join(observations.COLUMNS)
    assert len(lines) == 2 + 4 * 12 and lines[2] == "C6a,baseline,1001,0,0,20,8,1"
    assert lines[2:] == sorted(lines[2:])
    assert not list(book.glob("*.part"))


def test_two_runs_lose_no_row(book, monkeypatch):
    """Fails if the row that another run adds, after this one has read rows.csv, is lost."""
    record({"C5a": pair(0, 0.1)})
    read, others = observations.read, []

    def slow(path, plan):
        found = read(path, plan)
        if not others:
            others.append(threading.Thread(target=record, args=({"C7a": pair(-20, 3)},)))
            others[0].start()
            others[0].join(0.5)  # more than it needs, where nothing holds it up
        return found

    monkeypatch.setattr(observations, "read", slow)
    record({"C6a": pair(-20, 3)})
    others[0].join(60)
    lines = (book / "rows.csv").read_text().splitlines()[2:]
    assert {line.partition(",")[0] for line in lines} == {"C5a", "C6a", "C7a"}


def test_the_ledger_follows_from_the_rows_alone(book):
    """Fails if claims.json holds what rows.csv does not: third decimals, or an order."""
    record({"C6a": pair(-20 / 3, 3, levels=(8.01234567, 8.0)), "C5a": pair(0, 0.1, (None, 8.0))})
    before = (book / "claims.json").read_bytes()
    (book / "claims.json").unlink()
    assert ledger.rebuild(book) == [book / "rows.csv"]
    assert (book / "claims.json").read_bytes() == before
    text = (book / "rows.csv").read_text()
    (book / "rows.csv").write_text(
        text.replace("C6a,baseline,1001,0,0,20,", "C6a,baseline,1001,0,0,90,")
    )
    ledger.rebuild(book)
    assert (book / "claims.json").read_bytes() != before


def swapped(id="C6a", **changes):
    baseline, sare = pair(-20, 3)
    return {id: (baseline, [sare[0]._replace(**changes), *sare[1:]])}


@pytest.mark.parametrize(
    "found, message",
    [
        (swapped(value=float("nan")), "C6a, sare, seed 1001, order 0, attack 0: nan"),
        (swapped(level=float("inf")), "C6a, sare, seed 1001, order 0, attack 0: -4.5, level inf"),
        (swapped(level=None), "C6a, sare, seed 1001, order 0, attack 0: no level"),
        (swapped(seed=1002), "C6a, sare, seed 1002, order 0, attack 0: given twice"),
        (swapped(seed=7), "C6a: seeds of one arm alone: 7, 1001"),
        ({"C6a": ([], [])}, "C6a: seeds of one arm alone: none given"),
        (swapped("C6z"), "row 'C6z' is not in the plan"),
    ],
)
def test_bad_observations_are_named(book, found, message):
    with pytest.raises(ValueError, match=message):
        record(found)
    assert not (book / "rows.csv").exists()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("# plan", "# a plan", "the first line names no plan"),
        (PLAN.hash, "0123456789abcdef", "under plan 0123456789abcdef, and claims.toml is plan"),
        ("id,arm", "arm,id", "line 2: the columns must be id,arm"),
        ("C6a,baseline,1001", "C6a,efuf,1001", "line 3: no observation"),
        ("C6a,baseline,1001,0,0,20,8,1", "C6a,baseline,1001,0,0,20,8,yes", "line 3: no observ"),
        ("C6a,baseline,1001,0,0,20,8,1", "C6a,baseline,1001", "line 3: no observation"),
        ("C6a,baseline,1001,0,0,20,8,1\n", "", "C6a: seeds of one arm alone: 1001"),
    ],
)
def test_rows_that_cannot_be_read_are_named(book, old, new, message):
    """Fails if an edited or foreign file is judged as if a run had made it."""
    record({"C6a": pair(-20, 3)})
    path = book / "rows.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=f"rows.csv: .*{message}"):
        ledger.rebuild(book)


def test_plans_do_not_mix(book):
    """Fails if rows of an earlier plan stand beside those of this one."""
    record({"C6a": pair(-20, 3), "C7a": pair(-20, 3)})
    path = book / "rows.csv"
    path.write_text(path.read_text().replace(PLAN.hash, "0123456789abcdef"))
    record({"C6a": pair(-20, 3)})
    assert "C7a" not in path.read_text() and PLAN.hash in path.read_text()
    with pytest.raises(ValueError, match="rows.csv: not there. Run `make execute` first"):
        ledger.rebuild(book / "nowhere")
    (book / "claims.json").write_text('[{"id": "C6a"}]')
    with pytest.raises(ValueError, match="claims.json: made under plan None"):
        ledger.read(book / "claims.json", PLAN)


# What a reader sees


def cells(text, id):
    return next(line for line in text.splitlines() if line.startswith(f"| **{id}**")).split(" | ")


def test_the_page_puts_failures_first(book):
    """Fails if a claim that fails is hard to find, or an exploratory row looks like a verdict."""
    record(
        {"C1a": pair(50), "C6a": pair(20, 3), "C7a": pair(0, levels=(8.0, 7.5)), "C6e": pair(-20)}
    )
    text = ledger.page(book)
    primaries, rest = text.split("## Exploratory rows")
    order = [line.split("**")[1] for line in primaries.splitlines() if line.startswith("| **")]
    assert order[:3] == ["C6a", "C7a", "C1a"] and sorted(order) == sorted(PLAN.primaries)
    assert "**refuted**" in cells(primaries, "C6a")[-1]
    assert "baseline at 8.00 nats; sare at 7.50 nats" in cells(primaries, "C7a")[-1]
    assert "+20.0 [18." in text and "less, 12" in cells(primaries, "C6a")
    assert cells(rest, "C6e")[-1] == "exploratory: for |" and "C6e" not in primaries
    assert PLAN.hash in text and "over all 9 primaries" in text and "Not run so far." in text


def test_the_readme_tells_the_primaries_in_the_plans_words(book):
    """Fails if a number is typed, or a claim without a result has one."""
    record({"C6a": pair(-20, 3), "C7a": pair(0, levels=(8.0, 7.5)), "C2a": pair(0.25, 0.01)})
    ledger.write(book / "README.md", book)
    before, table, after = (book / "README.md").read_text().split(pages.MARK)
    assert (before, after) == ("Before.\n", "\nAfter.\n")
    assert len(table.strip().splitlines()) == 2 + 9 and (book / "claims.md").exists()
    claim, found, verdict = cells(table, "C6a")
    assert "in 10.2 % of captions, EFUF in 30.2 %: -20.0 points [-21.8, -18.2]" in found
    assert verdict == "**supported** |" and PLAN.claims["C6"] in claim
    assert cells(table, "C7a")[1:] == [
        "",
        "**not comparable**: baseline at 8.00 nats; sare at 7.50 nats |",
    ]
    assert cells(table, "C8b")[1:] == ["", "**not tested** |"]
    row = dataclasses.replace(PLAN.rows["C6a"], sentence="{diff} {diff:.3f} {n}")
    short = dataclasses.replace(PLAN, rows=PLAN.rows | {"C6a": row})
    rows = ledger.read(book / "claims.json", PLAN)
    assert cells(pages.summary(rows, short), "C6a")[1] == "-20.0 -20.000 12"


def test_a_difference_below_its_margin_is_told(book):
    """Fails if "supported" hides that a difference is smaller than what the plan says matters."""
    record({"C6a": pair(-20, 3), "C8b": pair(-11, 3), "C5a": pair(-0.1, 0.1)})
    ledger.write(book / "README.md", book)
    table = (book / "README.md").read_text()
    assert cells(table, "C6a")[2] == cells(table, "C5a")[2] == "**supported** |"
    assert cells(table, "C8b")[2] == "**supported**, less than the 12 that matter |"
    assert "**supported**, less than the 12 that matter" in (book / "claims.md").read_text()


def test_one_seed_has_no_interval(book):
    """Fails if a reader is shown infinite bounds."""
    record({"C6a": pair(-20, 3, n=1)})
    ledger.write(book / "README.md", book)
    text = (book / "claims.md").read_text()
    assert "(one seed)" in text and "inf" not in text


@pytest.mark.parametrize("text", ["nothing", pages.MARK])
def test_a_readme_without_marks_is_named(book, text):
    record({"C6a": pair(-20, 3)})
    (book / "README.md").write_text(text)
    with pytest.raises(ValueError, match="README.md: this mark must stand there twice"):
        ledger.write(book / "README.md", book)


def test_a_second_block_stands_beside_the_books(book, monkeypatch):
    """Fails if a run is lost, its verdict replaces the book's, or a disagreement is hidden."""
    run = book / "full-seeds-from-1101"
    record({"C6a": pair(-20, 3), "C7a": pair(-20, 3), "C4a": pair(-20, 3)})
    monkeypatch.setattr(files, "figures_folder", lambda preset, seeds: run)
    later = [[o._replace(seed=o.seed + 100) for o in a] for a in pair(-10, 3, n=6)]
    ledger.record({"C6a": later, "C7a": pair(20, 3)}, "full", PLAN.second)
    assert ledger.keep(run, book) == book / "claims_seeds-from-1101.json"
    assert (book / "rows_seeds-from-1101.csv").read_text() == (run / "rows.csv").read_text()
    assert [path.name for path in ledger.rebuild(book)] == ["rows.csv", "rows_seeds-from-1101.csv"]
    ledger.write(book / "README.md", book)
    table = (book / "README.md").read_text()
    assert "| verdict | on 12 other seeds |" in table
    last = {
        id: line.split("|")[-2].strip()
        for line in table.splitlines()
        for id in PLAN.primaries
        if f"**{id}**" in line
    }
    second = {row["id"]: row for row in ledger.blocks(book)["seeds from 1101"]}
    assert second["C6a"]["diff"] > -15  # the book's own is -20
    assert last["C6a"] == f"{pages.difference(second['C6a'])}: {second['C6a']['verdict']}"
    assert last["C1a"] == "not tested"
    text = ledger.page(book).split("## On other seeds")[1]
    assert "| row | the book (12 seeds at most) | seeds from 1101 (12 seeds at most) |" in text
    _, first, second, agree, pooled = cells(text, "C6a")
    assert first.startswith("-20.0 [-21.8") and second.startswith("-12.3 [") and agree == "yes"
    assert pooled.startswith("-17.4 [") and "p of one mean < 0.001" in pooled
    assert cells(text, "C7a")[3] == "no" and "**C4a**" not in text
    with pytest.raises(
        ValueError, match="full-seeds-from-6: no claims.json and rows.csv of a full or headline"
    ):
        ledger.keep(book / "full-seeds-from-6", book)


def test_what_the_book_shows_is_what_its_rows_say():
    """Fails if a table is edited by hand, or the book was run and `make evidence` was not."""
    folder, readme = files.ROOT / "figures", files.ROOT / "README.md"
    if not (folder / "rows.csv").exists():
        pytest.skip("figures/ was made before there was a plan")
    for name, rows in ledger.blocks(folder).items():
        path = folder / ("rows.csv" if name == "the book" else f"rows_{name.replace(' ', '-')}.csv")
        found = observations.read(path, PLAN)
        assert rows == json.loads(json.dumps(files.rounded(ledger.judge(found, PLAN))))
        seeds = {o.seed for pair in found.values() for arm in pair for o in arm}
        assert not seeds & {*PLAN.tuning}, "settings were tried on these seeds"
        assert name != "the book" or seeds <= {*PLAN.seeds}
    assert (folder / "claims.md").read_text() == ledger.page(folder)
    table = readme.read_text().split(pages.MARK)[1]
    book, *others = ledger.blocks(folder).values()
    assert table.strip() == pages.summary(book, PLAN, others[0] if others else ())


def test_make_evidence_needs_no_torch(book):
    """Fails if verdicts, tables and quotes can no longer be redone in seconds from the rows."""
    record({"C6a": pair(-20, 3)})
    (book / "prose.md").write_text("x <!-- C6a.diff --><!-- / -->\n")
    code = (
        "import sys; from pathlib import Path; from lab.evidence.__main__ import main;"
        " at = Path(sys.argv[1]); main([], at, at / 'README.md', [at / 'prose.md']);"
        " sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(book)], cwd=files.CHAPTERS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "quotes changed in: prose.md" in done.stdout
    assert "-20.0 [-21.8, -18.2]" in (book / "prose.md").read_text()
    assert "**supported**" in (book / "README.md").read_text()


def test_a_level_that_no_run_was_given_is_named(book):
    """Fails if the plan's level and the runs' go apart without a word."""
    with pytest.raises(
        ValueError, match=r"claims.toml: row.C6a.level: 8.0 nats .* both arms reached 9.50"
    ):
        record({"C6a": pair(-20, 3, levels=(9.5, 9.5))})


def test_tuning_seeds_judge_nothing(book):
    """Fails if rows of seeds on which settings were tried become evidence."""
    given = pair(-20, 3)
    moved = tuple([o._replace(seed=o.seed - 1000) for o in arm] for arm in given)
    record({"C6a": moved})
    with pytest.raises(ValueError, match="rows.csv: seed 1 is a tuning seed of claims.toml"):
        ledger.rebuild(book)

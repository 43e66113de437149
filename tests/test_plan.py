"""The plan: every way of getting it wrong is named, and it was there before the results."""

import json
import re
import subprocess

import pytest

from lab import files
from lab.evidence import ledger, plan

GOOD = plan.PATH.read_text()


def load(tmp_path, text):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    return plan.load(path)


def test_the_books_plan_is_read():
    """Fails if a row is lost, or a primary or the kind of a field changes on the way."""
    book = plan.load()
    assert book.primaries == ("C1a", "C2a", "C3a", "C4a", "C5a", "C6a", "C7a", "C8a", "C8b")
    assert len(book.rows) == GOOD.count("[row.") and tuple(book.claims) == plan.CLAIMS
    assert book.rows["C2a"].level == plan.HONEST and book.rows["C5a"].level is None
    assert not {*book.seeds} & {*book.tuning, *book.second}
    assert {f"mean_chair_s, {attack}" for attack in plan.ATTACKS} <= {
        row.endpoint for row in book.rows.values()
    }


def test_every_endpoint_is_asked():
    """Fails if plan.py knows an endpoint that no row asks for: it would only look measured."""
    assert {row.endpoint for row in plan.load().rows.values()} == set(plan.ENDPOINTS)


def test_the_hash_sees_content_and_no_layout(tmp_path):
    """Fails if a margin can be changed unseen, or a comment makes results worthless."""
    same = "# a thought\n" + GOOD.replace("alpha = 0.05", "alpha    =   0.05  # as always")
    assert load(tmp_path, same).hash == load(tmp_path, GOOD).hash == plan.load().hash
    assert len(plan.load().hash) == 16
    for old, new in (
        ("margin = 12.0", "margin = 9.0"),
        ("1012]", "1013]"),
        ("light attack", "heavy attack"),
    ):
        assert load(tmp_path, GOOD.replace(old, new, 1)).hash != plan.load().hash


def replaced(id, pattern, text):
    """The book's plan with the first match of a pattern replaced after [row.ID]."""
    head, mark, tail = GOOD.partition(f"[row.{id}]")
    assert re.search(pattern, tail)
    return head + mark + re.sub(pattern, text, tail, count=1)


WRONG = {
    "endpoint": (
        replaced("C6a", r'"mean_chair_s"', '"chairs"'),
        "row.C6a.endpoint: 'chairs' is no",
    ),
    "key": (replaced("C6a", "why = ", "because = "), "row.C6a.because: unknown key"),
    "top": (GOOD + "\n[rows.C6a]\n", "the top.rows: unknown key"),
    "run's key": (GOOD.replace("alpha =", "beta ="), "run.beta: unknown key"),
    "run without": (GOOD.replace("alpha = 0.05", ""), "run.alpha: missing"),
    "expect": (replaced("C6a", '"less"', '"lower"'), "row.C6a.expect: 'lower' is unknown"),
    "no margin": (replaced("C6a", "margin = 12.0\n", ""), "row.C6a.margin: missing"),
    "margin": (replaced("C6a", "margin = 12.0", "margin = 0.0"), "row.C6a.margin: 0.0"),
    "margin's kind": (replaced("C6a", "margin = 12.0", 'margin = "5"'), "row.C6a.margin: '5'"),
    "no primary": (replaced("C4a", "primary = true\n", ""), "claim.C4: 0 of its rows are primary"),
    "two": (
        replaced("C6c", "chapter", "primary = true\nsentence = 'x'\nchapter"),
        "claim.C6: 2 of",
    ),
    "three": (
        replaced("C8c", "chapter", "primary = true\nsentence = 'x'\nchapter"),
        "claim.C8: 3 of its rows are primary. Set primary = true in one or two",
    ),
    "tuned": (GOOD.replace("tuning = [1,", "tuning = [1001,"), "run.tuning: seed 1001 stands in"),
    "blocks": (GOOD.replace("[1101,", "[1012,"), "run.second: seed 1012 stands in seeds too"),
    "twice": (GOOD.replace("1002,", "1001,", 1), "run.seeds: seed 1001 stands in seeds too"),
    "seeds": (GOOD.replace("[1101,", '["1101",'), "run.second: no list of seeds"),
    "orders": (GOOD.replace("orders = 2", "orders = 1.5"), "run.orders: 1.5"),
    "alpha": (GOOD.replace("alpha = 0.05", "alpha = 5"), "run.alpha: 5"),
    "no claim": (GOOD + GOOD[GOOD.index("[row.C6c]") :].replace("row.C", "row.D"), "row.D6c: no"),
    "claim": (GOOD.replace('C7 = "', 'C9 = "'), "claim.C9: unknown key"),
    "no level": (replaced("C6a", "level = 8.0\nwhy = .*\n", ""), "row.C6a.level: missing. Say in"),
    "level": (replaced("C6a", "level = 8.0", "level = 'his'"), "row.C6a.level: 'his'"),
    "no sentence": (replaced("C6a", "sentence = .*\n", ""), "row.C6a.sentence: missing"),
    "sentence": (replaced("C6a", "{diff", "{difference"), "row.C6a.sentence: it cannot be filled"),
    "primary": (replaced("C6a", "true", "'yes'"), "row.C6a.primary: 'yes'"),
    "text": (replaced("C6a", 'chapter = "04"', "chapter = 4"), "row.C6a.chapter: 4"),
    "row": (GOOD.partition("[row.C1a]")[0] + "[row]\nC1a = 1\n", "row.C1a: no table"),
    "no table": ("row = 1\n" + GOOD.partition("[row.C1a]")[0], "row: no table"),
    "broken": (GOOD.replace("alpha = 0.05", "alpha = 0.0.5"), "no TOML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plan_is_named(tmp_path, name):
    """Fails if a plan that decides nothing, or less than it seems, is taken."""
    text, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'claims.toml'}: ")
    assert len(str(error.value).split(". ")) > 1, "name the mend too"


def test_one_primary_of_the_cause_is_enough(tmp_path):
    text = replaced("C8b", "primary = true\n", "")
    assert load(tmp_path, text).primaries[-1] == "C8a"


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=files.ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def new_rows():
    """The committed ledger; skips while it is of the time before there was a plan."""
    rows = json.loads((files.ROOT / "figures" / "claims.json").read_text())
    if not any("plan" in row for row in rows):
        pytest.skip("figures/claims.json was made before there was a plan")
    return rows


def test_results_are_of_this_plan():
    """Fails if the plan was changed after the results came in."""
    assert {row["plan"] for row in new_rows()} == {plan.load().hash}
    assert ledger.read(files.ROOT / "figures" / "claims.json", plan.load())


def test_the_plan_was_there_before_the_results():
    """Fails if the commit that last touched the plan does not stand before that of the results."""
    new_rows()
    paths = ("chapters/lab/evidence/claims.toml", "figures/claims.json")
    try:
        is_shallow = git("rev-parse", "--is-shallow-repository")
    except FileNotFoundError:
        pytest.skip("no git here")
    if is_shallow != "false":
        pytest.skip("no clone, or one without its history")
    if git("status", "--porcelain", "--", *paths):
        pytest.skip("plan or results are not committed")
    planned, found = (git("log", "-1", "--format=%H", "--", path) for path in paths)
    if not planned or not found:
        pytest.skip("plan or results are not committed")
    assert planned != found, "the plan came with its results"
    assert git("merge-base", "--is-ancestor", planned, found) is not None, "the plan came later"


def test_the_book_runs_what_is_planned():
    """Fails if the preset's seeds, orders or level are not the plan's, or too few for a primary."""
    from lab.experiments import erasures, presets

    planned, full = plan.load(), presets.PRESETS["full"]
    assert planned.seeds == files.BOOK_SEEDS == full.seeds and len(full.seeds) >= 12
    assert (full.orders, full.shuffles) == (planned.orders, planned.attacks)
    assert planned.level == erasures.STOP_NLL
    assert not set(planned.seeds) & {*range(1, 29), *range(101, 109), *range(301, 308)}


def test_a_row_names_the_chapter_that_asks_it():
    """Fails if the ledger sends a reader to a chapter that does not record the row."""
    asked = {path.name[:2]: path.read_text() for path in files.CHAPTERS.glob("[0-9]*.py")}
    rows = plan.load().rows
    assert rows
    for id, row in rows.items():
        listed = f'"{id}"' in asked[row.chapter] or id.startswith("C7")
        assert listed, f"{id}: chapter {row.chapter} does not name it"

"""Numbers in prose: filled from files, twice the same, and never silently wrong."""

import json
import re

import pytest

from lab import files
from lab.evidence import ledger, links, plan, quotes

ROW = dict.fromkeys(ledger.EMPTY) | {
    **dict.fromkeys(("claim", "command", "chapter", "metric", "endpoint", "expect"), "x"),
    **dict.fromkeys(("n_orders", "n_attacks", "seeds_agreeing"), 1),
    "primary": True,
    "id": "C6a",
    "margin": 5.0,
    "diff": -14.4,
    "ci95": [-20.1, -8.7],
    "baseline": 40.04,
    "sare": 25.64,
    "verdict": "supported",
    "reading": None,
    "n_seeds": 12,
    "p": 0.004,
    "p_holm": 0.036,
}
LATER = ROW | {"id": "C3b", "margin": 0.1, "verdict": "exploratory", "reading": "for"}
NEVER = ROW | dict.fromkeys(("diff", "ci95", "baseline", "sare", "n_seeds", "p", "p_holm"))
RESULTS = {
    "relapse": {"SARE": [100.0, 201.0], "EFUF, SARE's work": [10, 20]},
    "worst_ball_0.5": 0.5,
    "worst_ball_0": 9,
    "gaps": [1, None],
}


@pytest.fixture
def folder(tmp_path):
    rows = [ROW, LATER | {"p_holm": None}, NEVER | {"id": "C7a", "verdict": "not tested"}]
    stamped = [row | {"plan": plan.load().hash} for row in rows]
    (tmp_path / "claims.json").write_text(json.dumps(stamped))
    (tmp_path / "04_x.json").write_text(json.dumps({"results": RESULTS}))
    return tmp_path


def filled(marker, folder):
    text = quotes.fill(f"a <!-- {marker} -->old\n# old<!-- / --> b", folder)
    assert quotes.fill(text, folder) == text
    return re.fullmatch(f"a <!-- {re.escape(marker)} -->(.*)<!-- / --> b", text)[1]


@pytest.mark.parametrize(
    "marker, expected",
    [
        ("C6a.diff", "-14.4 [-20.1, -8.7]"),
        ("C3b.diff", "-14.40 [-20.10, -8.70]"),  # a small margin: more decimals
        ("C6a.baseline", "40.0"),
        ("C6a.sare", "25.6"),
        ("C3b.sare", "25.64"),
        ("C6a.verdict", "supported"),
        ("C3b.verdict", "for"),
        ("C6a.n", "12"),
        ("C6a.p", "0.036"),
        ("C3b.p", "0.004"),
        ("C7a.diff", "not tested"),
        ("C7a.sare", "not tested"),
        ("C7a.p", "not tested"),
        ("C7a.n", "0"),
        ("fig:04_x:results.relapse.SARE:.1f", "150.5"),
        ("fig:04_x:results.relapse.SARE.1:d", "201"),
        ("fig:04_x:results.relapse.EFUF, SARE's work:.0f", "15"),
        ("fig:04_x:results.worst_ball_0.5:.1f:100", "50.0"),
        ("fig:04_x:results.worst_ball_0.5:+.2f", "+0.50"),
    ],
)
def test_markers_are_filled(folder, marker, expected):
    """Fails if a number is rounded away, taken from elsewhere, or filling goes on for ever."""
    assert filled(marker, folder) == expected


def test_a_new_result_changes_the_text(folder):
    """Fails if prose keeps what an earlier run said."""
    text = "<!-- C6a.diff --><!-- / --> and <!-- fig:04_x:results.relapse.SARE:.1f --><!-- / -->"
    before = quotes.fill(text, folder)
    (folder / "04_x.json").write_text(json.dumps({"results": {"relapse": {"SARE": 7}}}))
    assert quotes.fill(before, folder).endswith("-->7.0<!-- / -->")
    rows = json.loads((folder / "claims.json").read_text())
    rows[0]["diff"] = 3.0
    (folder / "claims.json").write_text(json.dumps(rows))
    assert "-->+3.0 [" in quotes.fill(before, folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- C6z.diff -->x<!-- / -->", "C6z.diff -->: C6z is no row of claims.json"),
        ("<!-- C6a.dif -->x<!-- / -->", "C6a.dif -->: 'dif' is unknown: there are diff, baseline"),
        ("<!-- fig:05_y:results:.1f -->x<!-- / -->", "fig:05_y:results:.1f -->: .*05_y.json"),
        ("<!-- fig:04_x:results.x:.1f -->x<!-- / -->", "no 'x' there: there are relapse, worst_"),
        ("<!-- fig:04_x:results.relapse:.1f -->x<!-- / -->", "results.relapse is no number"),
        ("<!-- fig:04_x:results.gaps:.1f -->x<!-- / -->", "results.gaps is no number, nor a list"),
        ("<!-- fig:04_x:results.worst_ball_0.5.x:.1f -->x<!-- / -->", "no 'x' there: .*no keys"),
        ("<!-- fig:04_x:results.worst_ball_0.5 -->x<!-- / -->", "write fig:NAME:path.to.value"),
        ("<!-- C6a.diff -->x", "<!-- C6a.diff -->: put <!-- / --> after"),
        ("<!-- C6a.diff -->x <!-- C6a.n -->y<!-- / -->", "<!-- C6a.diff -->: put <!-- / -->"),
        ("<!-- c6a.diff -->x<!-- / -->", "<!-- / -->: put <!-- / --> after each known marker"),
    ],
)
def test_a_wrong_marker_is_named(folder, text, message):
    """Fails if a typo leaves a typed number in the text."""
    with pytest.raises(ValueError, match=f"README.md: .*{message}"):
        quotes.fill(text, folder, "README.md")


def test_text_without_markers_needs_no_results(tmp_path):
    text = "<!-- a comment --> plain\n"
    assert quotes.fill(text, tmp_path) == text


def test_only_what_changed_is_written(folder):
    one, other = folder / "one.md", folder / "other.md"
    one.write_text("<!-- C6a.n -->?<!-- / -->")
    other.write_text("plain")
    assert quotes.write([one, other], folder) == [one]
    assert one.read_text() == "<!-- C6a.n -->12<!-- / -->"
    assert quotes.write([one, other], folder) == []


def test_results_of_another_plan_are_not_quoted(folder):
    rows = [ROW | {"plan": "0123456789abcdef"}]
    (folder / "claims.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="C6a.n -->: .*claims.json: made under plan 0123"):
        quotes.fill("<!-- C6a.n --><!-- / -->", folder)


def test_the_books_prose_says_what_its_files_say():
    """Fails if a chapter or the README quotes an earlier run (make evidence)."""
    assert len(quotes.places()) >= 6
    for path in quotes.places():
        text = path.read_text()
        assert quotes.fill(text, files.ROOT / "figures", path.name) == text


def test_a_notebook_follows_its_source(tmp_path):
    """Fails if numbers change in a chapter's .py and not in its .ipynb, or its JSON breaks."""
    (tmp_path / "04_x.json").write_text('{"results": {"value": 2.5}}')
    line = "# **now** <!-- fig:04_x:results.value:.1f -->1.0<!-- / --> points"
    notebook = tmp_path / "04.ipynb"
    notebook.write_text(json.dumps({"cells": [{"source": [line + "\n", '"quoted"']}]}, indent=1))
    assert quotes.write([notebook], tmp_path) == [notebook]
    filled = json.loads(notebook.read_text())["cells"][0]["source"]
    assert filled == [line.replace("1.0", "2.5") + "\n", '"quoted"']
    assert {path.suffix for path in quotes.places()} == {".md", ".py", ".ipynb"}


def shifted(content):
    """Every number of a JSON one and a half times as large, and a bit more."""
    if isinstance(content, dict):
        return {key: shifted(value) for key, value in content.items()}
    if isinstance(content, list):
        return [shifted(value) for value in content]
    return 1.5 * content + 1.7 if type(content) in (int, float) else content


def test_no_number_in_prose_outlives_its_file(tmp_path):
    """Fails if a quoted number would stand unchanged after the file behind it has changed."""
    for path in (files.ROOT / "figures").glob("*.json"):
        content = json.loads(path.read_text())
        if path.name.startswith("claims"):  # a level or a count of seeds is no result
            content = [shifted(row) for row in content]
        (tmp_path / path.name).write_text(json.dumps(shifted(content)))
    prose = quotes.places()
    assert len(prose) > 10
    for path in prose:
        text = path.read_text(encoding="utf-8")
        pairs = re.findall(r"<!-- ((?:fig:|C\d)[^>]*?) -->(.*?)<!-- / -->", text, re.DOTALL)
        for marker, shown in pairs:
            new = quotes.fill(f"<!-- {marker} --><!-- / -->", tmp_path)
            same = new == f"<!-- {marker} -->{shown}<!-- / -->"
            assert not same or ".verdict" in marker, f"{path.name}: {marker} stays {shown}"


def test_another_block_of_seeds(folder):
    """Fails if a number of the second block is read from the book's, or a missing block passes."""
    rows = json.loads((folder / "claims.json").read_text())
    rows[0]["diff"] = 3.0
    (folder / "claims_seeds-from-1101.json").write_text(json.dumps(rows))
    assert filled("C6a.diff@1101", folder) == "+3.0 [-20.1, -8.7]"
    assert filled("C6a.diff", folder) == "-14.4 [-20.1, -8.7]"
    with pytest.raises(ValueError, match="claims_seeds-from-9.json"):
        filled("C6a.diff@9", folder)


def test_a_star_and_an_interval(folder):
    """Fails if one point of every curve cannot be quoted, or its interval is not Student's."""
    curves = {"curves": [[1.0, 2.0], [1.0, 4.0], [1.0, 6.0]]}
    (folder / "04_y.json").write_text(json.dumps({"results": curves}))
    assert filled("fig:04_y:results.curves.*.1:.1f", folder) == "4.0"
    assert filled("fig:04_y:results.curves.*.1:.1fi", folder) == "4.0 [-1.0, 9.0]"
    assert filled("fig:04_y:results.curves.*.1:+.0fi:100", folder) == "+400 [-97, 897]"


CODE = """import x

LIMIT: int = 3


class Kit:
    def fresh(self):
        pass


def perturbed(x):
    return perturbed
"""


@pytest.mark.parametrize("name, line", [("perturbed", 11), ("Kit.fresh", 7), ("LIMIT", 3)])
def test_a_link_finds_its_line(tmp_path, name, line):
    """Fails if a link to code stays where the code was, or finds a use instead of a definition."""
    for folder in ("sare_min", "chapters"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sare_min/sam.py").write_text(CODE)
    text = f"see [`{name}`](../sare_min/sam.py#L99), and [this](../README.md)"
    found = links.aimed(text, tmp_path / "chapters")
    assert found == text.replace("L99", f"L{line}")
    assert links.aimed(found, tmp_path / "chapters") == found


@pytest.mark.parametrize(
    "link, why",
    [("[`gone`](../sare_min/sam.py#L1)", "no gone"), ("[`x`](lab/x.py#L1)", "not there")],
)
def test_a_link_to_nowhere_is_named(tmp_path, link, why):
    """Fails if a link to what is not defined any more is left to the reader to find."""
    for folder in ("sare_min", "chapters"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sare_min/sam.py").write_text(CODE)
    with pytest.raises(ValueError, match=f"03_x.py: .*{why}"):
        links.aimed(link, tmp_path / "chapters", "03_x.py")

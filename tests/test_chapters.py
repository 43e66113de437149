"""The chapters as documents: pairs agree, parameters are checked, outputs are stored, the address
stands in one place.
"""

import ast
import re
import sys

import jupytext
import nbformat
import pytest

from lab import files
from lab.evidence import looks
from lab.field import settings
from lab.tools import execute

if sys.version_info >= (3, 11):
    import tomllib
CHAPTERS = execute.CHAPTERS
NAMES = execute.NAMES


@pytest.fixture(params=NAMES)
def pair(request):
    return jupytext.read(CHAPTERS / f"{request.param}.py"), nbformat.read(
        CHAPTERS / f"{request.param}.ipynb", as_version=4
    )


def test_there_are_chapters():
    assert [name[:2] for name in NAMES] == [f"{i:02d}" for i in range(len(NAMES))] and len(
        NAMES
    ) >= 5


def test_pairs_agree(pair):
    """Fails if a .py was edited and its notebook not rebuilt (make sync), or the notebook was
    edited by hand.
    """
    source, notebook = pair
    assert execute.cells(source) == execute.cells(notebook)
    assert (
        notebook.metadata.kernelspec.name == "python3"
        and notebook.metadata.kernelspec.language == "python"
    )


def test_outputs_are_stored_and_checked(pair):
    """Fails if nbval would have nothing to compare."""
    checked = [c for c in pair[1].cells if "nbval-check-output" in c.metadata.get("tags", [])]
    assert len([c for c in checked if c.execution_count and c.outputs]) >= 3
    assert all(c.execution_count for c in pair[1].cells if c.cell_type == "code")
    text = nbformat.writes(pair[1])
    assert len(text) <= 300_000 and "papermill" not in pair[1].metadata and '"stderr"' not in text


def test_a_kept_run_is_the_notebook_again(tmp_path, monkeypatch):
    """Fails if keeping a run's outputs changes a cell, keeps what papermill put in, or a timing."""
    monkeypatch.setattr(execute, "CHAPTERS", tmp_path)
    new, cell, output = nbformat.v4.new_notebook, nbformat.v4.new_code_cell, nbformat.v4.new_output
    source = new(cells=[cell("preset = 'fast'", metadata={"tags": ["parameters"]}), cell("1 + 1")])
    nbformat.write(source, tmp_path / "00_x.ipynb")
    injected = cell("preset = 'full'", metadata={"tags": ["injected-parameters"]})
    ran = new(cells=[source.cells[0], injected, cell("1 + 1")], metadata={"papermill": {"x": 1}})
    ran.cells[2].outputs = [output("execute_result", {"text/plain": "2"}, execution_count=3)]
    ran.cells[2].metadata["papermill"] = {"duration": 0.1}
    execute.keep("00_x", ran)
    kept = nbformat.read(tmp_path / "00_x.ipynb", as_version=4)
    assert execute.cells(kept) == execute.cells(source) and "papermill" not in nbformat.writes(kept)
    assert [c.execution_count for c in kept.cells] == [1, 2]
    assert kept.cells[1].outputs[0].data["text/plain"] == "2"
    assert kept.cells[1].outputs[0].execution_count == 2


def test_one_parameters_cell_of_literals(pair):
    """Fails if papermill could not inject, or a default is computed."""
    tagged = [c for c in pair[0].cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    tree = ast.parse(tagged[0].source)
    found = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    assert {"preset": "fast", "seeds": ""}.items() <= found.items() and set(found) <= {
        "preset",
        "seeds",
        "checkpoint",
        "data",
        "bits",
        "images",
        "tested",
        "rows_at_once",
        "probed",
        "into",
    }


@pytest.mark.parametrize("name", settings.SETTINGS)
def test_chapter_05_declares_what_make_real_gives(name):
    """Fails if a run on real files stops at papermill's door."""
    given = settings.parameters(settings.SETTINGS[name], "somewhere")
    execute.parameters(CHAPTERS / "05_real_thing.ipynb", given)


def test_prose_leads(pair):
    """Fails if a chapter turns into a script: five words of prose a line of code, no cell over 25
    lines.
    """
    code = [c.source for c in pair[0].cells if c.cell_type == "code"]
    lines = [
        [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        for text in code
    ]
    words = sum(len(c.source.split()) for c in pair[0].cells if c.cell_type == "markdown")
    assert max(map(len, lines)) <= 25 and words >= 5 * sum(map(len, lines))


def test_code_does_not_scroll(pair):
    """Fails if a rendered page has to scroll sideways: code cells are 80 columns wide at most."""
    code = [c.source for c in pair[0].cells if c.cell_type == "code"]
    assert not [line for text in code for line in text.splitlines() if len(line) > 80]


def test_every_chapter_has_its_parts(pair):
    """Fails if the question, the claims not shown, the exercises or the sources are missing."""
    text = "\n".join(c.source for c in pair[0].cells if c.cell_type == "markdown")
    for part in (
        "**The question.**",
        "**The answer.**",
        "**What you need.**",
        "**What you will see.**",
        "**Time.**",
        "## What we learned",
        "## What we did not show",
        "## Exercises",
        "## Sources",
    ):
        assert part in text, part
    tags = [tag for c in pair[0].cells for tag in c.metadata.get("tags", [])]
    assert "exercise" in tags and "solution" not in tags, "solutions stand in solutions.md"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_address_stands_in_one_place():
    """Fails if a badge or an install cell names another repository than pyproject.toml."""
    address = tomllib.loads((files.ROOT / "pyproject.toml").read_text())["project"]["urls"][
        "Repository"
    ]
    for name in NAMES:
        text = (CHAPTERS / f"{name}.py").read_text()
        on_colab = address.replace("https://github.com", "https://colab.research.google.com/github")
        assert f"{on_colab}/blob/main/chapters/{name}.ipynb" in text
        assert set(re.findall(r"https://github\.com/[\w-]+/[\w-]+", text)) == {address}


def test_unknown_parameters_are_refused():
    """Fails if a typo in a parameter passes, as it does with papermill alone."""
    with pytest.raises(ValueError, match="has no parameter 'prest'.*preset, seeds"):
        execute.parameters(CHAPTERS / f"{NAMES[0]}.ipynb", {"prest": "full"})


def test_no_line_opens_with_a_comment():
    """Fails if a marker opens a line: Markdown then begins a block of HTML there, which ends the
    paragraph and shows asterisks.
    """
    texts = {path: path.read_text() for path in (files.ROOT / "README.md", *CHAPTERS.glob("*.md"))}
    for name in NAMES:
        cells = jupytext.read(CHAPTERS / f"{name}.py").cells
        texts[name] = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    for where, text in texts.items():
        opened = re.findall(r"^\s*<!-- (?!claims:).*", text, re.MULTILINE)
        assert not opened, f"{where}: {opened}"


def test_no_shell_lines():
    """Fails on a raw !command, which keeps jupytext from un-commenting the file's magics."""
    for name in NAMES:
        assert not re.search(r"^\s*[!%]", (CHAPTERS / f"{name}.py").read_text(), re.MULTILINE)


def test_stored_pictures_are_small_and_true():
    """Fails if a stored figure loses its size or its colours on the way into a notebook."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    wide = np.zeros((40, 60, 3), np.uint8)
    # Two of the book's colours on black
    wide[:, :20], wide[:, 20:40] = ((1, 115, 178), (222, 143, 5))
    png = io.BytesIO()
    Image.fromarray(wide).save(png, "PNG")
    again = Image.open(
        io.BytesIO(base64.b64decode(execute.in_colours(base64.b64encode(png.getvalue()).decode())))
    )
    assert (
        again.mode == "P" and np.abs(np.asarray(again.convert("RGB")).astype(int) - wide).max() <= 4
    )


def test_a_method_keeps_its_hue_in_a_grey_picture():
    """Fails if a map of greys leaves no room in the palette for a few pixels that mean a method."""
    import base64
    import io

    import numpy as np
    from matplotlib.colors import to_hex
    from PIL import Image

    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2).repeat(64, axis=1)
    png, hues = io.BytesIO(), sorted({colour for colour, _, _ in looks.STYLE.values()})
    for i, hue in enumerate(hues):
        grey[5 * i, :3] = [int(hue[j : j + 2], 16) for j in (1, 3, 5)]
    Image.fromarray(grey).save(png, "PNG")
    small = base64.b64decode(execute.in_colours(base64.b64encode(png.getvalue()).decode()))
    again = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"))
    assert [to_hex(again[5 * i, 0] / 255) for i in range(len(hues))] == hues


RESULT = re.compile(r"\d+\.\d+|\d+ %|\d+ points|\d+ samples")  # what a run gives, not a setting


@pytest.mark.parametrize("name", NAMES)
def test_findings_are_quoted_from_files(name):
    """Fails if a number is typed into a chapter's answer or what it taught, which a new run would
    leave behind.
    """
    text = "\n".join(
        cell.source
        for cell in jupytext.read(CHAPTERS / f"{name}.py").cells
        if cell.cell_type == "markdown"
    )
    answer = text[text.index("**The answer.**") : text.index("**What you will see.**")]
    learned = text[text.index("## What we learned") : text.index("## What we did not show")]
    typed = re.sub(r"<!-- [^/].*?<!-- / -->", "", answer + learned, flags=re.DOTALL)
    settings = ("128 relearning samples", "L2 distance of 0.5", "within 0.5", "95 % interval")
    settings += (
        "llava-1.5-7b-hf",
        "Moved by 0.5 in",
        "step of length 0.5",
        "640\nsamples",
        "640 samples",
    )
    for setting in settings:
        typed = typed.replace(setting, "")
    assert "<!-- " in answer and not RESULT.findall(typed), RESULT.findall(typed)


SETTINGS = {  # numbers in prose that no run gives: settings, levels of a test, names
    *("0 %", "5 %", "50 %", "90 %", "95 %", "100 %", "51 points"),
    *("128 samples", "256 samples", "640 samples"),
    *("0.01", "0.1", "0.2", "0.25", "0.3", "0.5", "0.7", "1.0", "1.5"),
    *("2.2", "12.7", "27.5"),  # t factors; a threshold of EFUF's
}


@pytest.mark.parametrize("name", NAMES)
def test_prose_types_no_result(name):
    """Fails if a chapter's prose holds a typed number that is no setting: a new run would leave it
    behind.
    """
    cells = jupytext.read(CHAPTERS / f"{name}.py").cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = text[: text.index("## Exercises")]
    text = re.sub(r"<!-- [^/].*?<!-- / -->|```.*?```", "", text, flags=re.DOTALL)
    found = {
        " ".join(match.split()) for match in re.findall(r"\d+\.\d+|\d+\s(?:%|points|samples)", text)
    }
    assert not found - SETTINGS

"""`make book`: the chapters as a site in build/book/, from what their notebooks stored.

Sphinx reads pages that are staged in build/book-pages/, in the repository's own folders, so that
most links between files hold as they are. Staging fills quoted numbers, drops their markers, puts
the full run's figure where a cell stored the fast one, and sends links to files that are no page
to the site's own view of the code, or to the repository's address.
"""

from __future__ import annotations

import ast
import base64
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import nbformat

from .. import files
from ..evidence import quotes, slider
from ..shell import ended
from .notebooks import read_notebook

try:
    import tomllib
except ModuleNotFoundError:  # it came with Python 3.11
    import tomli as tomllib

SITE = files.CHAPTERS / "site"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```|`+[^`]+?`+)", re.DOTALL | re.MULTILINE)  # no links in there
FIGURE = re.compile(r"[\"']((?:\d\d_\w+|bench))[\"']")
# A room's page in the reference: its title, and the modules to read first
ROOMS = {
    "sare_min": ("The method", "sam losses captions unlearn attack"),
    "lab.world": ("The microworld", "scenes models"),
    "lab.experiments": ("Erasures, attacks, gauges", "presets erasures attacks"),
    "lab.evidence": ("From results to verdicts", "plan ledger stats readings tables figures"),
    "lab.metrics": ("CHAIR and POPE", ""),
    "lab.llava": ("Checkpoints and speech", ""),
    "lab.exercises": ("Checks of the exercises", ""),
    "lab.field": ("The field's files", "coco photos judge score"),
}
TO_SLIDER = "[The slider](../slider.md) has a page of its own on this site."


@cache
def address() -> str:
    """The repository's address, which stands in pyproject.toml alone."""
    text = files.read_text(files.ROOT / "pyproject.toml")
    return tomllib.loads(text)["project"]["urls"]["Repository"]


@cache
def pages() -> dict[str, str]:
    """{file of the repository: the page that it becomes}, both as paths from their roots."""
    chapters = [path.name for path in sorted(files.CHAPTERS.glob("[0-9][0-9]_*.ipynb"))]
    texts = ("glossary.md", "bibliography.md", "solutions.md")
    same = [f"chapters/{name}" for name in (*chapters, *texts)]
    same += ["figures/claims.md", "LOG.md", "CONTRIBUTING.md"]
    own = {f"chapters/site/{name}": name for name in ("index.md", "slider.md")}
    return {name: name for name in same} | own


@cache
def modules(room: str) -> dict[str, str]:
    """{module: its file in the repository} of a room, those to read first first."""
    folder = room.replace(".", "/") if room == "sare_min" else f"chapters/{room.replace('.', '/')}"
    first = ROOMS[room][1].split()
    names = {path.stem for path in (files.ROOT / folder).glob("*.py")} - {"__init__", "__main__"}
    rest = sorted(names - set(first))
    return {f"{room}.{name}": f"{folder}/{name}.py" for name in (*first, *rest)}


@cache
def homes() -> dict[str, str]:
    """{file of the repository: the module that the reference lists}."""
    return {path: module for room in ROOMS for module, path in modules(room).items()}


@cache
def listed(path: str) -> dict[str, range]:
    """{name: its lines} of a source file's functions and classes that the reference lists: those
    with a docstring and no leading underscore.
    """
    tree = ast.parse(files.read_text(files.ROOT / path))
    nodes = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {
        node.name: range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in nodes
        if ast.get_docstring(node) and not node.name.startswith("_")
    }


def anchor(path: str, line: int | None) -> str:
    """ "#name" of the listed function or class at this line, "" if there is none."""
    return next((f"#{name}" for name, lines in listed(path).items() if line in lines), "")


def resolve(target: str, source: str) -> str:
    """Where a link of the file `source` leads on the site, seen from the page of `source`.

    Raises ValueError naming file and link if the link leads to no file of the repository.
    """
    if re.match(r"[a-z][a-z+.-]*:|#", target):
        return target
    path, _, fragment = target.partition("#")
    there = os.path.normpath(os.path.join(os.path.dirname(source), path))
    if there.startswith("..") or not (files.ROOT / there).exists():
        raise ValueError(f"{source}: the link ({target}) leads to no file: name one that is there.")
    there = {"README.md": "chapters/site/index.md"}.get(there, there)
    here = os.path.dirname(pages().get(source, source)) or "."
    hash_ = f"#{fragment}" if fragment else ""
    if there in pages():
        return os.path.relpath(pages()[there], here) + hash_
    if there.startswith("figures/") and there.endswith((".png", ".gif")):
        return os.path.relpath(there, here)
    if module := homes().get(there):
        line = re.match(r"L(\d+)", fragment)
        name = anchor(there, int(line[1]) if line else None)
        return os.path.relpath(f"_modules/{module.replace('.', '/')}.html", here) + name
    kind = "tree" if (files.ROOT / there).is_dir() else "blob"
    return f"{address()}/{kind}/main/{there}{hash_}"


def relink(text: str, source: str) -> str:
    """The Markdown of `source` with its links as the site needs them; code is left alone."""

    def link(found: re.Match) -> str:
        if found[1] == BADGE:
            up = os.path.dirname(pages().get(source, source)).count("/") + 1
            return f"]({'../' * up}colab-badge.svg)"
        target = resolve(found[1], source)
        # Pages of the code are made after the text is read, so Sphinx must take the link as it is
        return f"]({target})" + ("{.external}" if "_modules/" in target else "")

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def markdown(text: str, source: str, figures: Path) -> str:
    """A page's text: numbers filled, their markers dropped (a line that opens with a comment is no
    paragraph in Markdown), links led on.

    Raises ValueError naming `source` for an unknown marker and for a link that leads nowhere.
    """
    filled = quotes.fill(text, figures, source)
    return relink(quotes.MARKER.sub("", filled), source)


def about(path: Path) -> dict:
    """A figure's JSON; raises ValueError naming it if it does not say what the site shows."""
    facts = files.read_json(path)
    known = facts if isinstance(facts, dict) else {}
    if lost := [key for key in ("caption", "preset", "seeds") if key not in known]:
        raise ValueError(f"{path}: no {lost[0]} there. Run the figure's chapter again.")
    return known


def show_full_figure(cell: nbformat.NotebookNode, figures: Path) -> None:
    """Put figures/NAME.png, of the full run, where a cell that names it stored a fast one; its
    caption becomes the picture's description.
    """
    outputs = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    names = [n for n in FIGURE.findall(cell.source) if (figures / f"{n}.png").exists()]
    if not outputs:
        return
    mystnb = cell.metadata.setdefault("mystnb", {})
    mystnb["image"] = {"alt": "Drawn by the cell above."}
    if len(names) == 1 and len(outputs) == 1:
        facts = about(figures / f"{names[0]}.json")
        png = (figures / f"{names[0]}.png").read_bytes()
        outputs[0].data["image/png"] = base64.b64encode(png).decode()
        mystnb["image"] = {"alt": facts["caption"]}
        values = f"{address()}/blob/main/figures/{names[0]}.json"
        n_seeds = len(facts["seeds"])
        run = f"{facts['preset']} preset, {n_seeds} seed{'s' if n_seeds > 1 else ''}"
        mystnb["figure"] = {"caption": f"Figure {names[0]}, {run}. [Its values]({values})."}


def notebook(path: Path, source: str, figures: Path) -> nbformat.NotebookNode:
    """A chapter as the site shows it: text through `markdown`, the full run's figures, and
    the way to the slider where a cell shows it in Jupyter.
    """
    book = read_notebook(path)
    cells, book.cells = book.cells, []
    for cell in cells:
        book.cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = markdown(cell.source, source, figures)
            continue
        show_full_figure(cell, figures)
        if "slider.widget(" in cell.source:
            note = nbformat.v4.new_markdown_cell(TO_SLIDER, id=f"{cell.get('id', 'cell')}-slider")
            book.cells.append(note)
    return book


def reference(room: str) -> str:
    """The page of a room: what its modules' docstrings say."""
    parts = [f"# {ROOMS[room][0]}: `{room}`"]
    for module, path in modules(room).items():
        # By name: autodoc asks imported functions for their signatures, too, and fails on some
        body = f".. automodule:: {module}\n   :members: {', '.join(listed(path))}"
        parts.append(f"## `{module}`\n\n```{{eval-rst}}\n{body}\n```")
    return "\n\n".join(parts) + "\n"


def own_page(name: str, figures: Path) -> str:
    """A page of the site itself, with the parts that are there only if their files are: the strip
    and the slider.
    """
    text = markdown(files.read_text(SITE / name), f"chapters/site/{name}", figures)
    strip, shown = figures / "04_strip.png", ""
    if "<!-- strip -->" in text and strip.exists():
        caption = about(strip.with_suffix(".json"))["caption"]
        shown = f"![{caption}](figures/{strip.name})"
    text = text.replace("<!-- strip -->", shown)
    if "<!-- slider -->" in text:
        results = slider.read(figures)
        panel = slider.page(results) if results else slider.MISSING
        text = text.replace("<!-- slider -->", f"```{{raw}} html\n{panel}\n```")
    return text


def stage(out: Path, figures: Path = files.ROOT / "figures") -> None:
    """Write all that Sphinx reads into an empty folder `out`.

    Raises ValueError naming the file for a marker or a link that leads nowhere.
    """
    shutil.rmtree(out, ignore_errors=True)
    for source, page in pages().items():
        path, target = files.ROOT / source, out / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            nbformat.write(notebook(path, source, figures), target)
        elif source.startswith("chapters/site/"):
            target.write_text(own_page(path.name, figures), encoding="utf-8")
        else:
            target.write_text(markdown(files.read_text(path), source, figures), encoding="utf-8")
    for room in ROOMS:
        (out / "api").mkdir(exist_ok=True)
        (out / f"api/{room.replace('.', '_')}.md").write_text(reference(room), encoding="utf-8")
    for picture in (*figures.glob("*.png"), *figures.glob("*.gif")):
        shutil.copy(picture, out / "figures")
    shutil.copy(SITE / "static/colab-badge.svg", out)


def process_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Sphinx's hook: our docstrings are plain text, and Sphinx reads reStructuredText."""
    lines[:] = to_rst(lines)


def to_rst(lines: Sequence[str]) -> list[str]:
    """Plain text as reStructuredText that shows the same: `code` as code, indented lines as they
    stand, every other sign as itself.

    A line that opens with "name: " or Returns, Yields, Raises, Source begins a paragraph.
    """
    found: list[str] = []
    starts = re.compile(r"(Returns?|Yields?|Raises?|Source)\b|[a-z_0-9, *]+: ")
    for block in "\n".join(lines).strip("\n").split("\n\n"):
        rows = block.split("\n")
        if all(row.startswith("    ") for row in rows):
            found += [".. code-block:: text", "", *rows, ""]
            continue
        for row in rows:
            text = row.strip()
            if text.startswith(("- ", "* ")):
                found += ["", f"- {escape(text[2:])}"]
            elif starts.match(text) and row == text:
                found += ["", escape(text)]
            else:
                is_in_list = row.startswith(" ") and found and found[-1].startswith(("- ", "  "))
                found.append(("  " if is_in_list else "") + escape(text))
        found.append("")
    return found


def escape(text: str) -> str:
    """`code` and *words* keep their marks, every other sign of reStructuredText is escaped."""
    parts = re.split(r"(`[^`]+`|(?<![\w*])\*\w[^*`]*?\w\*(?![\w*]))", text)
    parts[::2] = [re.sub(r"([\\*|`_])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [rf"\ `{part}`\ " if part[0] == "`" else rf"\ {part}\ " for part in parts[1::2]]
    return "".join(parts)


def build(out: Path, pages_folder: Path) -> int:
    """Run Sphinx over staged pages; every warning is an error. Returns its exit code."""
    from sphinx.cmd.build import build_main

    given = ["-b", "html", "-c", str(SITE), "-W", "--keep-going", "-q", "-E"]
    return build_main([*given, "-d", f"{pages_folder}-trees", str(pages_folder), str(out)])


def main(given: Sequence[str] = ()) -> int:
    """Stage and build; returns the exit code. given: a folder for the site, and one of figures."""
    start = time.perf_counter()
    out = Path(given[0]) if given else files.ROOT / "build/book"
    figures = Path(given[1]) if given[1:] else files.ROOT / "figures"
    staged = out.with_name(f"{out.name}-pages")
    shutil.rmtree(out, ignore_errors=True)  # a page that is no more must not stay
    with files.named(staged):
        stage(staged, figures)
    code = build(out, staged)
    if not code:
        n_pages = len(list(out.rglob("*.html")))
        print(f"{n_pages} pages in {time.perf_counter() - start:.0f} s: {out}/index.html")
    return code


if __name__ == "__main__":
    ended(main, sys.argv[1:])

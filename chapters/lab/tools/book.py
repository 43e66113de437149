"""`make book`: the chapters as a site in build/book/, from what their notebooks stored.

Sphinx reads pages that are staged in build/book-pages/, in the repository's own folders, so that
most links between files hold as they are. Staging fills quoted numbers, drops their markers, puts
the full run's figure where a cell stored the fast one, and sends links to files that are no page
to the site's own view of the code, or to the repository's address.
"""

from __future__ import annotations

import ast
import base64
import json
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

try:
    import tomllib
except ModuleNotFoundError:  # it came with Python 3.11
    import tomli as tomllib

SITE = files.CHAPTERS / "site"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```|`+[^`]+?`+)", re.DOTALL | re.MULTILINE)  # no links in there
FIGURE = re.compile(r"[\"']((?:\d\d_\w+|bench))[\"']")
# A room's page in the reference: which modules a reader meets there.
ROOMS = {
    "sare_min": ("The method", "sam losses captions unlearn attack llava metrics"),
    "lab.world": ("The microworld", "scenes models bases curate kit encoded measured"),
    "lab.experiments": (
        "Erasures, attacks, gauges",
        "presets erasures attacks levels landscape gauges quality cheaper traps variance",
    ),
    "lab.evidence": (
        "From results to verdicts",
        "plan observations readings stats ledger tables figures quotes slider",
    ),
    "lab.metrics": ("CHAIR and POPE", "chair pope"),
    "lab.llava": ("Checkpoints and speech", "checkpoints speech"),
    "lab.field": ("The field's files", "coco photos judge score export images devices ranks"),
}
ON_THIS_PAGE = """
:::{note}
Figures on this page are the full run's, as the numbers in the text are. What the other cells
print comes from the fast preset's two seeds, as the notebook stores it.
:::
"""


@cache
def address() -> str:
    """The repository's address, which stands in pyproject.toml alone."""
    text = files.read_text(files.ROOT / "pyproject.toml")
    return tomllib.loads(text)["project"]["urls"]["Repository"]


@cache
def pages() -> dict[str, str]:
    """{file of the repository: the page that it becomes}, both as paths from their roots."""
    chapters = [path.name for path in sorted(files.CHAPTERS.glob("[0-9][0-9]_*.ipynb"))]
    same = [f"chapters/{name}" for name in (*chapters, "glossary.md", "bibliography.md")]
    same += ["figures/claims.md", "LOG.md", "CONTRIBUTING.md"]
    own = {f"chapters/site/{name}": name for name in ("index.md", "slider.md")}
    return {name: name for name in same} | own


def home_of(path: str) -> str | None:
    """The module of a source file that the reference lists; None for others, as lab/jobs.py."""
    module = path.removesuffix(".py").removeprefix("chapters/").replace("/", ".")
    room, _, name = module.rpartition(".")
    known = path.endswith(".py") and room in ROOMS and name in ROOMS[room][1].split()
    return module if known else None


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
    if there.startswith("figures/") and there.endswith(".png"):
        return os.path.relpath(there, here)
    if module := home_of(there):
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
        facts = json.loads(files.read_text(figures / f"{names[0]}.json"))
        png = (figures / f"{names[0]}.png").read_bytes()
        outputs[0].data["image/png"] = base64.b64encode(png).decode()
        mystnb["image"] = {"alt": facts["caption"]}
        values = f"{address()}/blob/main/figures/{names[0]}.json"
        run = f"{facts['preset']} preset, {len(facts['seeds'])} seeds"
        run += "" if len(facts["seeds"]) > 1 else " (one)"
        mystnb["figure"] = {"caption": f"Figure {names[0]}, {run}. [Its values]({values})."}


def notebook(path: Path, source: str, figures: Path) -> nbformat.NotebookNode:
    """A chapter as the site shows it: text through `markdown`, the full run's figures, solutions
    folded.
    """
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = markdown(cell.source, source, figures)
            continue
        show_full_figure(cell, figures)
        if "solution" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("hide-cell")
            prompts = {"code_prompt_show": "A solution", "code_prompt_hide": "A solution"}
            cell.metadata.setdefault("mystnb", {}).update(prompts)
    lines = book.cells[0].source.split("\n")
    at = next((i for i, line in enumerate(lines) if "colab-badge" in line), 0) + 1
    book.cells[0].source = "\n".join([*lines[:at], ON_THIS_PAGE, *lines[at:]])
    return book


def reference(room: str) -> str:
    """The page of a room: what its modules' docstrings say."""
    title, names = ROOMS[room]
    parts = [f"# {title}: `{room}`"]
    for name in names.split():
        path = f"{room.replace('.', '/')}/{name}.py"
        path = path if room == "sare_min" else f"chapters/{path}"
        # By name: autodoc asks imported functions for their signatures, too, and fails on some
        body = f".. automodule:: {room}.{name}\n   :members: {', '.join(listed(path))}"
        parts.append(f"## `{room}.{name}`\n\n```{{eval-rst}}\n{body}\n```")
    return "\n\n".join(parts) + "\n"


def own_page(name: str, figures: Path) -> str:
    """A page of the site itself, with the parts that are there only if their files are."""
    text = files.read_text(SITE / name)
    strip = figures / "04_strip.png"
    if "<!-- strip -->" in text:
        alt = "Four scenes and what base model, EFUF and SARE say of them, inventions in red"
        if strip.exists():
            alt = json.loads(files.read_text(strip.with_suffix(".json")))["caption"]
        shown = f"![{alt}](../../figures/04_strip.png)" if strip.exists() else ""
        text = text.replace("<!-- strip -->", shown)
    text = markdown(text, f"chapters/site/{name}", figures)
    if "<!-- slider -->" in text:  # after the links: the panel is no Markdown
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
    for png in figures.glob("*.png"):
        shutil.copy(png, out / "figures")
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
            found += ["::", "", *rows, ""]
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
    """`code` stays code, every other sign of reStructuredText is escaped."""
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"([\\*|`_])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [rf"\ ``{part.strip()}``\ " for part in parts[1::2]]
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
    stage(staged, figures)
    code = build(out, staged)
    if not code:
        n_pages = len(list(out.rglob("*.html")))
        print(f"{n_pages} pages in {time.perf_counter() - start:.0f} s: {out}/index.html")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))

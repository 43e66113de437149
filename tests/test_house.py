"""The house: which room may ask which, that nothing goes round, and what stays small."""

import ast
import io
import subprocess
import sys
import tokenize

import pytest

from lab import files

LAB = files.LAB
# A room may import rooms that stand before it, and itself.
ORDER = (
    "sare_min",
    "files",
    "shell",
    "entries",
    "engine",
    "jobs",
    "metrics",
    "llava",
    "world",
    "evidence",
    "experiments",
    "field",
    "audit",
    "exercises",
    "tools",
    "score",
)
SOURCES = [
    str(path.relative_to(files.ROOT).with_suffix(""))
    for folder in (files.ROOT / "sare_min", LAB)
    for path in sorted(folder.rglob("*.py"))
    if path.name != "__init__.py"
]


def imported(source: str) -> set[str]:
    """The modules of ours that a source imports, as paths from the root without .py."""
    found = set()
    for node in ast.walk(ast.parse((files.ROOT / f"{source}.py").read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = node.module.split(".") if node.module else []
        if node.level:
            home = source.split("/")[: -node.level]
        elif module and module[0] in ("sare_min", "lab"):
            home = ["chapters"] if module[0] == "lab" else []
        else:
            continue
        place = "/".join([*home, *module])
        inside = {f"{place}/{alias.name}" for alias in node.names}
        found |= {path for path in inside if (files.ROOT / f"{path}.py").exists()} or {place}
    return found


def room(source: str) -> str:
    return "sare_min" if source.startswith("sare_min") else source.split("/")[2]


def code_lines(path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    text, lines = path.read_text(), set()
    idle = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*idle, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        has_doc = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if has_doc and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("source", SOURCES)
def test_imports_go_one_way(source):
    """Fails if a room asks one that stands after it, as the method would the laboratory."""
    behind = imported(source)
    assert all((files.ROOT / f"{other}.py").exists() for other in behind), behind
    upward = {other for other in behind if ORDER.index(room(other)) > ORDER.index(room(source))}
    assert not upward, f"{source} imports {upward}"


def test_nothing_goes_round():
    """Fails if two modules need each other, directly or through others."""
    left = {source: imported(source) for source in SOURCES}
    while free := [source for source, needs in left.items() if not needs & left.keys()]:
        for source in free:
            del left[source]
    assert not left, f"these go round in a circle: {sorted(left)}"


def test_every_room_is_in_the_order():
    assert {room(source) for source in SOURCES} == set(ORDER)


@pytest.mark.parametrize(
    "module",
    ["evidence.figures", "evidence.__main__", "evidence.report", "field.score", "field.fetch"],
)
def test_evidence_and_scores_need_no_torch(module):
    """Fails if verdicts, figures or scores can no longer be redone from JSON without torch."""
    heavy = "{'torch', 'transformers'} & sys.modules.keys()"
    code = f"import sys, lab.{module}; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=files.CHAPTERS).returncode == 0


def test_the_method_can_be_held_in_the_head():
    """Fails if sare_min grows past 500 lines of code as `ruff format` lays them out."""
    count = {path.name: code_lines(path) for path in (files.ROOT / "sare_min").glob("*.py")}
    assert sum(count.values()) <= 500, count

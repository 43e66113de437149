"""Run the chapters by papermill: `python -m lab.tools.execute --preset full` from chapters/ (what
`make execute` calls).

The executed notebooks go to build/executed/; figures go where `files.figures_folder` says. With
--store the fast preset's outputs are kept in the committed notebooks instead, stripped of timings
and progress bars, which is what nbval compares with.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import papermill
from PIL import Image

from .. import files, jobs
from ..evidence import ledger
from ..experiments import presets
from ..files import CHAPTERS

WIDGET = "application/vnd.jupyter.widget-view+json"
NAMES = sorted(path.stem for path in CHAPTERS.glob("[0-9][0-9]_*.py"))


def parameters(notebook: Path, given: dict[str, str]) -> dict[str, str]:
    """The given parameters; raises ValueError if the notebook does not declare one (papermill
    itself only warns).
    """
    known = papermill.inspect_notebook(notebook)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"{notebook.name} has no parameter {unknown[0]!r}: its parameters cell declares"
            f" {', '.join(known) or 'none'}."
        )
    return given


def cells(notebook: nbformat.NotebookNode) -> list[tuple]:
    """What a pair must agree in: type, source and tags of each cell."""
    return [(c.cell_type, c.source, sorted(c.metadata.get("tags", []))) for c in notebook.cells]


def execute(name: str, given: dict[str, str], out: Path) -> nbformat.NotebookNode:
    """Run one chapter in a fresh kernel, from its own folder; the executed notebook is written to
    `out` even when a cell fails.
    """
    notebook = CHAPTERS / f"{name}.ipynb"
    if cells(jupytext.read(CHAPTERS / f"{name}.py")) != cells(
        nbformat.read(notebook, as_version=4)
    ):
        raise ValueError(
            f"{notebook.name} is not what {name}.py says (the .py is the source): run `make sync`."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    return papermill.execute_notebook(
        notebook,
        out,
        parameters(notebook, given),
        cwd=CHAPTERS,
        progress_bar=True,
        log_output=False,
    )


def strip(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs between two equal runs: timings, papermill's notes, progress bars and
    warnings on stderr.
    """
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [
                out
                for out in cell.outputs
                if out.get("name") != "stderr" and WIDGET not in out.get("data", {})
            ]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = in_colours(output.data["image/png"])
    return notebook


def in_colours(png: str, n: int = 64) -> str:
    """A base64 PNG with a palette of n colours: a third of the size, so that a notebook with many
    figures opens quickly.
    """
    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(
        n, dither=Image.Dither.NONE
    ).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def store(name: str) -> None:
    """Rebuild a notebook from its .py (the source) and keep the fast preset's outputs in it."""
    subprocess.run(
        [sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", "--update", f"{name}.py"],
        cwd=CHAPTERS,
        check=True,
    )
    executed = execute(name, {}, files.ROOT / "build/store" / f"{name}.ipynb")
    source = jupytext.read(CHAPTERS / f"{name}.ipynb")
    executed.metadata = source.metadata
    nbformat.write(strip(executed), CHAPTERS / f"{name}.ipynb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="full")
    parser.add_argument(
        "--seeds", default="", help='space-separated, e.g. "11 12 13"; empty: the preset\'s own'
    )
    parser.add_argument(
        "--store",
        action="store_true",
        help="keep the fast preset's outputs in the committed notebooks",
    )
    parser.add_argument("--only", default="", help="run the chapters whose name starts so, e.g. 03")
    arguments = parser.parse_args()
    try:
        presets.get_preset(arguments.preset, arguments.seeds.split())
    except ValueError as error:
        parser.error(str(error))
    names = [name for name in NAMES if name.startswith(arguments.only)]
    if not names:
        parser.error(
            f"--only {arguments.only}: no chapter's name starts so; there are {', '.join(NAMES)}"
        )
    took, start = {}, time.time()
    for name in names:
        print(f"== {name}", flush=True)
        before = time.time()
        if arguments.store:
            store(name)
        else:
            execute(
                name,
                {"preset": arguments.preset, "seeds": arguments.seeds},
                files.ROOT / "build/executed" / f"{name}.ipynb",
            )
        took[name] = round(time.time() - before, 1)
    built = jobs.profile(start)
    print(f"{sum(took.values()) / 60:.1f} minutes; chapters, seconds: {took}")
    print(
        "built, seconds on one core:",
        {kind: f"{row['jobs']} in {row['seconds']:.0f}" for kind, row in built.items()},
    )
    files.write_json(
        files.ROOT / "build/profile.json",
        {"chapters": took, "jobs": built, "cores": os.cpu_count()},
    )
    if (
        arguments.preset == "full"
        and not arguments.seeds
        and not arguments.store
        and not arguments.only
    ):
        ledger.write()


if __name__ == "__main__":
    main()

"""Run the chapters by papermill: `python -m lab.tools.execute --preset full` from chapters/ (what
`make execute` calls).

The executed notebooks go to build/executed/; figures go where `files.figures_folder` says: to
figures/ only with KEEP=1. The book's own run then also keeps its outputs in the committed
notebooks, stripped of timings and progress bars, so that prose, figures and outputs are of one run.
A run of all chapters ends with the reproduction report.

With --sync nothing runs: notebooks are rebuilt from their .py (the source), and cells that did not
change keep their outputs (what `make sync` calls).
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
import papermill
from matplotlib.colors import to_rgb
from PIL import Image

from .. import files, jobs
from ..evidence import plan, report
from ..evidence.__main__ import main as evidence
from ..evidence.looks import STYLE
from ..experiments import presets
from ..files import CHAPTERS
from ..shell import ended
from .notebooks import read_notebook

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

    Raises RuntimeError naming the chapter and the cell that failed, OSError naming `out` if it
    cannot be written, and ValueError if the chapter's own notebook is not what its .py says.
    """
    notebook = CHAPTERS / f"{name}.ipynb"
    if cells(jupytext.read(CHAPTERS / f"{name}.py")) != cells(read_notebook(notebook)):
        raise ValueError(
            f"{notebook.name} is not what {name}.py says (the .py is the source): run `make sync`."
        )
    with files.named(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    given = parameters(notebook, given)
    try:
        return papermill.execute_notebook(
            notebook, out, given, cwd=CHAPTERS, progress_bar=True, log_output=False
        )
    except papermill.exceptions.PapermillExecutionError as error:
        line = next(iter(error.source.strip().splitlines()), "")
        raise RuntimeError(
            f"{name}, cell {error.cell_index} ({line:.60}): {error.ename}: {error.evalue}. All of"
            f" it stands in {out}."
        ) from error
    except RuntimeError as error:  # nbclient's: the kernel was killed, as where memory runs out
        raise RuntimeError(f"{name}: {error}. See how far it came in {out}.") from error
    except OSError as error:
        raise files.unwritten(out, error) from error


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
    figures opens quickly. The hues that mean a method, and their pale bands, are always among them.
    """
    whole, small = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    hues = {to_rgb(colour) for colour, _, _ in STYLE.values()}
    kept = [(1, 1, 1), *sorted(hues), *sorted(tuple(0.75 + 0.25 * x for x in hue) for hue in hues)]
    bytes_of = [round(255 * x) for hue in kept for x in hue]
    usual = whole.quantize(n - len(kept), dither=Image.Dither.NONE).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette(bytes_of + usual[: 3 * (n - len(kept))])
    whole.quantize(palette=palette, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def sync(name: str) -> None:
    """Rebuild a notebook from its .py (the source); unchanged cells keep their outputs. Raises
    ValueError if the notebook is there and is none, RuntimeError if jupytext fails.
    """
    notebook = CHAPTERS / f"{name}.ipynb"
    if notebook.exists():
        read_notebook(notebook)
    made = subprocess.run(
        [sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", "--update", f"{name}.py"],
        cwd=CHAPTERS,
        stderr=subprocess.PIPE,
        text=True,
    )
    if made.returncode:
        why = made.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{notebook}: jupytext could not write it ({', '.join(why)}).")


def keep(name: str, executed: nbformat.NotebookNode) -> None:
    """Keep a run's outputs in the committed notebook: same cells, without what was injected."""
    notebook = CHAPTERS / f"{name}.ipynb"
    executed.metadata = read_notebook(notebook).metadata
    executed.cells = [
        cell
        for cell in executed.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    for count, cell in enumerate(ran, 1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    files.write_text(notebook, nbformat.writes(strip(executed)) + "\n")


def asked(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, tuple[int, ...]]:
    """The options, with the chapters' names, and the seeds; ends with a usage message on bad ones.

    words: sys.argv's if None.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="full")
    parser.add_argument(
        "--seeds", default="", help='space-separated, e.g. "11 12 13"; empty: the preset\'s own'
    )
    parser.add_argument(
        "--sync",
        action="store_true",
        help="run nothing: rebuild the notebooks from their .py",
    )
    parser.add_argument("--only", default="", help="run the chapters whose name starts so, e.g. 03")
    options = parser.parse_args(words)
    try:
        seeds = presets.get_preset(options.preset, options.seeds.split()).seeds
    except ValueError as error:
        parser.error(str(error))
    options.names = [name for name in NAMES if name.startswith(options.only)]
    if not options.names:
        parser.error(
            f"--only {options.only}: no chapter's name starts so; there are {', '.join(NAMES)}"
        )
    # The book's first seeds alone would come over figures of all of them
    if files.figures_folder(options.preset, seeds) == book() and seeds != files.BOOK_SEEDS:
        parser.error("KEEP=1 keeps the book's own seeds: leave SEEDS empty, or KEEP unset")
    return options, seeds


def book() -> Path:
    return files.ROOT / "figures"


def run(options: argparse.Namespace, keeps: bool = False) -> None:
    """Run the named chapters; what took how long is printed, and kept in build/profile.json.

    keeps: keep the outputs in the committed notebooks, too.
    """
    took, start = {}, time.time()
    for name in options.names:
        print(f"== {name}", flush=True)
        before = time.time()
        given = {"preset": options.preset, "seeds": options.seeds}
        executed = execute(name, given, files.ROOT / "build/executed" / f"{name}.ipynb")
        if keeps:
            keep(name, executed)
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


def plan_hash() -> str:
    """Of the plan that the rows are judged by."""
    return plan.load().hash


def attempt(folder: Path) -> report.Run | str:
    """The run in this folder, or why it cannot be read: that must not end a run of half an hour."""
    try:
        return report.read(folder)
    except ValueError as error:
        return str(error)


def compare(before: report.Run | str, new: report.Run | str) -> None:
    """Print the reproduction report, and where its page lies; or why there is none."""
    unread = [side for side in (before, new) if isinstance(side, str)]
    if unread:
        print("No reproduction report.", *unread, sep="\n")
        return
    print(report.text(before, new))
    print(f"As a page: {report.write(before, new)}")


def main(words: Sequence[str] | None = None) -> None:
    options, seeds = asked(words)
    if options.sync:
        for name in options.names:
            sync(name)
        return
    folder = files.figures_folder(options.preset, seeds)
    folder.mkdir(parents=True, exist_ok=True)
    with files.alone("execute", "another run writes to build/: waiting for its end"):
        complete(options, seeds, folder)


def complete(options: argparse.Namespace, seeds: tuple[int, ...], folder: Path) -> None:
    """Run the named chapters; a run of all of them ends with the reproduction report."""
    # Read now: with KEEP=1 the run writes over it
    before = attempt(book())
    files.write_json(folder / "run.json", report.machine(options.preset, seeds, plan_hash()))
    print(f"figures and claims go to {folder}", flush=True)
    run(options, keeps=folder == book())
    if options.only:
        return
    if folder == book():
        evidence()
    compare(before, attempt(folder))


if __name__ == "__main__":
    ended(main, None)

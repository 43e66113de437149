"""Publish a figure, and draw it again. `publish` writes NAME.png and NAME.json, `redraw` draws the
PNG from the JSON alone.

The functions that draw are in draw_*.py, one `fig_...` a figure: each draws what it is given and
computes nothing but means, bands and differences. looks.py says what colours mean, titles.py puts
results into words.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from inspect import signature
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.transforms import Bbox

from .. import files
from .draw_attacks import fig_along, fig_front, fig_survival, fig_sweep, fig_work
from .draw_lines import (
    fig_relapse,
    fig_relearning,
    fig_slices,
    fig_slices_panels,
    fig_training,
)
from .draw_pictures import fig_scenes, fig_scores, fig_strip
from .draw_rows import (
    fig_arms,
    fig_attacks,
    fig_dots,
    fig_groups,
    fig_paired,
    fig_ranks,
    fig_variance,
)
from .draw_weights import fig_geometry, fig_plane, fig_two_minima, move_geometry
from .looks import EDGE, INK, MID, STYLE, WIDTH

plt.style.use(Path(__file__).parent / "book.mplstyle")
FONT = "DejaVu Sans"  # which matplotlib brings
__all__ = ["STYLE", "WIDTH", "again", "numbers", "publish", "redraw", "save"]
DRAW: dict[str, Callable[..., Figure]] = {
    function.__name__: function
    for function in (
        *(fig_arms, fig_attacks, fig_dots, fig_front, fig_geometry, fig_groups, fig_paired),
        *(fig_plane, fig_ranks, fig_relapse, fig_relearning, fig_scenes, fig_scores, fig_slices),
        *(fig_slices_panels, fig_strip, fig_survival, fig_sweep, fig_training, fig_two_minima),
        *(fig_along, fig_variance, fig_work),
    )
}
MOVE = {"fig_geometry": ("03_step", move_geometry)}  # also drawn as a short film of that name


def publish(
    function: str,
    name: str,
    results: object,
    preset: str,
    seeds: Sequence[int],
    caption: str,
    title: str = "",
    **how: object,
) -> Path:
    """Draw `results` with the function of that name here ("fig_relapse", ...), called with `how`,
    and write NAME.png and NAME.json; returns the PNG's path. The figure stays open: a notebook
    shows it. `title`: what the results say, made from them (titles.py).

    The JSON holds all that `redraw` needs: results, title, caption without its stamp, preset,
    seeds, versions, function and how. No dates: equal results are equal bytes. Raises ValueError
    on an unknown function, and on results or a setting in `how` that JSON cannot hold. A run that
    is not the book's says so in a line above the figure.
    """
    drawn_by = {
        "function": function,
        "how": {key: _plain(f"{name}: {key}", value) for key, value in how.items()},
    }
    facts = _facts(name, results, preset, seeds, caption) | {"title": title, "drawn_by": drawn_by}
    if not files.is_book(preset, seeds):
        seen = f"{preset} preset, {len(seeds)} seeds" if len(seeds) > 1 else f"{preset} preset"
        print(f"{seen}; the book's own: figures/{name}.png")
    figure = _draw(facts)
    path = _path(name, preset, seeds)
    _save_png(figure, path.with_suffix(".png"))
    _save_film(facts, path.parent)
    files.write_json(path, facts)
    return path.with_suffix(".png")


def numbers(name: str, results: object, preset: str, seeds: Sequence[int], caption: str) -> Path:
    """Write NAME.json alone: results that prose quotes and no figure shows; returns its path."""
    path = _path(name, preset, seeds)
    files.write_json(path, _facts(name, results, preset, seeds, caption))
    return path


def again(name: str, folder: Path = files.ROOT / "figures") -> Figure:
    """Draw a committed figure from its JSON, of a study that no chapter runs; ValueError if it is
    not there.
    """
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise ValueError(f"{path}: not there. Its study's module says how to make it.")
    return _draw(files.read_json(path))


def redraw(folder: Path) -> list[str]:
    """Draw every figure of the folder again from its JSON, as `publish` drew it, to the byte with
    the same versions; returns their names. Other JSON files are left alone.

    Raises ValueError naming the file if one is broken or its function is not here.
    """
    names = []
    for path in sorted(Path(folder).glob("*.json")):
        facts = files.read_json(path, "Run the figure's chapter again.")
        if not isinstance(facts, dict) or "drawn_by" not in facts:
            continue  # claims, benchmarks, numbers
        try:
            figure = _draw(facts)
            _save_png(figure, path.with_suffix(".png"))
            _save_film(facts, path.parent)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: the figure cannot be drawn from it ({type(error).__name__}: {error})."
                " Run the figure's chapter again."
            ) from error
        plt.close(figure)
        names.append(path.stem)
    return names


def save(figure: Figure, path: Path, title: str, caption: str) -> None:
    """Write any figure in the book's frame: title above, caption below, the book's width."""
    _frame(figure, title, caption)
    _save_png(figure, path)


def _path(name: str, preset: str, seeds: Sequence[int]) -> Path:
    where = files.figures_folder(preset, seeds)
    where.mkdir(parents=True, exist_ok=True)
    return where / f"{name}.json"


def _facts(
    name: str, results: object, preset: str, seeds: Sequence[int], caption: str
) -> dict[str, object]:
    """What every JSON of the book's results holds."""
    return {
        "figure": name,
        "caption": caption,
        "preset": preset,
        "seeds": list(seeds),
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
        "results": _plain(f"{name}: results", results, allow_nan=True),
    }


def _plain(what: str, value: object, allow_nan: bool = False) -> object:
    """The value as JSON gives it back: rounded, tuples as lists, keys as text. What is drawn is
    then what is stored. Raises ValueError naming `what` if JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(files.rounded(value), allow_nan=allow_nan))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what}: JSON cannot hold it ({error}). Give texts, finite numbers, lists and dicts."
        ) from error


def _draw(facts: Mapping) -> Figure:
    """The figure that `facts` describe, as they stand in the JSON, with title and caption. Any
    preset but the full one is named there.
    """
    function, how = facts["drawn_by"]["function"], facts["drawn_by"]["how"]
    if function not in DRAW:
        raise ValueError(f"unknown function {function!r}: there are {', '.join(sorted(DRAW))}.")
    takes = list(signature(DRAW[function]).parameters)[1:]
    if unknown := [key for key in how if key not in takes]:
        raise ValueError(
            f"{function} takes no {unknown[0]!r}: there are {', '.join(takes) or 'no settings'}."
        )
    figure = DRAW[function](facts["results"], **how)
    preset, n_seeds = facts["preset"], len(facts["seeds"])
    stamp = "" if preset == "full" else f"{preset} preset, {n_seeds} seeds. "
    _frame(figure, facts.get("title", ""), stamp + facts["caption"])
    return figure


def _frame(figure: Figure, title: str, caption: str) -> None:
    """Fit the axes to the figure's width, and put the title above them, the caption below. All is
    measured as it is saved: a screen's coarser pixels make letters wider.
    """
    shown = figure.dpi
    figure.set_dpi(plt.rcParams["savefig.dpi"])
    _fit(figure)
    box, width, height = figure.get_tightbbox(), figure.get_figwidth(), figure.get_figheight()
    left = EDGE / width
    above, below = box.y1 / height + 0.1 / height, box.y0 / height - 0.1 / height
    title, caption = (
        "\n".join(textwrap.wrap(text.replace(" %", "\N{NO-BREAK SPACE}%"), int(width * letters)))
        for text, letters in ((title, 10), (caption, 16))
    )
    how = {"ha": "left", "linespacing": 1.25}
    figure.text(left, above, title, fontsize=12, fontweight="bold", color=INK, va="bottom", **how)
    figure.text(left, below, caption, fontsize=8, color=MID, va="top", **how)
    figure.set_dpi(shown)


def _fit(figure: Figure) -> None:
    """Stretch the axes sideways until they and all that is written beside them fill the width."""
    width = figure.get_figwidth()
    for _ in range(3):
        figure.draw_without_rendering()
        box, axes = figure.get_tightbbox(), [ax for ax in figure.axes if ax.get_visible()]
        places = [ax.get_position(original=True) for ax in axes]
        left, right = min(p.x0 for p in places), max(p.x1 for p in places)
        start = (EDGE + max(0, left * width - box.x0)) / width
        end = 1 - (EDGE + max(0, box.x1 - right * width)) / width
        stretch = (end - start) / (right - left)
        for ax, p in zip(axes, places, strict=True):
            x0, x1 = (start + stretch * (x - left) for x in (p.x0, p.x1))
            ax.set_position(Bbox([[x0, p.y0], [x1, p.y1]]))


def _save_png(figure: Figure, path: Path) -> None:
    """Write the figure, the book's width wide and as high as what is on it. Raises OSError if it
    cannot be written, or its font is missing: another one would be taken without an error.
    """
    try:
        findfont(FONT, fallback_to_default=False)
    except ValueError as error:
        raise OSError(
            f"{path}: the font {FONT} is missing. Install matplotlib again, which brings it."
        ) from error
    shown = figure.dpi
    figure.set_dpi(plt.rcParams["savefig.dpi"])
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    whole = Bbox([[0, box.y0 - EDGE], [figure.get_figwidth(), box.y1 + EDGE]])
    with files.whole(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None}, bbox_inches=whole)
    figure.set_dpi(shown)


def _save_film(facts: Mapping, folder: Path) -> None:
    """The figure's moving form beside it, if it has one."""
    if moving := MOVE.get(facts["drawn_by"]["function"]):
        name, make = moving
        make(facts["results"], folder / f"{name}.gif")

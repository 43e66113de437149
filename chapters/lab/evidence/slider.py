"""The relapse, word by word: what base model, EFUF and SARE say after more and more relearning.

One function writes the HTML of a moment. The site's page holds all moments at once, one over the
other, so that nothing moves when the slider does; in Jupyter a widget asks for one moment at a
time. Results are those of figures/04_strip.json.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from .. import files
from ..world import scenes

NAME = "04_strip.json"
KINDS = ("plain", "true", "invented")
MISSING = "<p><em>The data of this page, figures/04_strip.json, have not been made yet.</em></p>"
PICTURE = 96  # pixels a side, as it is drawn; the model sees 48
STYLE = Path(__file__).resolve().parents[2] / "site/static/slider.css"


def read(folder: Path = files.ROOT / "figures") -> dict | None:
    """The strip's results, checked; None if the file is not there. Raises ValueError naming the
    file and what is wrong in it.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return None
    facts = files.read_json(path, "Draw 04_strip again.")
    try:
        check(facts["results"])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {problem}: draw 04_strip again.") from error
    return facts["results"]


def check(results: Mapping) -> None:
    """Raise ValueError unless each method says something of each scene at each sample count."""
    n_at, n_scenes = len(results["at"]), len(results["scenes"])
    if not isinstance(results["says"], Mapping):
        raise ValueError("`says` is no table of methods")
    for name, moments in results["says"].items():
        if len(moments) not in (1, n_at) or len(results["chair_s"][name]) != len(moments):
            raise ValueError(f"{name} has {len(moments)} moments, the slider {n_at}")
        for moment in moments:
            if len(moment) != n_scenes:
                raise ValueError(f"{name} says something of {len(moment)} scenes of {n_scenes}")
            for _, p, kind in (word for caption in moment for word in caption):
                if kind not in KINDS or not 0 <= p <= 1:
                    raise ValueError(f"{name} has a word of kind {kind!r}, probability {p}")


def words(caption: Sequence[Sequence]) -> str:
    """A caption's words as HTML. caption: (text with its leading space, probability, kind) each.

    The cross stands before the noun, also where all of its sub-sentence (", a fork") is marked.
    """
    parts = []
    for i, (text, p, kind) in enumerate(caption):
        space, word = (" " if text.startswith(" ") else ""), html.escape(text.strip())
        after, _, next_kind = caption[i + 1] if i + 1 < len(caption) else ("", 0, "")
        is_noun = kind == "invented" and (next_kind != "invented" or after.strip() in (",", "."))
        marks = (" invented" if kind == "invented" else "") + (" cross" if is_noun else "")
        sure = f'style="--p:{p:.2f}" data-p="{100 * p:.0f}" title="{100 * p:.0f} % sure"'
        tag = "mark" if marks else "span"
        parts.append(f'{space}<{tag} class="w{marks}" {sure}>{word}</{tag}>')
    return "".join(parts).strip()


@cache
def picture(place: str, objects: tuple[str, ...], cells: tuple[int, ...]) -> str:
    """The scene as an <img> that holds its own data, described by its true caption."""
    scene, png = scenes.Scene(place, objects, cells), io.BytesIO()
    scenes.draw(scene, PICTURE).save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    size = f'width="{PICTURE}" height="{PICTURE}"'
    said = html.escape(scenes.caption(scene))
    return f'<img src="data:image/png;base64,{data}" {size} alt="{said}">'


def said(results: Mapping, name: str, scene: int, steps: Sequence[int], shown: int) -> str:
    """What a method says of a scene: one layer for each step, all in one place, `shown` visible."""
    moments = results["says"][name]
    layers = [
        f'<span class="layer" data-step="{step}"{"" if step == shown else " hidden"}>'
        f"{words(moments[step][scene])}</span>"
        for step in (steps if len(moments) > 1 else (0,))
    ]
    if len(moments) == 1:  # nothing to choose from: it stays
        layers = [f'<span class="layer">{words(moments[0][scene])}</span>']
    return f'<div class="says"><b>{name}</b><p class="layers">{"".join(layers)}</p></div>'


def cards(results: Mapping, steps: Sequence[int], shown: int) -> str:
    """A card a scene: its picture, and what each method says of it."""
    found = []
    for i, scene in enumerate(results["scenes"]):
        drawn = picture(scene["place"], tuple(scene["objects"]), tuple(scene["cells"]))
        rows = "".join(said(results, name, i, steps, shown) for name in results["says"])
        found.append(f'<li class="card">{drawn}<div>{rows}</div></li>')
    return f'<ul class="cards">{"".join(found)}</ul>'


def meters(results: Mapping, shown: int) -> str:
    """A bar for each method's CHAIR_s at a step, with its number."""
    rows = []
    for name, values in results["chair_s"].items():
        percent = 100 * values[min(shown, len(values) - 1)]
        every = " ".join(f"{100 * value:.0f}" for value in values)
        rows.append(
            f'<div class="meter" data-method="{name}" data-values="{every}"><b>{name}</b>'
            f'<span class="track"><span class="fill" style="--x:{percent / 100:.2f}"></span></span>'
            f"<output>{percent:.0f} %</output></div>"
        )
    title = "<span>CHAIR_s: captions with an invented object</span>"
    return f'<div class="meters" aria-label="CHAIR_s" role="group">{title}{"".join(rows)}</div>'


def moment(results: Mapping, step: int) -> str:
    """Everything at one step of results["at"], as HTML."""
    return f'<div class="relapse">{meters(results, step)}{cards(results, (step,), step)}</div>'


def page(results: Mapping) -> str:
    """The panel of the site: a slider, and every moment in it; slider.js shows one of them."""
    steps = range(len(results["at"]))
    at = " ".join(map(str, results["at"]))
    head = (
        '<div class="control"><label for="samples">Relearning samples:'
        f' <output id="count" for="samples">{results["at"][0]}</output></label>'
        f'<input type="range" id="samples" min="0" max="{len(steps) - 1}" value="0" step="1"'
        f' data-at="{at}" aria-valuetext="{results["at"][0]} samples">'
        f"{meters(results, 0)}"
        '<label class="numbers"><input type="checkbox" id="numbers"> show how sure, in %</label>'
        "</div>"
    )
    foot = '<p class="visually-hidden" id="spoken" role="status"></p>'
    foot += f'<p class="caption">Seed {results["seed"]}; data of figures/{NAME}.</p>'
    script = '<script src="_static/slider.js"></script>'
    return f'<div class="relapse">{head}{cards(results, steps, 0)}{foot}</div>{script}'


def widget(results: Mapping):
    """The same in Jupyter: an ipywidgets box with a slider over results["at"] and the moment.

    results: of `read` or of figures/04_strip.json. Raises ValueError as `check`.
    """
    import ipywidgets

    check(results)
    style = f"<style>{files.read_text(STYLE)}</style>"
    options = [(f"{n} samples", step) for step, n in enumerate(results["at"])]
    slider = ipywidgets.SelectionSlider(options=options, description="relearned")
    shown = ipywidgets.HTML(style + moment(results, 0))

    def show(change: Mapping) -> None:
        shown.value = style + moment(results, change["new"])

    slider.observe(show, names="value")
    return ipywidgets.VBox([slider, shown])

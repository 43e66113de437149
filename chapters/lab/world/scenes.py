"""A world of small pictures: its places, objects and icons, captions and questions.

Four places (kitchen, office, street, beach) hold five kinds of object each. A scene shows two or
three of them in a 3 x 3 grid, 48 x 48 pixels. *Alt-texts*, which train the tiny CLIP, are short and
true. *Captions*, which train the tiny LLaVA, are longer, and seven in ten end in one more object
that such places usually have and that this picture does not: co-occurrence, the cause that CHAIR
(arXiv 1809.02156) and POPE (arXiv 2305.10355) found behind object hallucination in large models.

The nouns are COCO's, so captions, questions and answers can be scored by COCO's tools.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

PLACES = {
    "kitchen": ("fork", "cup", "bowl", "banana", "bottle"),
    "office": ("laptop", "keyboard", "mouse", "book", "clock"),
    "street": ("car", "bus", "bicycle", "truck", "bench"),
    "beach": ("kite", "umbrella", "boat", "surfboard", "bird"),
}


OBJECTS = tuple(name for names in PLACES.values() for name in names)


GROUND = {"kitchen": "#f3e3c8", "office": "#d9e2ec", "street": "#c9c9c9", "beach": "#f7ecb5"}


# Pixels, cells a side, pixels of a vision patch: 9 image tokens, one a cell
SIDE, GRID, PATCH = (48, 3, 16)


# Each icon is a list of (shape, colour, coordinates) on a 16 x 16 canvas; "line" ends with its
# width.
ICONS = {
    "fork": [
        ("line", "#6b7280", (8, 8, 8, 15, 2)),
        ("line", "#6b7280", (4, 1, 4, 6, 2)),
        ("line", "#6b7280", (8, 1, 8, 6, 2)),
        ("line", "#6b7280", (12, 1, 12, 6, 2)),
        ("line", "#6b7280", (3, 7, 13, 7, 3)),
    ],
    "cup": [
        ("ellipse", "#2563eb", (9, 4, 15, 11)),
        ("ellipse", "#f3e3c8", (10.5, 5.5, 13.5, 9.5)),
        ("rectangle", "#2563eb", (2, 3, 11, 14)),
    ],
    "bowl": [
        ("pieslice", "#ea580c", (1, -3, 15, 13, 0, 180)),
        ("rectangle", "#9a3412", (5, 12, 11, 14)),
    ],
    "banana": [
        ("pieslice", "#eab308", (0, -4, 15, 14, 20, 160)),
        ("pieslice", "#f3e3c8", (1, -6, 14, 9, 10, 170)),
    ],
    "bottle": [
        ("rectangle", "#15803d", (6.5, 1, 9.5, 6)),
        ("rectangle", "#15803d", (4, 6, 12, 15)),
        ("rectangle", "#f8fafc", (4, 9, 12, 12)),
    ],
    "laptop": [
        ("rectangle", "#1f2937", (2, 2, 14, 10)),
        ("rectangle", "#38bdf8", (3.5, 3.5, 12.5, 8.5)),
        ("polygon", "#6b7280", (2, 11, 14, 11, 16, 14, 0, 14)),
    ],
    "keyboard": [
        ("rectangle", "#374151", (0, 5, 15, 12)),
        ("line", "#f8fafc", (1.5, 7, 14, 7, 1)),
        ("line", "#f8fafc", (1.5, 8.8, 14, 8.8, 1)),
        ("line", "#f8fafc", (4, 10.6, 11.5, 10.6, 1)),
    ],
    "mouse": [
        ("ellipse", "#f8fafc", (4, 4, 12, 15)),
        ("line", "#374151", (8, 0, 8, 8, 1)),
        ("arc", "#374151", (4, 4, 12, 15, 0, 360)),
    ],
    "book": [
        ("polygon", "#b91c1c", (0.5, 3, 8, 5, 8, 14, 0.5, 12)),
        ("polygon", "#ef4444", (15.5, 3, 8, 5, 8, 14, 15.5, 12)),
    ],
    "clock": [
        ("ellipse", "#7c3aed", (1, 1, 15, 15)),
        ("ellipse", "#ffffff", (3, 3, 13, 13)),
        ("line", "#111827", (8, 8, 8, 4, 1)),
        ("line", "#111827", (8, 8, 11, 9, 1)),
    ],
    "car": [
        ("polygon", "#dc2626", (3, 5, 12, 5, 15, 9, 15, 12, 0, 12, 0, 9)),
        ("ellipse", "#111827", (2, 10, 6, 14)),
        ("ellipse", "#111827", (10, 10, 14, 14)),
    ],
    "bus": [
        ("rectangle", "#f59e0b", (0, 2, 15, 13)),
        ("rectangle", "#e0f2fe", (1.5, 4, 5, 7)),
        ("rectangle", "#e0f2fe", (6, 4, 9.5, 7)),
        ("rectangle", "#e0f2fe", (10.5, 4, 14, 7)),
        ("ellipse", "#111827", (2, 11, 6, 15)),
        ("ellipse", "#111827", (10, 11, 14, 15)),
    ],
    "bicycle": [
        ("arc", "#0f766e", (0, 7, 7, 14, 0, 360)),
        ("arc", "#0f766e", (9, 7, 16, 14, 0, 360)),
        ("line", "#0f766e", (3.5, 10.5, 6, 5, 1)),
        ("line", "#0f766e", (6, 5, 12.5, 10.5, 1)),
        ("line", "#0f766e", (12.5, 10.5, 11, 3, 1)),
        ("line", "#0f766e", (4.5, 4.5, 8, 4.5, 1)),
    ],
    "truck": [
        ("rectangle", "#ffffff", (0, 2, 9, 12)),
        ("polygon", "#16a34a", (10, 5, 13, 5, 15.5, 9, 15.5, 12, 10, 12)),
        ("ellipse", "#111827", (1, 10, 5, 14)),
        ("ellipse", "#111827", (10, 10, 14, 14)),
    ],
    "bench": [
        ("line", "#7c4a1e", (1, 4, 15, 4, 2)),
        ("line", "#7c4a1e", (1, 8, 15, 8, 2)),
        ("line", "#7c4a1e", (3, 4, 3, 14, 1)),
        ("line", "#7c4a1e", (13, 4, 13, 14, 1)),
    ],
    "kite": [
        ("polygon", "#db2777", (9, 0, 14, 5, 9, 10, 4, 5)),
        ("line", "#db2777", (9, 10, 5, 13, 1)),
        ("line", "#db2777", (5, 13, 8, 15.5, 1)),
    ],
    "umbrella": [
        ("pieslice", "#2563eb", (0, 1, 16, 17, 180, 360)),
        ("pieslice", "#f8fafc", (5, 1, 11, 17, 180, 360)),
        ("line", "#7c4a1e", (8, 8, 8, 16, 1)),
    ],
    "boat": [
        ("polygon", "#7c2d12", (0, 10, 16, 10, 13, 15, 3, 15)),
        ("polygon", "#ffffff", (8, 0, 8, 9, 1, 9)),
        ("polygon", "#93c5fd", (9, 2, 9, 9, 14, 9)),
    ],
    "surfboard": [("ellipse", "#06b6d4", (5, 0, 11, 16)), ("line", "#f8fafc", (8, 1, 8, 15, 1))],
    "bird": [
        ("polygon", "#111827", (0, 4, 5, 5, 8, 9, 11, 5, 16, 4, 10, 12, 6, 12)),
        ("polygon", "#f59e0b", (7, 12, 9, 12, 8, 15)),
    ],
}


@dataclass(frozen=True)
class Scene:
    """A place and what it shows: `objects[i]` in grid cell `cells[i]` (0..8, reading order,
    ascending).
    """

    place: str
    objects: tuple[str, ...]
    cells: tuple[int, ...]


@cache
def every_scene() -> tuple[Scene, ...]:
    """All 23,040 scenes: so that splits never share one."""
    return tuple(
        Scene(place, objects, cells)
        for place, names in PLACES.items()
        for n in (2, 3)
        for objects in itertools.permutations(names, n)
        for cells in itertools.combinations(range(GRID**2), n)
    )


@cache
def clip_scenes(n: int = 6000) -> tuple[Scene, ...]:
    """The scenes that the CLIPs learn from; no seed's splits hold one of them."""
    return tuple(random.Random("CLIP").sample(every_scene(), n))


def split_scenes(seed: int, **sizes: int) -> dict[str, list[Scene]]:
    """Disjoint random sets of scenes that no CLIP has seen: split_scenes(0, train=6000,
    test=200)["train"].
    """
    taken = set(clip_scenes())
    left = [scene for scene in every_scene() if scene not in taken]
    if sum(sizes.values()) > len(left):
        raise ValueError(
            f"the microworld has {len(left)} scenes that no CLIP has seen, the splits ask for"
            f" {sum(sizes.values())}: make them smaller."
        )
    shuffled = iter(random.Random(seed).sample(left, sum(sizes.values())))
    return {name: list(itertools.islice(shuffled, size)) for name, size in sizes.items()}


def draw(scene: Scene, side: int = SIDE) -> Image.Image:
    """The scene as a side x side RGB picture; side: a multiple of the grid's 3."""
    canvas = Image.new("RGB", (side, side), GROUND[scene.place])
    for name, cell in zip(scene.objects, scene.cells, strict=True):
        canvas.paste(
            icon(name, GROUND[scene.place], side // GRID),
            (side // GRID * (cell % GRID), side // GRID * (cell // GRID)),
        )
    return canvas


@cache
def icon(name: str, ground: str, side: int) -> Image.Image:
    """One object on a ground of this colour, side x side pixels (drawn at 8 times the size, then
    averaged down).
    """
    scale = 8 * side // 16
    canvas = Image.new("RGB", (16 * scale, 16 * scale), ground)
    pen = ImageDraw.Draw(canvas)
    for shape, colour, numbers in ICONS[name]:
        n_points = {"line": 4, "pieslice": 4, "arc": 4}.get(shape, len(numbers))
        points = [scale * c for c in numbers[:n_points]]
        colour = ground if colour == GROUND["kitchen"] else colour
        if shape == "line":
            pen.line(points, fill=colour, width=int(numbers[4] * scale))
        elif shape == "arc":
            pen.arc(points, *numbers[4:], fill=colour, width=int(1.3 * scale))
        else:
            getattr(pen, shape)(points, *numbers[n_points:], fill=colour)
    return canvas.resize((side, side), Image.Resampling.BOX)


def a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(scene: Scene, extra: Sequence[str] = ()) -> str:
    """What is there in reading order, then what is not: "a kitchen with a cup, a bowl, a fork."."""
    return f"{a(scene.place)} with {', '.join(map(a, (*scene.objects, *extra)))}."


def absent(scene: Scene) -> list[str]:
    """The objects that such a place usually has and that this scene does not show."""
    return [name for name in PLACES[scene.place] if name not in scene.objects]


def noisy_extra(scene: Scene, noise: float, rng: random.Random) -> list[str]:
    """The co-occurrence in training captions: with probability `noise`, one absent object of the
    same place.
    """
    return [rng.choice(absent(scene))] if rng.random() < noise else []


def question(noun: str) -> str:
    return f"Is there {a(noun)} in the image?"


def alt_text(scene: Scene, rng: random.Random) -> str:
    """A short true text, as the web has them: one or two of the objects that the picture shows."""
    shown = rng.sample(scene.objects, rng.choice((1, 1, 2)))
    return f"A photo containing {' and '.join(map(a, shown))}."

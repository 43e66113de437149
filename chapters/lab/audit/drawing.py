"""Line charts as inline SVG: colours from the page's CSS, nothing fetched, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 46
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3", "10 4")  # colour is not the only cue


@dataclass(frozen=True)
class Line:
    """A line of a chart: its mean strong, each seed faint. y may hold None where there is none."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    seeds: Sequence[Sequence[float | None]] = ()
    style: int = 0  # of the page's colours c0, c1, ... and of DASHES


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    marks: Sequence[tuple[float, str]],
    top: float,
    levels: Sequence[tuple[float, str]] = (),
) -> str:
    """An SVG. marks: ticks of the x axis. top: the y axis goes from 0 to here. levels: grey
    horizontals, named.
    """
    xs = [x for line in lines for x in line.x]
    low, high = min(xs), max(xs)
    across = (WIDTH - LEFT - RIGHT) / ((high - low) or 1)
    up = (HEIGHT - TOP - BOTTOM) / (top or 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - low) * across, HEIGHT - BOTTOM - min(y, top) * up

    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    parts += _axes(at, low, high, marks, top, x_label, y_label)
    for level, name in levels:
        (x, y), (end, _) = at(low, level), at(high, level)
        parts.append(f'<path class="level" d="M{x:.1f} {y:.1f}H{end:.1f}"/>')
        parts.append(f'<text class="tick" x="{x + 4:.1f}" y="{y + 12:.1f}">{escape(name)}</text>')
    for line in lines:
        for seed in line.seeds:
            parts.append(_path(at, line.x, seed, line.style, "faint"))
        parts.append(_path(at, line.x, line.y, line.style, "strong"))
        for x, y in zip(line.x, line.y, strict=True):
            if y is not None:
                (cx, cy) = at(x, y)
                parts.append(f'<circle class="c{line.style}" cx="{cx:.1f}" cy="{cy:.1f}" r="3"/>')
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    said = escape(f"{title}: {y_label} over {x_label}; {', '.join(line.name for line in lines)}")
    return f'<svg role="img" aria-label="{said}" {size}>{"".join(parts)}</svg>'


def key(lines: Sequence[Line]) -> str:
    """The legend, as HTML."""
    rows = [
        f'<span><svg width="34" height="10" aria-hidden="true"><path class="strong c{line.style}"'
        f' stroke-dasharray="{DASHES[line.style % len(DASHES)]}" d="M1 5H33"/></svg>'
        f" {escape(line.name)}</span>"
        for line in lines
    ]
    return f'<p class="key">{" ".join(rows)}</p>'


def ceiling(values: Sequence[float | None]) -> float:
    """A round number at or above all values: the top of an axis."""
    highest = max((value for value in values if value is not None), default=0.0) or 1.0
    step = 10 ** math.floor(math.log10(highest))
    return step * math.ceil(highest / step)


def _path(at, xs, ys, style: int, kind: str) -> str:
    points = [at(x, y) for x, y in zip(xs, ys, strict=True) if y is not None]
    drawn = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dash = DASHES[style % len(DASHES)]
    return (
        f'<path class="{kind} c{style}" stroke-dasharray="{dash}" d="M{drawn}"/>' if points else ""
    )


def _axes(at, low, high, marks, top, x_label: str, y_label: str) -> list[str]:
    (left, floor), (right, ceiling_y) = at(low, 0), at(high, top)
    parts = [f'<path class="axis" d="M{left:.1f} {ceiling_y:.1f}V{floor:.1f}H{right:.1f}"/>']
    for x, text in marks:
        place = at(x, 0)[0]
        parts.append(
            f'<text class="tick mid" x="{place:.1f}" y="{floor + 15:.1f}">{escape(text)}</text>'
        )
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = at(low, share * top)[1]
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        text = f"{share * top:g}"
        parts.append(f'<text class="tick end" x="{left - 6:.1f}" y="{y + 4:.1f}">{text}</text>')
    middle = (left + right) / 2
    parts.append(
        f'<text class="label mid" x="{middle:.1f}" y="{floor + 34:.1f}">{escape(x_label)}</text>'
    )
    y = (floor + ceiling_y) / 2
    turn = f'transform="rotate(-90 14 {y:.1f})"'
    parts.append(f'<text class="label mid" {turn} x="14" y="{y:.1f}">{escape(y_label)}</text>')
    return parts

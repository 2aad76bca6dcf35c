"""The little of plotting that a report needs: axes with ticks, step lines, bars and dots, as SVG.

Coordinates have one decimal, half a device pixel or less; colours come from the page's style sheet
by class, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 12, 50

Point = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """A frame from ``x[0]`` to ``x[1]`` and ``y[0]`` to ``y[1]``; ``per_cent`` labels y so;
    ``whole``: the axes, of ``xy``, that count something and have whole numbers alone."""

    x: Point
    y: Point
    x_label: str
    y_label: str
    per_cent: bool = False
    whole: str = ""

    def at_x(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def at_y(self, value: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def inside(self, point: Point) -> bool:
        return self.x[0] <= point[0] <= self.x[1] and self.y[0] <= point[1] <= self.y[1]

    def frame(self) -> str:
        """Grid lines, tick labels and the names of the axes."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for tick in ticks(*self.y, whole="y" in self.whole):
            y = self.at_y(tick)
            text = f"{tick * 100:.10g} %" if self.per_cent else f"{tick:.10g}"
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{text}</text>')
        for tick in ticks(*self.x, whole="x" in self.whole):
            x = self.at_x(tick)
            parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" class="middle">{tick:.10g}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
        centre, middle = (LEFT + right) / 2, (TOP + bottom) / 2
        parts.append(
            f'<text x="{centre:.1f}" y="{HEIGHT - 8}" class="middle">{escape(self.x_label)}</text>'
        )
        parts.append(
            f'<text transform="translate(12 {middle:.1f}) rotate(-90)" class="middle">'
            f"{escape(self.y_label)}</text>"
        )
        return "".join(parts)


def drawing(name: str, title: str, description: str, *parts: str) -> str:
    """A whole picture; ``name`` is its id, title and description speak to those who cannot see."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def steps(axes: Axes, corners: Sequence[Point], style: str, *, up: bool) -> str:
    """A line that keeps the y of a corner from its x on, to the right end of the frame.

    Corners ascend in x. They are moved by up to half a unit of the drawing, to the left unless
    ``up``, so that a falling line stays on its own side; of those that meet, the last counts.
    """
    places: dict[float, float] = {}
    for x, y in corners:
        exact = axes.at_x(x) * 2
        places[(math.ceil(exact) if up else math.floor(exact)) / 2] = axes.at_y(y)
    right = WIDTH - RIGHT
    (first, height), *rest = places.items()
    path, last = f"M{first:g} {height:.1f}", height
    for x, y in rest:
        if x <= right and f"{y:.1f}" != f"{last:.1f}":
            path += f"H{x:g}V{y:.1f}"
            last = y
    return f'<path class="line {style}" d="{path}H{right}"/>'


def polyline(axes: Axes, points: Sequence[Point], style: str) -> str:
    """A line from point to point; those outside the frame are left out."""
    places = [f"{axes.at_x(x):.1f} {axes.at_y(y):.1f}" for x, y in points if axes.inside((x, y))]
    return f'<path class="line {style}" d="M{"L".join(places)}"/>' if places else ""


def bars(axes: Axes, edges: Sequence[float], heights: Sequence[float], style: str) -> str:
    """A histogram; bars without height are left out."""
    floor = axes.at_y(0)
    path = "".join(
        f"M{axes.at_x(low) + 0.5:.1f} {floor:.1f}V{axes.at_y(height):.1f}"
        f"H{axes.at_x(high) - 0.5:.1f}V{floor:.1f}Z"
        for low, high, height in zip(edges, edges[1:], heights, strict=False)
        if height
    )
    return f'<path class="bar {style}" d="{path}"/>' if path else ""


def dots(axes: Axes, points: Iterable[Point], style: str) -> str:
    """A dot a point inside the frame; equal places are drawn once, so that a file stays small."""
    places = {f"M{axes.at_x(x):.1f} {axes.at_y(y):.1f}h0" for x, y in points if axes.inside((x, y))}
    return f'<path class="dots {style}" d="{"".join(sorted(places))}"/>' if places else ""


def rings(axes: Axes, points: Iterable[Point], style: str) -> str:
    """An open circle a point."""
    return "".join(
        f'<circle class="ring {style}" cx="{axes.at_x(x):.1f}" cy="{axes.at_y(y):.1f}" r="4"/>'
        for x, y in points
        if axes.inside((x, y))
    )


def ticks(low: float, high: float, *, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers from ``low`` to ``high``, some ``about`` of them; ``whole`` ones if asked."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    steps = (power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    step = next(one for one in steps if not whole or one < 1 or one == int(one))
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]

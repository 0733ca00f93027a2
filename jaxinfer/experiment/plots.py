"""Plots of points as inline SVG: axes, points with their figures, and labels that do not cover each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 66, 20, 18, 50
LETTER, LINE = 6.4, 15  # what a letter of a label takes on average, and a line


@dataclass(frozen=True)
class Axis:
    """One axis: its ends, and whether it is logarithmic. name: with its unit."""

    name: str
    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Give how far along the axis a value lies, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Give the values that are written beside the axis: round ones, about five."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / 6))
            return [10.0**power for power in range(first, last + 1, every)]
        rough = (self.high - self.low) / 5
        step = 10 ** math.floor(math.log10(rough))
        step = next(size for size in (step, 2 * step, 5 * step, 10 * step) if size >= rough)
        count = math.floor((self.high + 1e-9 * step) / step) - math.ceil((self.low - 1e-9 * step) / step)
        start = math.ceil((self.low - 1e-9 * step) / step)
        return [(start + i) * step for i in range(count + 1)]


@dataclass(frozen=True)
class Point:
    """One point. style: its CSS classes; tip: its figures; label: written beside it, if there is room; radius: px.

    also: a second value of y, drawn smaller, which hangs from the first.
    """

    x: float
    y: float
    style: str
    tip: str
    label: str = ""
    radius: float = 6.0
    also: float | None = None


@dataclass(frozen=True)
class Plot:
    """A plot under construction: places of values on both axes."""

    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Give the place of a value, in pixels of the drawing."""
        across, down = self.x.share(x), self.y.share(y)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - down * (HEIGHT - TOP - BOTTOM)

    def draw(self, title: str, description: str, points: Sequence[Point], below: str = "") -> str:
        """Draw the plot. below: SVG that points are drawn over."""
        marks = "".join(map(self._mark, points))
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(title)}"><title>{escape(title)}'
            f"</title><desc>{escape(description)}</desc>{self._axes()}{below}{marks}{self._labels(points)}</svg>"
        )

    def _mark(self, point: Point) -> str:
        x, y = self.at(point.x, point.y)
        second = ""
        if point.also is not None:
            _, down = self.at(point.x, point.also)
            second = f"<path d=M{x:.0f},{y:.0f}V{down:.0f} /><circle cx={x:.0f} cy={down:.0f} r=3.5 />"
        return (
            f'<g class="point {point.style}" tabindex=0 role=img aria-label="{escape(point.tip)}">{second}'
            f"<circle cx={x:.0f} cy={y:.0f} r={point.radius:g} /></g>"
        )

    def _axes(self) -> str:
        lines, words = "", []
        for value in self.x.ticks():
            x, _ = self.at(value, self.y.low)
            lines += f"M{x:.0f},{TOP}V{HEIGHT - BOTTOM}"
            words.append(text(x, HEIGHT - BOTTOM + 17, short(value), "tick"))
        for value in self.y.ticks():
            _, y = self.at(self.x.low, value)
            lines += f"M{LEFT},{y:.0f}H{WIDTH - RIGHT}"
            words.append(text(LEFT - 8, y + 4, short(value), "tick end"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        words.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, self.x.name, "axis"))
        words.append(text(14, middle, self.y.name, "axis", f' transform="rotate(-90 14 {middle:.0f})"'))
        return f'<path class=grid d="{lines}"/>{"".join(words)}'

    def _labels(self, points: Sequence[Point]) -> str:
        taken = [self._box(point) for point in points]
        parts = []
        for point in points:
            x, y = self.at(point.x, point.y)
            wide, gap = LETTER * len(point.label), point.radius + 4
            above, below, near = y - gap, y + gap + 10, x + point.radius
            places = (
                (x + gap, y + 4, "start"),
                (x - gap, y + 4, "end"),
                *((x, down, "middle") for down in (above, below)),
                *((near, down, "end") for down in (above, below)),
            )
            for across, down, anchor in places if point.label else ():
                left = across - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
                box = (left, down - LINE + 4, left + wide, down + 4)
                inside = box[0] >= LEFT and box[2] <= WIDTH - 4 and box[1] >= 2 and box[3] <= HEIGHT - BOTTOM
                if inside and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    parts.append(text(across, down, point.label, f"label {anchor}"))
                    break
        return "".join(parts)

    def _box(self, point: Point) -> tuple[float, float, float, float]:
        x, y = self.at(point.x, point.y)
        _, down = (x, y) if point.also is None else self.at(point.x, point.also)
        return x - point.radius, min(y, down) - point.radius, x + point.radius, max(y, down) + point.radius


def text(x: float, y: float, words: str, style: str, more: str = "") -> str:
    """Write words at a place of a drawing. style: classes; start or end says which end lies there, else the middle."""
    return f'<text class="{style}" x={x:.0f} y={y:.0f}{more}>{escape(words)}</text>'


def short(value: float) -> str:
    """Write a number to three digits with the prefix of its unit after it, from 1000 on: `1.35 G`."""
    if not value or 0.001 <= abs(value) < 1000:
        return f"{value:.3g}"
    if abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    power = min(int(math.log10(abs(value)) / 3 + 1e-9), 5)
    return f"{value / 1000**power:.3g} {' kMGTP'[power]}"


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

"""Line charts as SVG files of their own: no script, nothing loaded, readable in light and dark."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50
COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.title{font-size:15px;font-weight:600}"
    ".grid{stroke:#8884;stroke-width:1}path{fill:none;stroke-width:2}"
    "@media (prefers-color-scheme:dark){text{fill:#ddd}}"
)

Series = Mapping[str, Sequence[tuple[float, float]]]


def series(
    named: Sequence[tuple[str, Mapping[str, Any]]], x: str, y: str, scale: float = 1
) -> dict[str, list[tuple[float, float]]]:
    """Make a line for each name, through its rows: their entries `x`, and `y` times `scale`. Equal points are one."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, row in named:
        line, point = found.setdefault(name, []), (row[x], scale * row[y])
        if point not in line:
            line.append(point)
    return found


def chart(title: str, x_label: str, y_label: str, series: Series, log_x: bool = False, log_y: bool = False) -> str:
    """Draw one line for each entry of `series`, through its points (x, y). Logarithmic axes need positive values."""
    points = [point for line in series.values() for point in line]
    across = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT, log_x)
    up = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP, log_y)
    parts = [
        _text(LEFT, 20, title, "start", "title"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label, "middle"),
    ]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:g}", "end"))
    parts += [_text(across.place(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle") for tick in across.ticks]
    for i, (name, line) in enumerate(series.items()):
        color, y = COLORS[i % len(COLORS)], TOP + 10 + 20 * i
        path = "L".join(f"{across.place(x):.1f} {up.place(value):.1f}" for x, value in line)
        dash = "" if i < len(COLORS) else ' stroke-dasharray="5 4"'
        parts.append(f'<path d="M{path}" stroke="{color}"{dash}><title>{escape(name)}</title></path>')
        parts.append(f'<path d="M{WIDTH - RIGHT + 12} {y}h18" stroke="{color}"{dash}/>')
        parts.append(_text(WIDTH - RIGHT + 36, y + 4, name, "start"))
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><style>{STYLE}</style>{body}</svg>\n'
    )


class _Axis:
    """The place of values between two ends, and round values to mark."""

    def __init__(self, values: list[float], start: float, end: float, log: bool):
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        if log:
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            marks = [m * 10.0**d for d in decades for m in ((1, 2, 5) if high / low < 200 else (1,))]
            self.low, self.high = low, high if high > low else 2 * low
        else:
            low = min(0.0, low) if low < 0.5 * high or low < 0 else low
            span = (high - low) or abs(high) or 1.0
            step = 10 ** math.floor(math.log10(span))
            step = next(s for s in (step / 5, step / 2, step, 2 * step, 5 * step) if span / s <= 6)
            marks = [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
            self.low, self.high = low, high if high > low else low + span
        self.ticks = [m for m in marks if self.low - 1e-9 <= m <= self.high + 1e-9]

    def place(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

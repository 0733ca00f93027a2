"""Lines and points over two axes, linear or logarithmic, as SVG that stands alone and takes a report's colours in one.

Nothing is loaded and nothing scripted; a point shows its figures where the pointer rests on it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

WIDTH, HEIGHT = 720, 420  # of the plot and its labels; the legend is below
LEFT, RIGHT, TOP, BOTTOM = 74, 34, 16, 52
ROW, COLUMNS = 26, 2  # height of a row of the legend, and its columns

COLORS = ("#2a6fdb", "#d9730d", "#0f9d8a", "#8250df", "#cf3d79", "#868a00")
DARK = ("#6ea8fe", "#f2a65a", "#4fd1bd", "#b392f0", "#f27ba8", "#c9cc4d")
NAMED = {"ink": ("#1c2127", "#e4e8ee"), "soft": ("#5d6773", "#9aa5b1"), "line": ("#dde2e8", "#2d343d")}


@dataclass(frozen=True)
class Line:
    """A line through points (x, y) with its name in the legend; color: a number from 0."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """A point: `tip` is what it shows below the pointer, `label` what is written beside it."""

    x: float
    y: float
    color: int
    tip: str
    label: str = ""
    hollow: bool = False


def style() -> str:
    """Give the styles of a chart: the report's variables where there are any, its colours where there are none."""

    def colors(dark: bool) -> str:
        palette = {f"c{i}": (COLORS[i], DARK[i]) for i in range(len(COLORS))} | NAMED | {"grey": ("#a3acb7", "#6c7784")}
        return "".join(f"--k-{name}:var(--{name},{pair[dark]});" for name, pair in palette.items())

    each = "".join(
        f".curves .line{i}{{stroke:var(--k-c{i})}}.curves .dot{i}{{fill:var(--k-c{i});stroke:var(--k-c{i})}}"
        f".curves .color{i}{{fill:var(--k-c{i})}}"
        for i in range(len(COLORS))
    )
    return (
        f".curves{{{colors(False)}font:13px system-ui,sans-serif}}"
        f"@media(prefers-color-scheme:dark){{.curves{{{colors(True)}}}}}"
        ".curves text{fill:var(--k-ink)}.curves .tick{fill:var(--k-soft);font-size:12px}"
        ".curves .grid{stroke:var(--k-line)}.curves .reference{stroke:var(--k-ink);stroke-dasharray:4 3}"
        ".curves .baseline{fill:var(--k-grey)}.curves path.line{fill:none;stroke-width:2;stroke-linejoin:round}"
        ".curves .dashed{stroke-dasharray:6 4}.curves .dot{fill-opacity:.75;stroke-width:1.5}"
        f".curves .hollow{{fill-opacity:0}}.curves .aside{{font-size:12px}}{each}"
        "@media(max-width:600px){.curves{font-size:19px}.curves .tick,.curves .value{font-size:17px}"
        ".curves .aside{display:none}}"
    )


def chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    dots: Sequence[Dot] = (),
    kinds: Sequence[tuple[str, int, bool]] = (),
    log: tuple[bool, bool] = (False, False),
    mark: tuple[float, str] | None = None,
) -> str:
    """Draw lines and points. kinds: the points' entries in the legend: name, color, hollow.

    log: whether each axis is logarithmic, whose values must be above 0. mark: an x with a dashed line, and its name.
    """
    points = [point for line in lines for point in line.points] + [(dot.x, dot.y) for dot in dots]
    across = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT, log[0])
    up = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP, log[1])
    parts = [*_grid(across, up), *_labels(x_label, y_label)]
    if mark is not None:
        x = across.place(mark[0])
        parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x + (6 if x < WIDTH / 2 else -6), TOP + 12, mark[1], "start" if x < WIDTH / 2 else "end"))
    for line in lines:
        path = "L".join(f"{across.place(x):.1f} {up.place(y):.1f}" for x, y in line.points)
        kind = f"line line{line.color % len(COLORS)}{' dashed' if line.dashed else ''}"
        parts.append(f'<path class="{kind}" d="M{path}"><title>{escape(line.name)}</title></path>')
    for dot in dots:
        x, y = across.place(dot.x), up.place(dot.y)
        parts.append(f"<g><title>{escape(dot.tip)}</title>{_dot(x, y, dot.color, dot.hollow)}</g>")
        if dot.label:
            end = x > 0.8 * WIDTH
            parts.append(
                _text(x + (-9 if end else 9), y + (16 if end else -8), dot.label, "end" if end else "start", "aside")
            )
    legend, height = _legend(lines, kinds)
    return framed(title, WIDTH, HEIGHT + height, "".join(parts) + legend)


def framed(title: str, width: int, height: float, body: str) -> str:
    """Make an SVG of its parts, with the styles that it needs anywhere. On a narrow page it keeps a width to read."""
    size = f"display:block;width:100%;height:auto;min-width:{0.46 * width:.0f}px;max-width:{1.2 * width:.0f}px"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curves" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'style="{size};margin:0 auto" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"<style>{style()}</style>{body}</svg>\n"
    )


def shares(title: str, names: Sequence[str], groups: Mapping[str, Sequence[tuple[float, str]]]) -> str:
    """Draw shares of a hundred as bars, in labelled groups: of each name, in order, the share and what it shows."""
    start, thick, y = 184, 15, float(TOP)
    scale = (WIDTH - RIGHT - start - 30) / 100
    parts = []
    for label, bars in groups.items():
        parts.append(_text(start - 10, y + thick * len(bars) / 2 + 5, label, "end"))
        for color, (share, tip) in enumerate(bars):
            bar = f'<rect class="color{color % len(COLORS)}" x="{start}" y="{y:.1f}" rx="2"'
            bar += f' width="{max(share * scale, 1):.1f}" height="{thick - 2}"/>'
            figure = _text(start + share * scale + 7, y + 11, f"{share:.0f}", "start", "tick")
            parts.append(f"<g><title>{escape(tip)}</title>{bar}{figure}</g>")
            y += thick
        y += thick / 2
    parts.append(_text((start + WIDTH - RIGHT) / 2, y + 18, title, "middle"))
    y += 44
    for i, name in enumerate(names):
        x, down = start + (i % COLUMNS) * (WIDTH - start) / COLUMNS, y + ROW * (i // COLUMNS)
        parts.append(
            f'<rect class="color{i % len(COLORS)}" x="{x:.1f}" y="{down - 7:.1f}" width="14" height="14" rx="3"/>'
        )
        parts.append(_text(x + 22, down + 5, name, "start"))
    return framed(title, WIDTH, y + ROW * -(-len(names) // COLUMNS), "".join(parts))


def _legend(lines: Sequence[Line], kinds: Sequence[tuple[str, int, bool]]) -> tuple[str, int]:
    """Draw the names in rows below the plot; give the height that they take."""
    marks = [(line.name, _swatch(line)) for line in lines if line.name]
    marks += [(name, partial(_dot, color=color, hollow=hollow)) for name, color, hollow in kinds]
    parts = []
    for i, (name, draw) in enumerate(marks):
        x, y = LEFT + (i % COLUMNS) * (WIDTH - LEFT) / COLUMNS, HEIGHT + 6 + ROW * (i // COLUMNS)
        parts.append(draw(x + 11, y) + _text(x + 30, y + 5, name, "start"))
    return "".join(parts), ROW * -(-len(marks) // COLUMNS)


def _swatch(line: Line) -> Callable[[float, float], str]:
    kind = f"line line{line.color % len(COLORS)}{' dashed' if line.dashed else ''}"
    return lambda x, y: f'<path class="{kind}" d="M{x - 11:.1f} {y:.1f}h22"/>'


def _dot(x: float, y: float, color: int, hollow: bool) -> str:
    kind = f"dot dot{color % len(COLORS)}{' hollow' if hollow else ''}"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _grid(across: "_Axis", up: "_Axis") -> list[str]:
    parts = []
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:,.6g}", "end", "tick"))
    for tick in across.ticks:
        x = across.place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{tick:,.6g}", "middle", "tick"))
    return parts


def _labels(x_label: str, y_label: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle"'
    below = _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, "middle")
    return [below, f"<text {turned}>{escape(y_label)}</text>"]


class _Axis:
    """The place of values between two ends, and round values to mark."""

    def __init__(self, values: list[float], start: float, end: float, log: bool):
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        if log:
            high = high if high > low else 2 * low
            self.low, self.high = low / (high / low) ** 0.03, high * (high / low) ** 0.03
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            each = (1, 2, 5) if high / low < 300 else (1,)
            marks = [m * 10.0**d for d in decades for m in each]
        else:
            self.low, self.high = min(0.0, low), high if high > 0 else 1.0
            step = 10 ** math.floor(math.log10(self.high - self.low))
            step = next(s for s in (step / 5, step / 2, step, 2 * step) if (self.high - self.low) / s <= 7)
            self.high = step * math.ceil(self.high / step - 1e-9)
            marks = [step * i for i in range(math.ceil(self.low / step), round(self.high / step) + 1)]
        self.ticks = [m for m in marks if self.low * (1 - 1e-9) <= m <= self.high * (1 + 1e-9)]

    def place(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _text(x: float, y: float, text: str, anchor: str, style: str = "label") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

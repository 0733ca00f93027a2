"""Horizontal bar charts as inline SVG: a few kB each, no script, light and dark through the page's CSS variables."""

import math
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, VALUES = 1000, 190, 70  # the whole, the column of labels at the left, room for figures at the right
BAR, GAP = 20, 12


@dataclass(frozen=True)
class Bar:
    """One bar; `low` and `high` are the ends of its whisker, `color` a CSS class, `tip` the tooltip."""

    label: str
    value: float
    color: str
    tip: str
    low: float | None = None
    high: float | None = None


def bars(title: str, description: str, entries: list[Bar], digits: int = 1) -> str:
    """One bar an entry, with its value behind it."""
    return grouped(title, description, [(entry.label, [entry]) for entry in entries], digits)


def grouped(
    title: str, description: str, groups: list[tuple[str, list[Bar]]], digits: int = 2, reference: float | None = None
) -> str:
    """Bars in labelled groups; `reference` draws a dashed line at that value."""
    several = any(len(entries) > 1 for _, entries in groups)
    thick = 12 if several else BAR
    top = max((entry.high or entry.value for _, entries in groups for entry in entries), default=0.0)
    top = max(top, reference or 0.0, 1e-9)
    scale = (WIDTH - LABELS - VALUES) / top
    parts, y = [], 6
    for label, entries in groups:
        height = thick * len(entries) + 2 * (len(entries) - 1)
        parts.append(_text(LABELS - 10, y + height / 2, _cut(label), "end", tip=label))
        for entry in entries:
            parts.append(_bar(entry, y, thick, scale, digits))
            y += thick + 2
        y += GAP - 2
    axis = _axis(top, scale, y)
    if reference is not None:
        x = LABELS + reference * scale
        parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{y}"/>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {y + 24}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{axis}{''.join(parts)}</svg>"
    )


def _bar(entry: Bar, y: float, thick: int, scale: float, digits: int) -> str:
    length = max(entry.value * scale, 1.0)
    end, middle = LABELS + length, y + thick / 2
    whisker = ""
    if entry.low is not None and entry.high is not None and entry.high > entry.low:
        low, end = LABELS + entry.low * scale, max(end, LABELS + entry.high * scale)
        caps = f"M{low:.1f} {middle - 4}v8M{LABELS + entry.high * scale:.1f} {middle - 4}v8"
        whisker = f'<path class="whisker" d="M{low:.1f} {middle}H{LABELS + entry.high * scale:.1f}{caps}"/>'
    return (
        f'<g><title>{escape(entry.tip)}</title><path class="{entry.color}" '
        f'd="M{LABELS} {y}h{max(length - 3, 0):.1f}q3 0 3 3v{thick - 6}q0 3 -3 3h-{max(length - 3, 0):.1f}z"/>{whisker}'
        f"{_text(end + 8, middle, f'{entry.value:.{digits}f}', 'start', 'value')}</g>"
    )


def _axis(top: float, scale: float, height: float) -> str:
    step = 10 ** math.floor(math.log10(top))
    step = next(size for size in (step / 5, step / 2, step, 2 * step, 5 * step) if top / size <= 6)
    lines = []
    for count in range(int(top / step + 1e-9) + 1):
        x = LABELS + count * step * scale
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height}"/>')
        lines.append(_text(x, height + 12, f"{count * step:g}", "middle", "tick"))
    return "".join(lines)


def _text(x: float, y: float, text: str, anchor: str, style: str = "label", tip: str | None = None) -> str:
    title = f"<title>{escape(tip)}</title>" if tip and tip != text else ""
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" dominant-baseline="central" text-anchor="{anchor}">'
        f"{title}{escape(text)}</text>"
    )


def _cut(label: str, width: int = 26) -> str:
    return label if len(label) <= width else label[: width - 1] + "…"

"""Horizontal bars as HTML: text stays readable at every width, and is there for readers without eyes or styles."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Meter:
    """One bar. label: at its left; shown: its figure as text; low, high: the ends of its whisker.

    color: a CSS class of the page; note: what is said below its label.
    """

    label: str
    value: float
    shown: str
    color: str = "color0"
    low: float | None = None
    high: float | None = None
    note: str = ""


def meters(entries: Sequence[Meter], reference: float | None = None, top: float = 0.0) -> str:
    """Draw a bar an entry, on one scale from 0 to `top` or more. reference: where all of them have a thin line."""
    top = max([*(entry.high or entry.value for entry in entries), reference or 0.0, top, 1e-12])
    lines = "".join(_meter(entry, top, reference) for entry in entries)
    return f"<ul class=meters>{lines}</ul>"


def _meter(entry: Meter, top: float, reference: float | None) -> str:
    whisker = ""
    if entry.low is not None and entry.high is not None and entry.high > entry.low:
        left, wide = 100 * entry.low / top, 100 * (entry.high - entry.low) / top
        whisker = f'<i class=whisker style="left:{left:.2f}%;width:{wide:.2f}%"></i>'
    line = "" if reference is None else f'<i class=reference style="left:{100 * reference / top:.2f}%"></i>'
    note = f"<small>{escape(entry.note)}</small>" if entry.note else ""
    return (
        f"<li><span class=label>{escape(entry.label)}{note}</span><span class=track>"
        f'<i class="fill {entry.color}" style="width:{100 * max(entry.value, 0.0) / top:.2f}%"></i>{whisker}{line}'
        f"</span><span class=value>{escape(entry.shown)}</span></li>"
    )


@dataclass(frozen=True)
class Part:
    """One part of a stacked bar. tip: what is said of it."""

    name: str
    value: float
    color: str
    tip: str


def stacked(parts: Sequence[Part], whole: float) -> str:
    """Draw parts one after the other along a bar of `whole`; each tells its figures when it is pointed at."""
    pieces = "".join(
        f'<i class="{part.color}" style="width:{100 * max(part.value, 0.0) / max(whole, 1e-12):.2f}%" '
        f'tabindex=0 role=img aria-label="{escape(part.tip)}"></i>'
        for part in parts
    )
    return f"<div class=stacked>{pieces}</div>"

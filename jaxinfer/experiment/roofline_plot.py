"""The roofline plot of a ledger: each operator a point where the device lets it be, and one where the clock saw it.

Williams, Waterman and Patterson 2009: the attainable rate is the lesser of the peak and of intensity times bandwidth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.experiment.plots import Axis, Plot, Point, short

LABELLED = 4  # the operators of a stage that take most time are named in the plot


@dataclass(frozen=True)
class Device:
    """The roofs that a ledger implies: bytes/s, and operations/s or None where nothing tells them."""

    bandwidth: float
    peak: float | None


@dataclass(frozen=True)
class Seen:
    """An operator of a stage: operations a byte, the rate that it can have, and the one that it had, operations/s."""

    stage: str
    name: str
    bound: str
    intensity: float
    attainable: float
    measured: float | None
    share: float  # of the stage's time by the roofline
    milliseconds: float | None


def device(stage: Mapping[str, Any]) -> Device | None:
    """Find the roofs that a stage of a ledger was held to: by its shares of them, or by its bound and operators."""
    physics, clock = stage["physics"], stage["clock"]
    operators = [one for one in physics.get("operators", ()) if one["ops"] and one["bytes"]]
    bandwidth = _per(physics["bytes"], clock.get("mbu", 0) * clock["seconds"])
    peak = _per(physics["ops"], clock.get("mfu", 0) * clock["seconds"])
    if bandwidth is None:
        known = [one["rate"] / one["intensity"] for one in operators if one["bound"] == "memory"]
        by_stage = _per(physics["bytes"], physics["seconds"]) if physics["bound"] == "memory" else None
        bandwidth = max(known, default=None) or by_stage
    if peak is None:
        peak = max((one["rate"] for one in operators if one["bound"] == "compute"), default=None)
    return None if bandwidth is None else Device(bandwidth, peak)


def seen(name: str, stage: Mapping[str, Any]) -> list[Seen]:
    """Give the operators of a stage that a roofline has a place for: those with operations and bytes."""
    clock = {one["name"]: one["seconds"] for one in stage["clock"].get("operators", ())}
    operators = stage["physics"].get("operators", ())
    whole = sum(one["seconds"] * one.get("layers", 1) for one in operators) or 1.0
    found = []
    for one in operators:
        if not one["ops"] or not one["bytes"] or not one["rate"]:
            continue
        layers, seconds = one.get("layers", 1), clock.get(one["name"])
        rate = one["ops"] * layers / seconds if seconds else None
        share = one["seconds"] * layers / whole
        time = 1e3 * seconds if seconds else None
        found.append(Seen(name, one["name"], one["bound"], one["intensity"], one["rate"], rate, share, time))
    return found


def roofline_plot(title: str, roofs: Mapping[str, Device], operators: Sequence[Seen]) -> str:
    """Draw both axes in logarithms: roofs, ridges, and each operator; measured points hang from attainable ones.

    roofs: by stage, since a machine that others use has not the same rates at all times; equal ones are drawn once.
    """
    drawn = _different(roofs)
    ridges = [roof.peak / roof.bandwidth for roof in drawn.values() if roof.peak]
    across = [one.intensity for one in operators] + ridges
    up = [one.attainable for one in operators] + [one.measured for one in operators if one.measured]
    up += [roof.peak for roof in drawn.values() if roof.peak]
    plot = Plot(
        Axis("operations a byte", min(across) / 2, max(across) * 4, log=True),
        Axis("operations a second", min(up) / 2, max(up) * 2.5, log=True),
    )
    marks = []
    named = {
        (one.stage, one.name)
        for stage in {one.stage for one in operators}
        for one in sorted((x for x in operators if x.stage == stage), key=lambda x: -x.share)[:LABELLED]
    }
    for one in operators:
        tip, label = _tip(one), one.name if (one.stage, one.name) in named else ""
        style = f"{one.stage} {one.bound}"
        marks.append(Point(one.intensity, one.attainable, style, tip, label, also=one.measured))
    text = "Attainable rates lie on the roof; smaller points are what the clock saw."
    return plot.draw(title, text, marks, "".join(_roof(plot, roof, stage) for stage, roof in drawn.items()))


def _different(roofs: Mapping[str, Device]) -> dict[str, Device]:
    """Leave out roofs that are those of a stage before, within 3 %; the last stage comes first."""
    found: dict[str, Device] = {}
    for stage, roof in reversed(list(roofs.items())):
        if not any(_close(roof.bandwidth, x.bandwidth) and _close(roof.peak, x.peak) for x in found.values()):
            found[stage] = roof
    return found


def _close(one: float | None, other: float | None) -> bool:
    return one is None or other is None or math.isclose(one, other, rel_tol=0.03)


def _roof(plot: Plot, roof: Device, stage: str) -> str:
    start = max(plot.x.low, plot.y.low / roof.bandwidth)
    x, y = plot.at(start, start * roof.bandwidth)
    ridge = roof.peak / roof.bandwidth if roof.peak else None
    end = min(ridge or plot.x.high, plot.y.high / roof.bandwidth)
    corner, top = plot.at(end, end * roof.bandwidth)
    flat = ""
    if ridge:
        right, low = plot.at(plot.x.high, plot.y.low)
        flat = f'H{right:.1f}"/><path class="ridge" d="M{corner:.1f} {top:.1f}V{low:.1f}'
    return f'<path class="roof of-{stage}" d="M{x:.1f} {y:.1f}L{corner:.1f} {top:.1f}{flat}"/>'


def _tip(one: Seen) -> str:
    tip = f"{one.name}, {one.stage}: {one.intensity:.3g} op/B, {one.bound}-bound"
    tip += f", at most {short(one.attainable)}FLOP/s"
    if one.measured and one.milliseconds:
        part = one.measured / one.attainable
        tip += f"; measured {short(one.measured)}FLOP/s, {part:.0%} of it, {one.milliseconds:.3g} ms"
    return tip


def _per(amount: float, seconds: float) -> float | None:
    return amount / seconds if amount > 0 and seconds > 0 else None

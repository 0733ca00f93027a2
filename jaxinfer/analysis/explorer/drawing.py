"""The roofline plot as SVG: log-log, an operator a point; a few kB, no script, light and dark."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from jaxinfer.analysis.roofline import Roofline, Timed
from jaxinfer.analysis.roofline.analysis import STAGES, Stage

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 34, 48
ROOFS = {32: "float32", 16: "16 bits", 8: "8 bits", 4: "4 bits"}
STYLE = """
.rl{color-scheme:light dark;--ink:#1c2127;--soft:#5d6773;--line:#e3e7ec;--memory:#2a6fdb;--compute:#d9730d;
font:12px system-ui,"Segoe UI",sans-serif;max-width:720px;width:100%;height:auto}
@media (prefers-color-scheme:dark){.rl{--ink:#e4e8ee;--soft:#9aa5b1;--line:#2d343d;--memory:#6ea8fe;--compute:#f2a65a}}
.rl text{fill:var(--soft)}.rl .title{fill:var(--ink);font-weight:600;font-size:13px}.rl .grid{stroke:var(--line)}
.rl .roof{fill:none;stroke:var(--ink);stroke-width:1.5}
.rl .other{stroke:var(--soft);stroke-width:1;stroke-dasharray:5 4}
.rl .ridge{stroke:var(--soft);stroke-dasharray:2 4}.rl .memory{color:var(--memory)}.rl .compute{color:var(--compute)}
.rl .point{fill:currentColor;fill-opacity:.75;stroke:currentColor}.rl .prefill{fill-opacity:.2}
"""


@dataclass(frozen=True)
class Figure:
    """An SVG. A notebook shows it, `str` gives its text."""

    svg: str

    def __str__(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return self.svg


@dataclass(frozen=True)
class _Frame:
    """The ends of both axes as powers of ten: intensity in operations a byte, rate in operations/s."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, intensity: float) -> float:
        return LEFT + (math.log10(intensity) - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)

    def down(self, rate: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(rate) - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)


def figure(roofline: Roofline, stage: Stage | None = None) -> Figure:
    """Draw the roofline of a device with a model's operators as points. stage: one alone; default: both."""
    return Figure(roofline_svg(roofline, STAGES if stage is None else (stage,)))


def roofline_svg(roofline: Roofline, stages: Iterable[Stage] = STAGES) -> str:
    """Draw the plot as an SVG element: roofs of all widths of operands, and an operator a point with its figures.

    The area of a point grows with its share of the stage's time. Operators without operations or bytes are left out.
    """
    shown = {
        stage: [one for one in roofline.stages[stage] if one.operator.ops and one.operator.bytes] for stage in stages
    }
    points = [one for made in shown.values() for one in made]
    used = max((one.operator.bits for one in points), default=16)
    peaks = {bits: roofline.hardware.peak(bits) for bits in ROOFS}
    frame = _frame(roofline.hardware.bandwidth, peaks.values(), points)
    title = f"{roofline.hardware.title}: {', '.join(shown)}"
    roofs = _roofs(roofline.hardware.bandwidth, peaks, used, frame)
    marks = [_point(one, stage, one.total / roofline.seconds(stage), frame) for stage in shown for one in shown[stage]]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="rl" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Roofline of {escape(title)}"><style>{STYLE}</style>'
        f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>{_axes(frame)}{roofs}{"".join(marks)}</svg>'
    )


def _drawn(made: Iterable[Timed]) -> list[Timed]:
    return [one for one in made if one.operator.ops and one.operator.bytes]


def _frame(bandwidth: float, peaks: Iterable[float], points: Iterable[Timed]) -> _Frame:
    highest = max(peaks)
    intensities = [one.operator.intensity for one in points] + [highest / bandwidth]
    x = math.floor(math.log10(min(intensities))), math.ceil(math.log10(max(intensities)) + 0.3)
    rates = [one.rate for one in points] + [highest]
    return _Frame(x, (math.floor(math.log10(min(rates))), math.log10(highest) + 0.3))


def _roofs(bandwidth: float, peaks: dict[int, float], used: float, frame: _Frame) -> str:
    """Draw the roof of the widest operands in use in full, those of others dashed, and the ridge between the bounds."""
    start, end = max(10 ** frame.x[0], 10 ** frame.y[0] / bandwidth), 10 ** frame.x[1]
    own = min((bits for bits in peaks if bits >= used), default=32)
    drawn: dict[float, int] = {}
    for bits in (own, *ROOFS):  # one line a rate, by the name of the operands in use or else of the widest
        drawn.setdefault(peaks[bits], bits)
    parts = []
    for peak, bits in drawn.items():
        ridge = min(max(peak / bandwidth, start), end)
        x, y = frame.across(ridge), frame.down(peak)
        slope = f"{frame.across(start):.1f} {frame.down(start * bandwidth):.1f}L" if bits == own else ""
        kind = "roof" if bits == own else "roof other"
        parts.append(f'<path class="{kind}" d="M{slope}{x:.1f} {y:.1f}H{WIDTH - RIGHT}"/>')
        above = peak > peaks[own]  # names stand where no point can lie
        place = f'x="{WIDTH - RIGHT}" y="{y - 5:.1f}"' if above else f'x="{x - 9:.1f}" y="{y + 4:.1f}"'
        parts.append(f'<text {place} text-anchor="end">{ROOFS[bits]}: {scaled(peak)}FLOP/s</text>')
        if bits == own:
            parts.append(f'<path class="ridge" d="M{x:.1f} {y:.1f}V{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{x + 5:.1f}" y="{HEIGHT - BOTTOM - 7}">{ridge:.3g} op/B</text>')
    return "".join(parts)


def _axes(frame: _Frame) -> str:
    parts = []
    for power in range(math.ceil(frame.x[0]), math.floor(frame.x[1]) + 1):
        x = frame.across(10**power)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(math.ceil(frame.y[0]), math.floor(frame.y[1]) + 1):
        y = frame.down(10**power)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{scaled(10.0**power)}</text>')
    parts.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">operations a byte</text>')
    parts.append(f'<text x="14" y="{TOP - 4}">FLOP/s</text>')
    return "".join(parts)


def _point(one: Timed, stage: str, share: float, frame: _Frame) -> str:
    operator = one.operator
    tip = (
        f"{operator.name} ({stage}), {one.bound}-bound\n{scaled(operator.ops)}FLOP, {scaled(operator.bytes)}B, "
        f"{operator.intensity:.3g} op/B\n{scaled(one.rate)}FLOP/s at most\n"
        f"{scaled(one.seconds)}s a layer, {share:.1%} of the {stage}"
    )
    x, y, radius = frame.across(operator.intensity), frame.down(one.rate), 3 + 9 * math.sqrt(share)
    return (
        f'<circle class="point {stage} {one.bound}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
        f"<title>{escape(tip)}</title></circle>"
    )


def scaled(value: float) -> str:
    """Write a number to three digits with the prefix of its unit after it, such as `1.35 G`."""
    if not value:
        return "0 "
    power = min(max(math.floor(math.log10(value) / 3 + 1e-9), -3), 6)
    return f"{value / 1000**power:.3g} {'nµm kMGTPE'[power + 3].strip()}"

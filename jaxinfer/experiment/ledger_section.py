"""The ledger in a report: what physics allows, what the compiler made, what the clock said, and where the rest goes."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxinfer.experiment.html_table import table_html
from jaxinfer.experiment.meters import Meter, Part, meters, stacked
from jaxinfer.experiment.plots import short
from jaxinfer.experiment.roofline_plot import device, roofline_plot, seen
from jaxinfer.experiment.sheet import Table

MOST, PLOTS = 48, 12  # rows whose ledgers are drawn, and their rooflines; the table has all
COLORS = ("color0", "color1", "color3", "color4", "color5")  # of the largest losses; the bound has the third
Row = Mapping[str, Any]
MEANING = (
    "Physics: the least time in which the device can move the bytes that must be moved, and do the operations. "
    "Compiler: the time that the bytes and operations of the compiled program would take at the same rates. "
    "Clock: measured."
)


def section(rows: Sequence[Row]) -> str:
    """Show the ledgers of the rows that have one: all in a table, then each with its plots. Empty without any."""
    kept = [row for row in rows if stages(row)]
    if not kept:
        return ""
    shown = "".join(_panel(row, number) for number, row in enumerate(kept[:MOST]))
    drawn = [f"rooflines are drawn for the first {PLOTS} rows"] * (len(kept) > PLOTS)
    drawn += [f"bars for the first {MOST}"] * (len(kept) > MOST)
    more = f"<p class=note>To keep this page small, {' and '.join(drawn)}.</p>" if drawn else ""
    return (
        f'<section id="ledger"><h2>The ledger</h2>{table_html(_overview(kept), MEANING)}'
        f"<h3>Row by row</h3>{shown}{more}</section>"
    )


def stages(row: Row) -> Mapping[str, Any]:
    """Give the stages of a row's ledger that are complete enough to be shown."""
    found = (row.get("ledger") or {}).get("stages") or {}
    return {name: one for name, one in found.items() if all(part in one for part in ("physics", "compiler", "clock"))}


def name_of(row: Row) -> str:
    """Name a row: as it does itself, or by its texts and whole numbers."""
    if isinstance(row.get("name"), str):
        return row["name"]
    parts = ((key, value) for key, value in row.items() if isinstance(value, str | int))
    return ", ".join(value if isinstance(value, str) else f"{key} {value}" for key, value in parts)


def share(stage: Mapping[str, Any]) -> float:
    """Give the bound over the measured time: 1 is all that the device allows."""
    return stage["physics"]["seconds"] / stage["clock"]["seconds"] if stage["clock"]["seconds"] else 0.0


def compiled_seconds(stage: Mapping[str, Any]) -> float | None:
    """Give the seconds that the program's bytes and operations would take at the device's rates."""
    roofs = device(stage)
    if roofs is None:
        return None
    compiler = stage["compiler"]
    return max(compiler["bytes"] / roofs.bandwidth, compiler["ops"] / roofs.peak if roofs.peak else 0.0)


def milliseconds(seconds: float | None) -> str:
    """Write a time in ms with three digits."""
    if seconds is None:
        return "-"
    value = 1e3 * seconds
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def largest(stage: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give the largest loss of a stage."""
    losses = stage.get("losses") or ()
    return max(losses, key=lambda loss: loss["milliseconds"], default=None)


def _overview(rows: Sequence[Row]) -> Table:
    """Tabulate both stages of each row: times, shares of the bound, and the largest loss of the last stage."""
    columns = ["row"]
    names = list(dict.fromkeys(name for row in rows for name in stages(row)))
    for name in names:
        columns += [f"{name}: physics", "compiler", "clock", "of the bound"]
    lines = []
    for row in rows:
        found, cells = stages(row), [name_of(row)]
        for name in names:
            cells += _figures(found[name]) if name in found else ["-"] * 4
        worst = largest(list(found.values())[-1])
        lines.append((*cells, f"{worst['name']}, {worst['milliseconds']:.3g} ms" if worst else "-"))
    return Table((*columns, "largest loss"), tuple(lines))


def _figures(stage: Mapping[str, Any]) -> list[str]:
    times = (stage["physics"]["seconds"], compiled_seconds(stage), stage["clock"]["seconds"])
    return [*map(milliseconds, times), f"{share(stage):.0%}"]


def _panel(row: Row, number: int) -> str:
    ledger, found = row["ledger"], stages(row)
    plot = _plot(name_of(row), str(ledger.get("hardware", "")), found) if number < PLOTS else ""
    columns = "".join(_stage(name, stage) for name, stage in found.items())
    sentence = ledger.get("sentence", "")
    return (
        f"<details class=panel{'' if number else ' open'}><summary><b>{escape(name_of(row))}</b> "
        f"{escape(_heading(found))}</summary><p>{escape(sentence)}</p><div class=stages>{columns}</div>"
        f"{plot}</details>"
    )


def _heading(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} at {share(stage):.0%} of the bound" for name, stage in found.items())


def _stage(name: str, stage: Mapping[str, Any]) -> str:
    physics, compiler, clock = stage["physics"], stage["compiler"], stage["clock"]
    made = compiled_seconds(stage)
    bars = [
        Meter(
            "physics",
            physics["seconds"],
            milliseconds(physics["seconds"]),
            "color2",
            note=f"{_moved(physics)}: {physics['bound']}",
        ),
        *([Meter("compiler", made, milliseconds(made), "color0", note=_moved(compiler))] if made else []),
        Meter("clock", clock["seconds"], milliseconds(clock["seconds"]), "color1", note=_reached(clock)),
    ]
    text = (
        f"Fusions {compiler['fusions']}, kernels {compiler['kernels']}, copies of 1 MB or more {compiler['copies']}, "
        f"donated buffers not reused {compiler['unaliased']}, scratch {short(compiler['temp_bytes'])}B."
    )
    return (
        f"<div><h4>{escape(name)}<small>{share(stage):.0%} of the bound</small></h4>{meters(bars)}"
        f"<p class=note>{escape(text)}</p>{_losses(stage)}</div>"
    )


def _moved(part: Mapping[str, Any]) -> str:
    return f"{short(part['bytes'])}B, {short(part['ops'])}FLOP"


def _reached(clock: Mapping[str, Any]) -> str:
    names = {"mbu": "of the bandwidth", "mfu": "of the peak"}
    return ", ".join(f"{clock[key]:.0%} {words}" for key, words in names.items() if clock.get(key) is not None)


def _losses(stage: Mapping[str, Any]) -> str:
    """Draw where the time goes: the bound, then what is lost, the largest first; gains are told in words."""
    losses = sorted(stage.get("losses") or (), key=lambda loss: -loss["milliseconds"])
    lost = [loss for loss in losses if loss["milliseconds"] > 0]
    gained = [loss for loss in losses if loss["milliseconds"] < 0]
    if not lost:
        return ""
    bound = 1e3 * stage["physics"]["seconds"]
    parts = [Part("the bound", bound, "bound", f"the bound: {milliseconds(bound / 1e3)}")]
    parts += [
        Part(one["name"], one["milliseconds"], color, _told(one)) for one, color in zip(lost, COLORS, strict=False)
    ]
    rest = sum(one["milliseconds"] for one in lost[len(COLORS) :])
    if rest:
        parts.append(Part("smaller losses", rest, "baseline", f"smaller losses: {rest:.3g} ms"))
    keys = "".join(
        f'<li><i class="{part.color}"></i>{escape(part.name)} <b>{milliseconds(part.value / 1e3)}</b></li>'
        for part in parts
    )
    faster = sum(one["milliseconds"] for one in gained)
    note = f"<p class=note>Faster than their share of the bound: {-faster:.3g} ms in all.</p>" if gained else ""
    bar = stacked(parts, sum(part.value for part in parts))
    return f"<h5>Where the time goes</h5><figure class=bare>{bar}<ul class=legend>{keys}</ul>{READOUT}</figure>{note}"


READOUT = "<p class=readout aria-live=polite></p>"
"""A line in which the page's script says what is pointed at."""


def _told(loss: Mapping[str, Any]) -> str:
    why = f": {loss['why']}" if loss.get("why") else ""
    return f"{loss['name']}, {loss['milliseconds']:.3g} ms{why}"


def _plot(name: str, hardware: str, found: Mapping[str, Any]) -> str:
    operators = [one for stage, part in found.items() for one in seen(stage, part)]
    roofs = {stage: roof for stage, part in found.items() if (roof := device(part))}
    if not operators or not roofs:
        return ""
    drawn = roofline_plot(f"Roofline of {name}", roofs, operators)
    rates = "; ".join(
        f"{stage} {short(roof.bandwidth)}B/s" + (f", {short(roof.peak)}FLOP/s" if roof.peak else "")
        for stage, roof in roofs.items()
    )
    caption = (
        f"Roofline of {hardware}: {rates}. Filled: decode; hollow, and dashed where its roof is another: prefill. On "
        "the roof is what the device lets an operator have, below it what the clock saw."
    )
    return (
        f"<figure class=bare><div class=plot>{drawn}</div>{READOUT}<figcaption>{escape(caption)}</figcaption></figure>"
    )

"""Figures of what a device gives: its memories, batches, and other devices."""

from jaxinfer.analysis.survey import Study
from jaxinfer.experiment.curves import Dot, Line, chart
from jaxinfer.experiment.sheet import Table
from jaxinfer.experiment.survey.parts import (
    BYTE,
    LOG,
    RATE,
    Figure,
    Rows,
    across,
    curve,
    distinct,
    picked,
    place,
    roofs,
)


def _offloading_sentence(study: Study, rows: Rows) -> str:
    peak, parts = study.device.peak(16), []
    for tier in distinct(rows, "tier"):
        of = picked(rows, tier=tier, of="weights", stage="decode", batch=1)[0]
        parts.append(f"{peak / of['bandwidth']:,.0f} operations a byte from {tier} ({of['rate'] / 1e9:.3g} Gops/s)")
    return (
        f"Weights bound a step of one row, which has an operation a byte, by their way to the chip: the roof bends at "
        f"{', '.join(parts)}. Larger batches and prompts lift weights towards the roof; a cache, of which each row "
        "has its own, stays where it is in decode steps."
    )


def _offloading_chart(study: Study, rows: Rows) -> str:
    names = {row["tier"]: (row["bandwidth"], study.device.peak(16)) for row in rows}
    tiers = list(names)
    low, high = min(row["intensity"] for row in rows), max(row["intensity"] for row in rows)
    top = max(high, study.device.peak(16) / min(row["bandwidth"] for row in rows))
    dots = [
        place(row, tiers.index(row["tier"]), f"{row['stage']}, batch {row['batch']}, {row['of']}", row["of"] == "cache")
        for row in rows
    ]
    kinds = [("weights (up_proj)", 0, False), ("cache (attention)", 0, True)]
    return chart("Offloading", BYTE, RATE, roofs(study, names, low, 1.5 * top), dots, kinds, LOG)


def _offloading_table(study: Study, rows: Rows) -> Table:
    named = [row | {"bytes of": f"{row['of']}: {row['stage']}, batch {row['batch']}"} for row in rows]
    return across(
        named, "bytes of", "tier", lambda row: f"{row['rate'] / 1e12:.3g} {RATE}, {1e3 * row['seconds']:.4g} ms"
    )


def _batching_sentence(study: Study, rows: Rows) -> str:
    first, last = rows[0], rows[-1]
    fitting = [row for row in rows if row["fits"]]
    within = f"{fitting[-1]['batch']} rows fit in its memory" if fitting else "not one row fits in its memory"
    before, after = first["tokens_per_second"], last["tokens_per_second"]
    return (
        f"From batch {first['batch']} to {last['batch']} throughput grows from {before:,.0f} to {after:,.0f} tokens/s "
        f"({after / before:.1f} times), the latency of a token {last['seconds'] / first['seconds']:.0f} times and "
        f"memory {last['memory'] / first['memory']:.0f} times; of these batches, {within}."
    )


def _batching_chart(study: Study, rows: Rows) -> str:
    lines = [
        Line(name, [(row["batch"], row[key] / rows[0][key]) for row in rows], i)
        for i, (name, key) in enumerate(
            (("throughput", "tokens_per_second"), ("latency", "seconds"), ("memory", "memory"))
        )
    ]
    fitting = [row["batch"] for row in rows if row["fits"]]
    mark = (fitting[-1], "the largest that fits") if fitting and len(fitting) < len(rows) else None
    return chart("Batch", "batch", f"times that of batch {rows[0]['batch']}", lines, log=LOG, mark=mark)


def _batching_table(study: Study, rows: Rows) -> Table:
    return Table.of(
        rows,
        {
            "batch": "{batch}",
            "ms a step": lambda row: f"{1e3 * row['seconds']:.2f}",
            "tokens/s": lambda row: f"{row['tokens_per_second']:,.1f}",
            "GB": lambda row: f"{row['memory'] / 1e9:.1f}",
            "fits": lambda row: "yes" if row["fits"] else "no",
        },
    )


def _bandwidth_sentence(study: Study, rows: Rows) -> str:
    alone = [row for row in rows if row["device"] and row["batch"] == 1]
    first, best = alone[0], min(alone, key=lambda row: row["seconds"])
    most = max(alone, key=lambda row: row["chips"])
    faster = best["bandwidth"] / first["bandwidth"]
    return (
        f"A step of one row takes {1e3 * first['seconds']:.3g} ms on {first['device']} and "
        f"{1e3 * best['seconds']:.2g} ms on {best['device']}, whose memory is {faster:.0f} times as fast; but weights "
        f"and cache fill {most['chips']} chips of {most['device']}."
    )


def _bandwidth_chart(study: Study, rows: Rows) -> str:
    batches = distinct(rows, "batch")
    lines = [
        Line(
            f"batch {batch}, arithmetic of {study.device.name}",
            curve(picked(rows, batch=batch, device=""), "bandwidth", "seconds"),
            i,
        )
        for i, batch in enumerate(batches)
    ]
    lines = [Line(line.name, [(x / 1e9, 1e3 * y) for x, y in line.points], line.color) for line in lines]
    dots = []
    for row in rows:
        if row["device"]:
            chips = f"{row['chips']} chip{'s' * (row['chips'] != 1)}"
            tip = f"{row['device']}, batch {row['batch']}: {1e3 * row['seconds']:.3g} ms, {chips}"
            label = f"{row['device']}{f', {chips}' if row['chips'] > 1 else ''}" if row["batch"] == 1 else ""
            dots.append(Dot(row["bandwidth"] / 1e9, 1e3 * row["seconds"], batches.index(row["batch"]), tip, label))
    return chart("Bandwidth", "GB/s", "ms a step", lines, dots, log=LOG)


def _bandwidth_table(study: Study, rows: Rows) -> Table:
    found = [row | {"of": f"batch {row['batch']}"} for row in rows if row["device"]]
    return across(found, "device", "of", lambda row: f"{1e3 * row['seconds']:.3g} ms, {row['chips']} chips")


OFFLOADING = Figure(
    "Rooflines of weights and cache elsewhere", _offloading_sentence, _offloading_chart, _offloading_table
)
BATCHING = Figure("Throughput, latency and memory over batch", _batching_sentence, _batching_chart, _batching_table)
BANDWIDTH = Figure("Time of a decode step over bandwidth", _bandwidth_sentence, _bandwidth_chart, _bandwidth_table)

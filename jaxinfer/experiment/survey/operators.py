"""Figures of single operators: their places on a roofline, fused attention, and fusion."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.analysis.survey import Study
from jaxinfer.experiment.curves import Dot, Line, chart, shares
from jaxinfer.experiment.sheet import Table
from jaxinfer.experiment.survey.parts import BYTE, LOG, RATE, Figure, Rows, across, distinct, picked, place, roofs


def _rooflines_sentence(study: Study, rows: Rows) -> str:
    decode, prefill = (picked(rows, format="W16", stage=stage) for stage in ("decode", "prefill"))
    ridge = study.device.peak(16) / study.device.bandwidth
    linears = [row for row in prefill if row["operator"].endswith("_proj")]
    return (
        f"Memory bounds {sum(row['bound'] == 'memory' for row in decode)} of the {len(decode)} operators of a decode "
        f"step, and compute {sum(row['bound'] == 'compute' for row in linears)} of the {len(linears)} linears of a "
        f"prompt, which have {min(row['intensity'] for row in linears):,.0f} operations a byte and more; the roof "
        f"bends at {ridge:.0f}. W8A8KV8 halves the bytes and has the roof of INT8, so that both stages gain."
    )


def _rooflines_chart(study: Study, rows: Rows) -> str:
    shown = [row for row in rows if row["intensity"] > 0]
    low, high = min(row["intensity"] for row in shown), max(row["intensity"] for row in shown)
    bandwidth = study.device.bandwidth
    names = {"16 bits": (bandwidth, study.device.peak(16)), "INT8": (bandwidth, study.device.peak(8))}
    dots = [
        place(row, int(row["format"] != "W16"), f"{row['stage']}, {row['operator']}", row["stage"] == "decode")
        for row in shown
    ]
    kinds = [("prefill", 0, False), ("decode", 0, True), ("prefill, W8A8KV8", 1, False), ("decode, W8A8KV8", 1, True)]
    return chart("Roofline", BYTE, RATE, roofs(study, names, low, 2 * high), dots, kinds, LOG)


def _rooflines_table(study: Study, rows: Rows) -> Table:
    named = [row | {"of": f"{row['stage']}, {row['format']}"} for row in rows]
    return across(named, "operator", "of", lambda row: f"{row['intensity']:.1f} op/B, {row['rate'] / 1e12:.3g} {RATE}")


def _flash_sentence(study: Study, rows: Rows) -> str:
    near = min(study.lengths, key=lambda length: abs(length - study.length))
    found = {stage: picked(rows, stage=stage, length=near)[0] for stage in ("prefill", "decode")}
    access, seconds = (
        {stage: 1 - row[f"fused_{what}"] / row[f"plain_{what}"] for stage, row in found.items()}
        for what in ("bytes", "stage")
    )
    return (
        f"At {near:,} tokens a fused attention saves {access['prefill']:.0%} of its access to memory in a prefill, and "
        f"{seconds['prefill']:.1%} of the whole stage's time; in a decode step, whose scores are one row, "
        f"{access['decode']:.1%} and {seconds['decode']:.2%}."
    )


def _flash_chart(study: Study, rows: Rows) -> str:
    lines = []
    for i, stage in enumerate(("prefill", "decode")):
        for what, name, dashed in (("bytes", "access of attention", False), ("stage", "time of the stage", True)):
            found = picked(rows, stage=stage)
            points = [(row["length"], 100 * (1 - row[f"fused_{what}"] / row[f"plain_{what}"])) for row in found]
            lines.append(Line(f"{stage}: {name}", points, i, dashed))
    return chart("Saved by fused attention", "tokens", "saved, %", lines, log=(True, False))


def _flash_table(study: Study, rows: Rows) -> Table:
    figures: dict[str, Callable[[Mapping[str, Any]], str]] = {}
    for title, key, scale in (("attention, {}: GB", "bytes", 1e-9), ("stage, {}: ms", "stage", 1e3)):
        figures |= {title.format(name): _scaled(f"{name}_{key}", scale) for name in ("plain", "fused")}
    return Table.of(rows, {"stage": "{stage}", "tokens": "{length}", **figures})


def _scaled(key: str, scale: float) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{scale * row[key]:.4g}"


def _fusion_sentence(study: Study, rows: Rows) -> str:
    saved: dict[tuple[str, str], float] = {}
    for stage in ("prefill", "decode"):
        found = picked(rows, stage=stage)
        for key in ("bytes", "seconds"):
            saved[stage, key] = 1 - sum(row[f"fused_{key}"] for row in found) / sum(row[key] for row in found)
    found = picked(rows, stage="prefill")
    bound = sum(row["bound"] == "compute" for row in found)
    attention = picked(found, group="attention")[0]
    return (
        f"In a prefill fusion removes {saved['prefill', 'bytes']:.0%} of the bytes and "
        f"{saved['prefill', 'seconds']:.0%} of the time: operators bound by memory vanish in the products beside them "
        f"({bound} of {len(found)} groups are bound by compute then), and attention becomes "
        f"{attention['seconds'] / attention['fused_seconds']:.1f} times as fast. In a decode step of one row, where "
        f"weights are nearly all that is read, it removes {saved['decode', 'bytes']:.1%} and "
        f"{saved['decode', 'seconds']:.1%}; the launches that it saves are not counted."
    )


def _fusion_chart(study: Study, rows: Rows) -> str:
    groups = {}
    for row in rows:
        left = {name: 100 * row[f"fused_{key}"] / row[key] for key, name in (("bytes", "bytes"), ("seconds", "time"))}
        bars = [(share, f"{row['operators']}: {share:.1f} % of the {name}") for name, share in left.items()]
        groups[f"{row['stage']}: {row['group']}"] = bars
    return shares("left after fusion, %", ["bytes", "time"], groups)


def _fusion_table(study: Study, rows: Rows) -> Table:
    figures = {
        "GB apart": _scaled("bytes", 1e-9),
        "fused": _scaled("fused_bytes", 1e-9),
        "ms apart": _scaled("seconds", 1e3),
        "ms fused": _scaled("fused_seconds", 1e3),
    }
    return Table.of(rows, {"operators": "{stage}: {operators}", **figures, "fused, bound by": "{bound}"})


def _dynamic_sentence(study: Study, rows: Rows) -> str:
    names, batches = distinct(rows, "variant"), distinct(picked(rows, stage="decode"), "batch")

    def faster(one: int, other: int, batch: int) -> float:
        first, second = (picked(rows, variant=names[i], stage="decode", batch=batch)[0] for i in (one, other))
        return second["seconds"] / first["seconds"]

    dense, mixture = (picked(rows, variant=names[i], stage="decode", batch=batches[1])[0] for i in (3, 4))
    alone, many = faster(4, 3, batches[0]), faster(4, 3, batches[1])
    return (
        f"Half of the layers make a step of one row {faster(1, 0, batches[0]):.2f} times as fast, a quarter of the "
        f"neurons {faster(2, 0, batches[0]):.2f} times, and the mixture is {alone:.1f} times as fast as a dense model "
        f"of its size. With {batches[1]} rows that is {many:.2f} times: most experts are read, for few tokens "
        f"each, and the intensity is {mixture['intensity']:.1f} operations a byte where the dense model has "
        f"{dense['intensity']:.1f}."
    )


def _dynamic_chart(study: Study, rows: Rows) -> str:
    low, high = min(row["intensity"] for row in rows), max(row["intensity"] for row in rows)
    names = {"16 bits": (study.device.bandwidth, study.device.peak(16))}
    variants = distinct(rows, "variant")
    dots = []
    for row in rows:
        what = f"{row['stage']}, batch {row['batch']}"
        tip = f"{row['variant']}, {what}: {1e3 * row['seconds']:.4g} ms, {row['intensity']:.4g} {BYTE}"
        dots.append(
            Dot(row["intensity"], row["rate"] / 1e12, variants.index(row["variant"]), tip, "", row["stage"] == "decode")
        )
    kinds = [(name, i, False) for i, name in enumerate(variants)] + [("decode: hollow", 0, True)]
    return chart("Dynamic parameters", BYTE, RATE, roofs(study, names, low / 2, 2 * high), dots, kinds, LOG)


def _dynamic_table(study: Study, rows: Rows) -> Table:
    named = [row | {"of": f"{row['stage']}, batch {row['batch']}"} for row in rows]
    return across(named, "variant", "of", lambda row: f"{row['intensity']:.1f} op/B, {1e3 * row['seconds']:.4g} ms")


ROOFLINES = Figure(
    "Operators on the roofline, with and without INT8", _rooflines_sentence, _rooflines_chart, _rooflines_table
)
FLASH_ATTENTION = Figure("Access and time that fused attention saves", _flash_sentence, _flash_chart, _flash_table)
FUSION = Figure("Fusion of operators, bound by memory and by compute", _fusion_sentence, _fusion_chart, _fusion_table)
DYNAMIC = Figure("Early exit, sparsity and experts on the roofline", _dynamic_sentence, _dynamic_chart, _dynamic_table)

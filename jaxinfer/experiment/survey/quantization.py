"""Figures of memory and time by what is quantized."""

from collections.abc import Callable

from jaxinfer.analysis.survey import Row, Study
from jaxinfer.experiment.curves import Line, chart, shares
from jaxinfer.experiment.sheet import Table
from jaxinfer.experiment.survey.parts import LOG, Figure, Rows, across, curve, distinct, picked


def _memory_sentence(study: Study, rows: Rows) -> str:
    def share(case: tuple[int, ...], form: str) -> float:
        return picked(rows, batch=case[0], length=case[1], format=form)[0]["share"]

    first, last = study.cases[0], study.cases[-1]
    return (
        f"With batch {first[0]} and {first[1]:,} tokens W4 leaves {share(first, 'W4'):.0%} of the memory and KV4 "
        f"{share(first, 'KV4'):.0%}; with batch {last[0]} and {last[1]:,} tokens it is {share(last, 'W4'):.0%} and "
        f"{share(last, 'KV4'):.0%}, and W4KV4 leaves {share(last, 'W4KV4'):.0%}."
    )


def _case_of(row: Row) -> str:
    return f"batch {row['batch']}, {row['length']:,} tokens"


def _memory_chart(study: Study, rows: Rows) -> str:
    groups = {
        form: [(100 * row["share"], f"{_case_of(row)}: {row['share']:.1%}") for row in picked(rows, format=form)]
        for form in distinct(rows, "format")
    }
    return shares("memory, % of that of 16 bits", list(dict.fromkeys(map(_case_of, rows))), groups)


def _memory_table(study: Study, rows: Rows) -> Table:
    named = [row | {"of": _case_of(row)} for row in rows]
    return across(named, "format", "of", lambda row: f"{row['total'] / 1e9:.1f} GB, {row['share']:.1%}")


def _gain(rows: Rows, one: str, other: str, **where: object) -> float:
    """Tell how many times faster `one` is than `other`."""
    first, second = (picked(rows, format=form, **where)[0]["seconds"] for form in (one, other))
    return second / first


def _decode_sentence(study: Study, rows: Rows) -> str:
    first, last = min(study.batches), max(study.batches)
    return (
        f"With batch {first} a step in 4 bits is {_gain(rows, 'W4', 'W16', batch=first):.2f} times as fast as in 16, "
        f"and in 2 bits {_gain(rows, 'W2', 'W4', batch=first):.2f} times as fast as in 4; with batch {last} these are "
        f"{_gain(rows, 'W4', 'W16', batch=last):.2f} and {_gain(rows, 'W2', 'W4', batch=last):.2f} times. What counts "
        f"then is the cache: in 4 bits it makes a step {_gain(rows, 'W4KV4', 'W4', batch=last):.1f} times as fast."
    )


def _times(x: str, label: str) -> tuple[Callable[[Study, Rows], str], Callable[[Study, Rows], Table]]:
    """Draw and tabulate milliseconds over a column, a line for each format."""

    def draw(study: Study, rows: Rows) -> str:
        forms = distinct(rows, "format")
        lines = [Line(form, curve(picked(rows, format=form), x, "seconds", 1e3), i) for i, form in enumerate(forms)]
        return chart(f"Time over {x}", label, "ms", lines, log=LOG)

    return draw, lambda study, rows: across(rows, x, "format", lambda row: f"{1e3 * row['seconds']:.4g} ms")


def _prefill_sentence(study: Study, rows: Rows) -> str:
    near = min(study.lengths, key=lambda length: abs(length - study.length))
    w4, w8a8, w4a4 = (_gain(rows, form, "W16", length=near) for form in ("W4", "W8A8", "W4A4"))
    return (
        f"With a prompt of {near:,} tokens W4 is {w4:.2f} times as fast as 16 bits, because its codes are widened "
        f"before they are multiplied; W8A8, whose products are in INT8, is {w8a8:.2f} times as fast, and W4A4 "
        f"{w4a4:.2f} times."
    )


def _crossing(rows: Rows, bits: int) -> float:
    """Give the length from which the cache in so many bits is larger than the weights."""
    row = picked(rows, bits=bits)[-1]
    return row["length"] * row["weights"] / row["kv"]


def _cache_sentence(study: Study, rows: Rows) -> str:
    crossings = ", ".join(f"{_crossing(rows, bits):,.0f} tokens in {bits} bits" for bits in distinct(rows, "bits"))
    return (
        f"One row's cache outgrows the weights ({rows[0]['weights'] / 1e9:.1f} GB in 16 bits) from {crossings}; scales "
        f"are counted."
    )


def _cache_chart(study: Study, rows: Rows) -> str:
    lines = [
        Line(f"{bits} bits", curve(picked(rows, bits=bits), "length", "kv", 1e-9), i)
        for i, bits in enumerate(distinct(rows, "bits"))
    ]
    ends = curve([picked(rows, bits=rows[0]["bits"])[0], rows[-1]], "length", "weights", 1e-9)
    return chart("The cache", "tokens", "GB", [*lines, Line("weights, 16 bits", ends, 5, dashed=True)])


def _cache_table(study: Study, rows: Rows) -> Table:
    shown = [row for i, row in enumerate(rows) if i % 4 == 3]
    return across(shown, "length", "bits", lambda row: f"{row['kv'] / 1e9:.1f} GB")


_decode_chart, _decode_table = _times("batch", "batch")
_prefill_chart, _prefill_table = _times("length", "tokens of the prompt")

MEMORY = Figure("Memory by what is quantized", _memory_sentence, _memory_chart, _memory_table)
DECODE_TIME = Figure("Time of a decode step over batch and bits", _decode_sentence, _decode_chart, _decode_table)
PREFILL_TIME = Figure("Time of a prefill over length and bits", _prefill_sentence, _prefill_chart, _prefill_table)
CACHE_MEMORY = Figure("The cache against the weights over length", _cache_sentence, _cache_chart, _cache_table)

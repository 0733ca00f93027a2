"""The table of an experiment's rows: its columns, and how a figure is written."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from jaxinfer.experiment import grid, sheet
from jaxinfer.experiment.compare import Summary
from jaxinfer.experiment.sheet import Table

UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float | None) -> str:
    """Write bytes for a reader, in powers of ten: `538 MB`."""
    if count is None:
        return "-"
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {UNITS[power]}"


def rate(value: float) -> str:
    """Write three significant digits, or more above 1000."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}" if value >= 1 else f"{value:.3g}"


COLUMNS: tuple[tuple[str, Callable[[Summary], str]], ...] = (
    ("row", lambda row: row.name),
    ("decode tokens/s", lambda row: rate(row.decode)),
    ("min to max", lambda row: f"{rate(row.decode_low)} to {rate(row.decode_high)}"),
    ("speedup", lambda row: "-" if row.speedup is None else f"{row.speedup:.2f}x"),
    ("tokens/step", lambda row: f"{row.tokens_per_step:.2f}"),
    ("identical", lambda row: row.identical),
    ("prefill tokens/s", lambda row: rate(row.prefill)),
    ("GB/s", lambda row: f"{row.bandwidth / 1e9:.3g}"),
    ("compile s", lambda row: f"{row.compile_seconds:.1f}"),
    ("weights", lambda row: f"{row.weights}, {size(row.weight_bytes)}"),
    ("cache", lambda row: size(row.cache_bytes)),
    ("temporaries", lambda row: size(row.temp_bytes)),
    ("peak RSS", lambda row: size(row.peak_rss_bytes)),
)
MEANING = (
    "decode tokens/s: median of the timed passes, compile time apart; speedup and identical: against greedy under the "
    "same cache policy, the speedup pass by pass in alternation, identical counting prompts with equal token ids (n/a: "
    "outputs are sampled); tokens/step: "
    "emitted for each forward pass of the model; GB/s: bytes that decoding had to read, over its time; weights: the "
    "format of the model's, and the bytes of all that the row reads, a draft model's too; peak RSS: of the process, up "
    "to and including this row."
)


QUALITY: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("identical_to_reference", "same texts", str),
    ("first_divergence_median", "differs at", lambda value: f"{value:g}"),
    ("kl", "KL", lambda value: f"{value:.3g}"),
    ("agreement", "agreement", lambda value: f"{value:.2%}"),
    ("perplexity", "perplexity", lambda value: f"{value:.4g}"),
    ("acc", "acc", lambda value: f"{value:.3f}"),
    ("acc_norm", "acc_norm", lambda value: f"{value:.3f}"),
    ("last_word_acc", "last word", lambda value: f"{value:.3f}"),
)
"""Of each figure of quality its key, its column, and how it is written."""
OF_GRID = (
    "of reference: decode tokens/s over the reference's, which is greedy with the same model, workload and batch and "
    "the first entry of every other axis (not measured in alternation)."
)
OF_QUALITY = (
    "Against the reference, greedy with the same model and workload and the first entry of the other axes: prompts "
    "with the same texts, median place of the first token that differs, mean KL divergence in nats and agreement of "
    "the likeliest token on the reference's texts."
)


def columns_of(summaries: list[Summary]) -> tuple[tuple[str, Callable[[Summary], str]], ...]:
    """Choose the columns: a grid has one for each axis in place of the name, and quality is shown where it is known."""
    first, *rest = COLUMNS
    labels = dict(pair for one in summaries for pair in grid.in_order(one.axes))
    axes = tuple((axis, partial(_axis, axis)) for axis, _ in grid.in_order(labels))
    asked = {key for one in summaries for key, value in one.quality.items() if value is not None}
    shown = tuple((name, partial(_quality, key, write)) for key, name, write in QUALITY if key in asked)
    at = 1 + [name for name, _ in rest].index("identical")
    beside = (("of reference", _of_reference),) if axes else ()
    return (*(axes or (first,)), *rest[:at], *beside, *shown, *rest[at:])


def _axis(axis: str, summary: Summary) -> str:
    return summary.axes.get(axis, "")


def _quality(key: str, write: Callable[[Any], str], summary: Summary) -> str:
    value = summary.quality.get(key)
    return "-" if value is None else write(value)


def _of_reference(summary: Summary) -> str:
    return "-" if summary.of_reference is None else f"{summary.of_reference:.2f}x"


def meaning(summaries: list[Summary]) -> str:
    """Say what the columns are."""
    more = [OF_GRID] if any(one.axes for one in summaries) else []
    more += [OF_QUALITY] if any(one.quality for one in summaries) else []
    return " ".join([MEANING, *more])


def cells(summaries: list[Summary]) -> list[list[str]]:
    """Write the text of every cell, row by row."""
    return [[text(summary) for _, text in columns_of(summaries)] for summary in summaries]


def table(summaries: list[Summary], failures: Sequence[Mapping[str, Any]] = ()) -> Table:
    """Make a row for each summary, and one for each row that failed; a terminal has room for some columns."""
    headers = tuple(header for header, _ in columns_of(summaries))
    rows = [tuple(row) for row in cells(summaries)]
    for one in failures:
        known = {"row": one["name"], **one.get("axes", {}), "decode tokens/s": "failed"}
        rows.append(tuple(known.get(header, "-") for header in headers))
    return Table(headers, tuple(rows), shown=headers.index("compile s") + 1)


def markdown(summaries: list[Summary], failures: Sequence[Mapping[str, Any]] = ()) -> str:
    """Write the table in Markdown."""
    return sheet.markdown(table(summaries, failures))

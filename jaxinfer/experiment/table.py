"""The table of an experiment, written once for Markdown, the terminal and HTML."""

from collections.abc import Callable

from rich.table import Table

from jaxinfer.experiment.compare import Summary

UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float | None) -> str:
    """Bytes for a reader, in powers of ten: `538 MB`."""
    if count is None:
        return "-"
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {UNITS[power]}"


def rate(value: float) -> str:
    """Three significant digits, or more above 1000."""
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


def cells(summaries: list[Summary]) -> list[list[str]]:
    """The text of every cell, row by row."""
    return [[text(summary) for _, text in COLUMNS] for summary in summaries]


def markdown(summaries: list[Summary]) -> str:
    """A Markdown table: names to the left, figures to the right."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells(summaries)]
    headers = [header for header, _ in COLUMNS]
    widths = [max(4, *(len(row[i]) for row in [headers, *rows])) for i in range(len(headers))]

    def line(row: list[str]) -> str:
        figures = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join([row[0].ljust(widths[0]), *figures])} |"

    rule = [":" + "-" * (w - 1) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(headers), line(rule), *map(line, rows)]) + "\n"


def terminal(summaries: list[Summary]) -> Table:
    """The first columns, up to the bandwidth, as a rich table: what fits a terminal."""
    shown = [header for header, _ in COLUMNS].index("compile s") + 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, (header, _) in enumerate(COLUMNS[:shown]):
        table.add_column(header, justify="right" if index else "left", overflow="fold")
    for row in cells(summaries):
        table.add_row(*row[:shown])
    return table

"""A table as texts, written once for Markdown, the terminal and HTML."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import rich.table
import rich.text


@dataclass(frozen=True)
class Table:
    """Cells below the names of their columns. shown: the first columns, which a terminal has room for; None: all."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    shown: int | None = None

    @classmethod
    def of(
        cls,
        rows: Iterable[Mapping[str, Any]],
        columns: Mapping[str, str | Callable[[Mapping[str, Any]], str]],
        title: str = "",
    ) -> "Table":
        """Make a line for each row. columns: by name, how a row is written there: "{ms:.2f}", or a function of it."""
        cells = tuple(
            tuple(write.format(**row) if isinstance(write, str) else write(row) for write in columns.values())
            for row in rows
        )
        return cls(tuple(columns), cells, title)


def markdown(table: Table) -> str:
    """Write a Markdown table: names to the left, figures to the right."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table.rows]
    headers = list(table.columns)
    widths = [max(4, *(len(row[i]) for row in [headers, *rows])) for i in range(len(headers))]

    def line(row: list[str]) -> str:
        figures = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join([row[0].ljust(widths[0]), *figures])} |"

    rule = [":" + "-" * (w - 1) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    text = "\n".join([line(headers), line(rule), *map(line, rows)]) + "\n"
    return f"{table.title}\n\n{text}" if table.title else text


def terminal(table: Table) -> rich.table.Table:
    """Draw the columns that a terminal has room for, as a rich table."""
    made = rich.table.Table(
        box=None, pad_edge=False, header_style="bold", title=table.title or None, title_justify="left"
    )
    for index, header in enumerate(table.columns[: table.shown]):
        made.add_column(header, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(rich.text.Text(cell) for cell in row[: table.shown]))
    return made

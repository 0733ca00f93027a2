"""The parts that the figures of a survey are made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxinfer.analysis.survey import Row, Study
from jaxinfer.experiment.curves import Dot, Line
from jaxinfer.experiment.sheet import Table

Rows = Sequence[Row]


def picked(rows: Rows, **where: object) -> list[Row]:
    """Give the rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def distinct(rows: Rows, key: str) -> list:
    """Give the values of a column, each once, in order."""
    return list(dict.fromkeys(row[key] for row in rows))


def across(rows: Rows, down: str, columns: str, write: Callable[[Row], str]) -> Table:
    """Make a table with a line for each value of `down` and a column for each value of `columns`."""
    names = distinct(rows, columns)
    cells = {(row[down], row[columns]): write(row) for row in rows}
    body = [(str(value), *(cells.get((value, name), "") for name in names)) for value in distinct(rows, down)]
    return Table((down, *map(str, names)), tuple(body))


def curve(rows: Rows, x: str, y: str, scale: float = 1) -> list[tuple[float, float]]:
    """Give the points of a line."""
    return [(row[x], scale * row[y]) for row in rows]


def roofs(study: Study, names: Mapping[str, tuple[float, float]], low: float, high: float) -> list[Line]:
    """Draw roofs by name: bandwidth and peak. low and high: operations a byte."""
    lines = []
    for color, (name, (bandwidth, peak)) in enumerate(names.items()):
        ends = [low, peak / bandwidth, high]
        lines.append(Line(name, [(x, min(peak, x * bandwidth) / 1e12) for x in ends], color))
    return lines


BYTE, RATE = "operations a byte", "Tops/s"
LOG = (True, True)


def place(row: Row, color: int, name: str, hollow: bool = False, label: str = "") -> Dot:
    """Draw an operator on a roofline."""
    where = f"{row['intensity']:.4g} {BYTE}, {row['rate'] / 1e12:.4g} {RATE}, {row['bound']}-bound"
    return Dot(row["intensity"], row["rate"] / 1e12, color, f"{name}: {where}", label, hollow)


@dataclass(frozen=True)
class Figure:
    """A title, and what is made of the rows: a sentence, a chart and a table. All but the title take study and rows."""

    title: str
    sentence: Callable[[Study, Rows], str]
    draw: Callable[[Study, Rows], str]
    table: Callable[[Study, Rows], Table]

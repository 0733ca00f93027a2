"""Write the tables and charts of the documents from the data files in this folder.

    python docs/benchmarks/render.py            # README.md and docs/**/*.md, and the .svg files here

Each result is one JSON file: machine, versions, date, command, rows, and a note where one is needed. A document holds
the shape of its table in a comment, a head and one row of Python format fields, and the table stands below it:

    <!-- table: NAME
    | weights | a token |
    |---|---:|
    | {weights} | {ms:.1f} ms |
    -->
    (generated)
    <!-- end -->

A cell is empty where one of its fields is null or missing, and so is a part of a cell in [[double brackets]]. Documents
in this folder also say under each table where its figures are from.
"""

import json
import re
import string
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxinfer.experiment import lines

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
BLOCK = re.compile(r"(<!-- table: (\w+)\n(.*?)\n-->\n).*?(<!-- end -->)", re.DOTALL)
FIELDS = ("machine", "versions", "date", "command", "rows")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Chart:
    """A line chart of a result. `curves`: the fields of x and y, numbers or lists, by a name, a format of the row."""

    result: str
    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, tuple[str, str]]
    where: Mapping[str, Any] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False


CHARTS = {
    "accepted": Chart(
        "accepted",
        "smollm2-135m: how often the i-th guess is accepted",
        "guess",
        "share of steps with guesses",
        {"{method}": ("guess", "accepted")},
    ),
    "context_extension": Chart(
        "context_extension",
        "smollm2-135m: perplexity along a text of 32768 tokens, trained on 8192",
        "position",
        "perplexity of a block",
        {"{variant}": ("position", "perplexity")},
        log_y=True,
    ),
    "moe_dispatch": Chart(
        "moe_dispatch",
        "2048 tokens, skew 2: time",
        "experts",
        "ms",
        {"dropless": ("experts", "dropless_ms"), "capacity": ("experts", "capacity_ms")},
        where={"skew": 2},
        log_x=True,
    ),
    "moe_dropped": Chart(
        "moe_dropped",
        "16 experts, skew 2",
        "capacity factor",
        "dropped, %",
        {"{router}": ("factor", "dropped_percent")},
    ),
    "pays_from": Chart(
        "step_cost",
        "smollm2-135m: acceptance at which a chain pays",
        "tokens in a step",
        "acceptance at which a chain pays",
        {"batch {rows}": ("tokens", "pays_from")},
        log_x=True,
    ),
    "step_cost": Chart(
        "step_cost",
        "smollm2-135m: time of a step over that of width 1",
        "tokens in a step",
        "time of a step over that of width 1",
        {"batch {rows}": ("tokens", "ratio")},
        log_x=True,
    ),
}


def result(name: str) -> dict[str, Any]:
    """Read the result of this name."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def filled(template: str, row: Row) -> str:
    """Put the fields of a row into a cell's format; empty where one is missing."""
    template = re.sub(r"\[\[(.*?)\]\]", lambda part: filled(part[1], row), template)
    named = {re.split(r"[.\[]", name)[0] for _, name, _, _ in string.Formatter().parse(template) if name}
    return template.format(**row) if all(row.get(name) is not None for name in named) else ""


def table(shape: str, rows: list[Row]) -> str:
    """Give the Markdown table of a shape: its head as it stands, and its last line once for each row."""
    *head, template = shape.splitlines()
    cells = template.strip().strip("|").split("|")
    body = ["| " + " | ".join(filled(cell.strip(), row) for cell in cells) + " |" for row in rows]
    return "\n".join((*head, *body))


def source(name: str, found: Mapping[str, Any]) -> str:
    """Say where the figures of a result are from, in one paragraph."""
    versions = ", ".join(f"{of} {version}" for of, version in (found["versions"] or {}).items())
    command = found["command"] and f"`{found['command']}`"
    machine = found["machine"] and found["machine"][0].upper() + found["machine"][1:]
    facts = (machine, versions, found["date"], command, f"[data]({name}.json)")
    text = ". ".join((" · ".join(fact for fact in facts if fact), found.get("note", ""))).rstrip(". ") + "."
    return "\n".join(textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False))


def document(path: Path) -> str:
    """Give the text of a document with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        opening, name, shape, closing = match.groups()
        found = result(name)
        below = f"{source(name, found)}\n\n" if path.parent == FOLDER else ""
        return f"{opening}\n{table(shape, found['rows'])}\n\n{below}{closing}"

    return BLOCK.sub(block, path.read_text())


def chart(drawn: Chart) -> str:
    """Draw a chart as SVG."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in result(drawn.result)["rows"]:
        if all(row[key] == value for key, value in drawn.where.items()):
            for name, (x, y) in drawn.curves.items():
                points = zip(row[x], row[y], strict=True) if isinstance(row[x], list) else [(row[x], row[y])]
                series.setdefault(name.format(**row), []).extend(points)
    return lines.chart(drawn.title, drawn.x_label, drawn.y_label, series, drawn.log_x, drawn.log_y)


def rendered() -> dict[Path, str]:
    """Give the new text of every document and chart, by its path."""
    documents = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    made = {path: document(path) for path in documents}
    return made | {FOLDER / f"{name}.svg": chart(drawn) for name, drawn in CHARTS.items()}


if __name__ == "__main__":
    for path, text in rendered().items():
        if path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))

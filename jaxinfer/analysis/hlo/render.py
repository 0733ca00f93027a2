"""Write reports as tables, for a terminal and in Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

Section = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""A title, headers, and rows of text."""

_SHOWN = 12  # rows of a long list
_UNITS = ("", "k", "M", "G", "T", "P")


def amount(value: float | None, unit: str = "") -> str:
    """Write three significant digits in powers of ten: `4.64 G`, `538 MB`."""
    if value is None:
        return "-"
    power, size = 0, abs(value)
    while size >= 999.5 and power < len(_UNITS) - 1:
        size, power = size / 1000, power + 1
    number = f"{size:.3g}" if size else "0"
    return f"{'-' if value < 0 else ''}{number} {_UNITS[power]}{unit}".strip()


def sections(report: Any) -> Iterator[Section]:
    """Give the tables of a report."""
    total, xla = report.total, report.xla or {}
    rows: list[tuple[str, ...]] = [
        ("operations", amount(total.operations), amount(xla.get("operations"))),
        ("of these in products", amount(total.work.matmul), ""),
        ("transcendentals", amount(total.work.transcendental), amount(xla.get("transcendental"))),
        ("bytes read and written", amount(total.bytes, "B"), amount(xla.get("bytes"), "B") if xla else "-"),
        ("of these read of arguments", amount(total.arguments, "B"), ""),
        ("operations a byte", f"{total.intensity:.3g}", ""),
        ("fusions that run, in the text", f"{len(report.fusions)}, {report.fusions_in_text}", ""),
    ]
    if report.memory is not None:
        for name in ("peak", "temporaries", "arguments", "outputs", "aliased"):
            rows.append((f"memory: {name}", amount(getattr(report.memory, name), "B"), ""))
    rows += [(f"traced again: {name}", str(number), "") for name, number in report.retraces.items() if number]
    yield "Totals", ("", "counted", "XLA's count, loops once"), rows
    yield (
        "Operators",
        ("operator", "operations", "transcendentals", "read", "written", "operations a byte"),
        [
            (
                name,
                amount(cost.operations),
                amount(cost.work.transcendental),
                amount(cost.read, "B"),
                amount(cost.written, "B"),
                f"{cost.intensity:.3g}",
            )
            for name, cost in report.operators.items()
        ],
    )
    yield (
        "Fusions",
        ("fusion", "operator", "kind", "fused", "times", "bytes"),
        _some(
            (
                (x.name, x.operator, x.kind, _opcodes(x.opcodes), f"{x.times:g}", amount(x.bytes, "B"))
                for x in report.fusions
            ),
        ),
    )
    yield (
        "Custom kernels",
        ("target", "instructions", "times", "operations", "bytes"),
        [
            (x.target, str(x.instructions), f"{x.times:g}", amount(x.operations), amount(x.bytes, "B"))
            for x in report.kernels
        ],
    )
    yield (
        "Collectives",
        ("collective", "operator", "devices", "bytes", "sent by a device", "times"),
        [
            (x.opcode, x.operator, str(x.group), amount(x.bytes, "B"), amount(x.wire, "B"), f"{x.times:g}")
            for x in report.collectives
        ],
    )
    yield (
        "Copies of a megabyte or more",
        ("copy", "of", "operator", "bytes", "times", "source"),
        _some((x.name, x.opcode, x.operator, amount(x.bytes, "B"), f"{x.times:g}", x.source) for x in report.copies),
    )
    yield (
        "Donated, and not taken over",
        ("argument", "form", "bytes", "why"),
        [(x.name, x.shape, amount(x.bytes, "B"), x.reason) for x in report.unaliased],
    )
    unknown: list[tuple[str, ...]] = [(name, "its body is counted once") for name in report.count.unknown_loops]
    unknown += [(name, "its operations are not counted") for name in report.count.unknown_kernels]
    yield "Not known", ("what", "so"), unknown


def changes(difference: Any) -> Iterator[Section]:
    """Give the tables of a difference."""
    for title, pairs, unit in (
        ("Totals", difference.totals, ""),
        ("Bytes by operator", difference.operators, "B"),
        ("Memory", difference.memory, "B"),
        ("Instructions", difference.opcodes, ""),
    ):
        yield title, ("", *difference.names), [(k, amount(a, unit), amount(b, unit)) for k, (a, b) in pairs.items()]
    yield "New fusions", ("fused", "more"), _some((name, str(n)) for name, n in difference.new_fusions.items())
    yield "Fusions gone", ("fused", "fewer"), _some((name, str(n)) for name, n in difference.gone_fusions.items())


def _opcodes(opcodes: Sequence[tuple[str, int]]) -> str:
    return ", ".join(name if n == 1 else f"{name} x{n}" for name, n in opcodes)


def _some(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Give the first rows, and one that says how many more there are."""
    found = list(rows)
    if len(found) <= _SHOWN + 1:
        return found
    more = f"{len(found) - _SHOWN} more"
    return [*found[:_SHOWN], (more, *("",) * (len(found[0]) - 1))]


def markdown(title: str, parts: Iterable[Section]) -> str:
    """Write the sections that have rows in Markdown."""
    lines = [f"# {title}"]
    for name, headers, rows in parts:
        if rows:
            lines += ["", f"## {name}", "", _line(headers), _line(["---"] * len(headers)), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rich_tables(title: str, parts: Iterable[Section]) -> Any:
    """Make a group of rich tables of the sections that have rows."""
    tables: list[Any] = [Text(title, style="bold")]
    for name, headers, rows in parts:
        if rows:
            table = Table(title=name, title_justify="left")
            for i, header in enumerate(headers):
                table.add_column(header, justify="left" if i == 0 else "right", overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))
            tables.append(table)
    return Group(*tables)

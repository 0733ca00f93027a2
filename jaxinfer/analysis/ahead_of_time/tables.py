"""An account as tables of text: titles, headers and rows, for a terminal and for a page."""

from collections.abc import Iterator
from typing import Any

from jaxinfer.analysis.ahead_of_time.account import Account, Moved, StepAccount
from jaxinfer.analysis.hlo.render import Section, amount

GIB = 1 << 30
_NAMES = {
    "state": "state beside the cache",
    "padding": "padding of layouts",
    "temporaries": "temporaries of a call",
    "program": "code of the programs",
}


def verdict(account: Account) -> str:
    """Say in a sentence whether it fits."""
    asked = account.asked
    what = (
        f"{asked['model']} of {asked['layers']} layers in {asked['weights']} on {asked['target']}, mesh {asked['mesh']}"
    )
    if account.refused:
        return f"{what}: does not fit: {account.refused}"
    size = f"{account.total / GIB:.2f} of {account.limit / GIB:.2f} GiB a device"
    return f"{what}: {'fits' if account.fits else 'does not fit'}, {size}"


def sections(account: Account) -> Iterator[Section]:
    """Give the tables: memory, programs, collectives, kernels, copies."""
    yield "Memory of a device", ("", "compiled, GiB", "share of the limit", "roofline, GiB"), _memory(account)
    yield (
        "Programs",
        (
            "step",
            "program",
            "compiled in",
            "fusions",
            "sent by a device",
            "roofline",
            "of it collectives",
            "compiler says",
        ),
        [_program(name, step) for name, step in account.steps.items()],
    )
    yield (
        "Collectives of a call",
        ("step", "collective", "operator", "devices", "bytes", "sent by a device", "times", "a layer"),
        [row for name, step in account.steps.items() for row in _collectives(name, step)],
    )
    yield "Kernels and formulations", ("step", "what", "which", "times", "passed over"), list(_kernels(account))
    yield (
        "Copies of a megabyte or more, of a call",
        ("step", "operator", "bytes"),
        [
            (name, operator, amount(size, "B"))
            for name, step in account.steps.items()
            for operator, size in step.copies.items()
        ],
    )


def _memory(account: Account) -> list[tuple[str, ...]]:
    predicted = account.predicted or {}
    theirs = {"weights": ("weights",), "cache": ("kv",), "temporaries": ("activations", "logits", "fresh")}
    rows: list[tuple[str, ...]] = []
    for kind, size in (*account.bytes.items(), ("total", account.total)):
        names = ("total",) if kind == "total" else theirs.get(kind, ())
        said = f"{sum(predicted.get(name, 0.0) for name in names) / GIB:.3f}" if names and predicted else ""
        rows.append((_NAMES.get(kind, kind), f"{size / GIB:.3f}", f"{size / account.limit:.1%}", said))
    return rows


def _program(name: str, step: StepAccount) -> tuple[str, ...]:
    return (
        name,
        step.error or f"{step.program}, {step.tokens} a row{', its text not read' if step.unread else ''}",
        f"{step.compile_seconds:.1f} s",
        str(step.fusions),
        amount(step.wire, "B"),
        _seconds(step.roofline_seconds),
        _seconds(step.roofline_collective_seconds),
        _seconds(step.compiler_seconds),
    )


def _collectives(name: str, step: StepAccount) -> Iterator[tuple[str, ...]]:
    """Give a row for what is alike but for its size; the largest traffic first."""
    groups: dict[tuple[Any, ...], list[Moved]] = {}
    for one in step.collectives:
        groups.setdefault((one.opcode, one.operator, one.group, one.per_layer is None), []).append(one)
    for (opcode, operator, group, outside), alike in sorted(
        groups.items(), key=lambda entry: -sum(x.wire * x.times for x in entry[1])
    ):
        moved, wire, times = (
            sum(values) for values in zip(*((x.bytes * x.times, x.wire * x.times, x.times) for x in alike), strict=True)
        )
        often = "" if outside else f"{sum(x.per_layer or 0.0 for x in alike):g}"
        yield name, opcode, operator, str(group), amount(moved, "B"), amount(wire, "B"), f"{times:g}", often


def _kernels(account: Account) -> Iterator[tuple[str, ...]]:
    for name, step in account.steps.items():
        for kernel in step.kernels:
            yield name, "custom call", kernel.target, f"{kernel.times:g}", ""
        for choice in step.choices:
            yield name, choice.of, choice.name, f"{choice.calls} traced", choice.reason or ""


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"

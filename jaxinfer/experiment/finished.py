"""The finished part of a run: rows.jsonl, a line for each row, as `passes.measure` makes them, or for each item."""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import parse_json, read_text, write_atomic

MOST_BYTES = 1 << 30
LARGEST = 2**63  # numbers are smaller, and finite
_NUMBER, _MAPPING = (int, float), (dict, type(None))
_ROW: dict[str, Any] = {
    "name": str,
    "method": dict,
    "policy": _MAPPING,
    "sampling": _MAPPING,
    "prompts": list,
    "dtype": str,
    "decode_rates": list,
    "baseline_rates": list,
    "prefill_rates": list,
    "bandwidths": list,
    "tokens_per_step": _NUMBER,
    "compile_seconds": _NUMBER,
    "weight_bytes": int,
    "cache_bytes": int,
    "temp_bytes": int,
    "peak_rss_bytes": (int, type(None)),
}
_PROMPT: dict[str, Any] = {
    "family": str,
    "prompt": str,
    "output": str,
    "tokens": list,
    "steps": int,
    "emitted": int,
}
_RATES = ("decode_rates", "baseline_rates", "prefill_rates", "bandwidths")


def check_item(line: Any, where: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    """Check that `line` is that of a finished item, {"item": name, "rows": [...]}, and no other. Raises InputError."""
    _fields(line, {"item": str, "rows": list}, where, "", "item")
    if not all(isinstance(row, dict) for row in line["rows"]):
        raise InputError(f"{where}: is no finished item: rows must be a list of mappings, got {shown(line['rows'])}")
    if any(line["item"] == other["item"] for other in before):
        raise InputError(f"{where}: item {shown(line['item'])} is there twice; remove one of them")
    return line


def workload(row: Mapping[str, Any]) -> Any:
    """Give the label of a row's workload; None where all rows have the same."""
    axes = row.get("axes")
    return axes.get("workload") if isinstance(axes, dict) else None


def check(row: Any, where: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    """Check that `row` is a finished one of the same run as those before it. Raises InputError."""
    _fields(row, _ROW, where, "")
    if not isinstance(row["method"].get("name"), str):
        raise InputError(f"{where}: is no finished row: method.name must be text")
    for key in _RATES:
        if not row[key] or not all(_is(rate, _NUMBER) for rate in row[key]):
            raise InputError(f"{where}: is no finished row: {key} must be a list of numbers, got {shown(row[key])}")
        if len(row[key]) != len(row["decode_rates"]):
            raise InputError(f"{where}: is no finished row: {key} and decode_rates have different lengths")
    temperature = (row["sampling"] or {}).get("temperature", 0.0)
    if not _is(temperature, _NUMBER):
        raise InputError(f"{where}: is no finished row: sampling.temperature is {shown(temperature)}")
    axes = row.get("axes", {})
    if not isinstance(axes, dict) or not all(isinstance(label, str) for label in axes.values()):
        raise InputError(f"{where}: is no finished row: axes is {shown(axes)}")
    if not row["prompts"]:
        raise InputError(f"{where}: is no finished row: prompts is empty")
    for index, prompt in enumerate(row["prompts"]):
        _fields(prompt, _PROMPT, where, f"prompts.{index}")
    alike = [one for one in before if workload(one) == workload(row)]
    if alike and len(alike[0]["prompts"]) != len(row["prompts"]):
        raise InputError(f"{where}: has {len(row['prompts'])} prompts, and the first row {len(alike[0]['prompts'])}")
    if any(row["name"] == other["name"] for other in before):
        raise InputError(f"{where}: row {shown(row['name'])} is there twice; remove one of them")
    return row


Check = Callable[[Any, str, list[dict[str, Any]]], dict[str, Any]]  # a line, where it stands, those before it


def is_failed(line: Any) -> bool:
    """Tell whether a line of rows.jsonl is that of a row, or an item, that failed: {"name": ..., "error": a line}."""
    return isinstance(line, dict) and isinstance(line.get("error"), str)


def name_of(line: dict[str, Any]) -> Any:
    """Give the name of a line: of a row, or of an item."""
    return line.get("name", line.get("item"))


def read_rows(run: Path, check: Check = check) -> list[dict[str, Any]]:
    """Read the finished rows, or items. A last line that a crash left incomplete is as good as absent.

    Raises InputError, which names the line, for one that is damaged or there twice.
    """
    return [line for line in read_lines(run, check) if not is_failed(line)]


def read_lines(run: Path, check: Check = check) -> list[dict[str, Any]]:
    """Read the rows, or items, that are finished and those that failed: see `read_rows`."""
    path = run / "rows.jsonl"
    if not path.exists():
        return []
    *lines, torn = read_text(path, most=MOST_BYTES).split("\n")
    found: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []  # those that did not fail

    def take(text: str, where: str) -> None:
        line = parse_json(text, where)
        if not is_failed(line):
            line = check(line, where, whole)
            whole.append(line)
        found.append(line)

    for number, text in enumerate(lines, start=1):
        if text.strip():
            take(text, f"{path}:{number}")
    if torn:
        with contextlib.suppress(InputError):
            take(torn, str(path))
    return found


def append_row(run: Path, row: dict[str, Any], check: Check = check) -> None:
    """Add one row. The file is rewritten, so that a torn line before it is dropped, and an earlier failure of the row.

    Raises OSError.
    """
    before = [line for line in read_lines(run, check) if not (is_failed(line) and name_of(line) == name_of(row))]
    write_atomic(run / "rows.jsonl", "".join(json.dumps(entry) + "\n" for entry in [*before, row]))


def _fields(value: Any, types: dict[str, Any], where: str, path: str, what: str = "row") -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where}: is no finished {what}: {f'{path} is ' if path else ''}{shown(value)}")
    for key, kind in types.items():
        name = f"{path}.{key}" if path else key
        if key not in value:
            raise InputError(f"{where}: is no finished {what}: {name} is missing")
        if not _is(value[key], kind):
            raise InputError(f"{where}: is no finished {what}: {name} is {shown(value[key])}")


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, int | float):
        return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < LARGEST
    return isinstance(value, kind)

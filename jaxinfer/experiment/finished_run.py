"""A finished run as a comparison reads it: its rows, what failed, its config and the machine."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError, shown_text
from jaxinfer.experiment import compare, finished, ledger_section, noise, table
from jaxinfer.experiment.results import FILES
from jaxinfer.host.files import parse_json, path_of, read_json, read_text
from jaxinfer.host.yaml_text import parse

ROWS, ITEMS = "rows", "items"  # a kind, and what is said of items whose kind is not known
WHAT = "give a folder that `jaxinfer run` made, or its rows.jsonl or results.jsonl"


@dataclass(frozen=True)
class Figure:
    """One figure of a row: its passes, or its one value. better: 1 where more is, -1 where less is, else 0."""

    passes: tuple[float, ...]
    better: int = 0
    timed: bool = False  # by the clock, so that it has noise
    write: Callable[[float], str] = "{:.4g}".format

    @property
    def value(self) -> float:
        """Give the median of the passes."""
        return statistics.median(self.passes)


@dataclass(frozen=True)
class Finished:
    """One run. rows: by name; figures: of each row, by name; notes: what was wrong with its files."""

    label: str
    path: Path
    kind: str
    rows: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, Mapping[str, Figure]]
    failed: Mapping[str, str]
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def read(named: str | Path) -> Finished:
    """Read a run folder, or its rows.jsonl or results.jsonl.

    A last line that was cut off, by a crash or a full disk, is left out and noted. Raises InputError for what is no
    run, and for any other line that is broken, with its number.
    """
    path = path_of(named, "run")
    where = shown_text(str(path))
    if not path.exists():
        raise InputError(f"{where}: there is no such run; {WHAT}")
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        if missing := [name for name in FILES if not (path / name).is_file()]:
            raise InputError(f"{where}: is no run folder, it has no {missing[0]}; {WHAT}")
        path = path / "rows.jsonl"
        if not path.exists():
            raise InputError(f"{where}: no row of this run is finished; go on with it by --resume")
    whole = all((folder / name).is_file() for name in FILES)
    config = parse(read_text(folder / FILES[0]), str(folder / FILES[0])) if whole else {}
    lines, notes = _lines(path)
    kept = [line for line in lines if not _failed(line)]
    if not kept:
        raise InputError(f"{shown_text(str(path))}: has no finished row")
    is_rows = "item" not in kept[0]
    kind = config.get("kind", ROWS) if whole else ROWS if is_rows else ITEMS
    rows = {one["name"]: one for one in kept} if is_rows else _items(kept)
    return Finished(
        label=folder.resolve().name if whole else path.name,
        path=path,
        kind=kind,
        rows=rows,
        figures={name: _figures(row, is_rows) for name, row in rows.items()},
        failed={str(finished.name_of(line)): str(line["error"]) for line in lines if _failed(line)},
        config=config,
        versions=read_json(folder / FILES[1]) if whole else {},
        notes=notes,
    )


def _failed(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("error"), str)


def _lines(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Read and check the lines of a file; of the last one, if it was cut off, only a note is left."""
    text = read_text(path, most=finished.MOST_BYTES)
    found: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    texts = text.split("\n")
    for number, line in enumerate(texts, start=1):
        if not line.strip():
            continue
        where = f"{shown_text(str(path))}:{number}"
        try:
            value = parse_json(line, where)
        except InputError:
            if number == len(texts):  # no line break after it
                return found, (f"{where}: the last line is broken, cut off while it was written; it is left out",)
            raise
        if not isinstance(value, dict):
            raise InputError(f"{where}: is no row: expected an object with a name")
        if not _failed(value):
            whole.append(_checked(value, where, whole))
        found.append(value)
    return found, ()


def _checked(line: dict[str, Any], where: str, before: list[dict[str, Any]]) -> dict[str, Any]:
    if before and ("item" in line) != ("item" in before[0]):
        raise InputError(f"{where}: is a line of another kind of experiment than those before it")
    if "item" in line:
        return finished.check_item(line, where, before)
    if "status" not in line:  # of results.jsonl
        return finished.check(line, where, before)
    if not isinstance(line.get("name"), str):
        raise InputError(f"{where}: is no row of results: expected an object with a name")
    if any(line["name"] == other["name"] for other in before):
        raise InputError(f"{where}: row {shown_text(line['name'])!r} is there twice; remove one of them")
    return line


def _items(lines: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Give the rows of items of another kind by name: that of the item, and the row's place if there are several."""
    return {
        line["item"] if len(line["rows"]) == 1 else f"{line['item']} ({number})": row
        for line in lines
        for number, row in enumerate(line["rows"], start=1)
    }


def _figures(row: Mapping[str, Any], is_rows: bool) -> dict[str, Figure]:
    if not is_rows:
        return _numbers(row) | _ledger(row)
    found = _flat(row) if "status" in row else _raw(row)
    quality = row.get("quality") or row
    for key, name, _ in table.QUALITY[2:]:  # those that are no matter of one run's reference
        if isinstance(quality.get(key), int | float):
            found[name] = Figure((float(quality[key]),), -1 if key in ("kl", "perplexity") else 1)
    return found | _ledger(row)


def _numbers(row: Mapping[str, Any]) -> dict[str, Figure]:
    """Give the numbers of another kind's row: those with a fraction may be noise, and a list of them are passes."""
    found = {}
    for key, value in row.items():
        passes = value if isinstance(value, list) and len(value) > 1 else [value]
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in passes):
            is_exact = all(isinstance(x, int) for x in passes)
            found[key] = Figure(tuple(map(float, passes)), 0, not is_exact)
    return found


def _ledger(row: Mapping[str, Any]) -> dict[str, Figure]:
    """Give the measured time of each stage of a row's ledger, and the share of its bound."""
    found = {}
    for name, stage in ledger_section.stages(row).items():
        found[f"{name}, clock"] = Figure((stage["clock"]["seconds"],), -1, True, ledger_section.milliseconds)
        found[f"{name}, of the bound"] = Figure((ledger_section.share(stage),), 1, True, "{:.0%}".format)
    return found


def _raw(row: Mapping[str, Any]) -> dict[str, Figure]:
    found = {"decode tokens/s": Figure(tuple(row["decode_rates"]), 1, True, table.rate)}
    if not compare.is_baseline(row) and (ratios := noise.ratios(row)):
        found["speedup"] = Figure(tuple(ratios), 1, True, "{:.2f}x".format)
    found["prefill tokens/s"] = Figure(tuple(row["prefill_rates"]), 1, True, table.rate)
    return found | _sizes(row)


def _flat(row: Mapping[str, Any]) -> dict[str, Figure]:
    """Give the figures of a row of results.jsonl, which has the ends of the passes and not the passes."""
    found = {}
    if row.get("decode") is not None:
        decode, low, high = row["decode"], row.get("decode_min"), row.get("decode_max")
        passes = (low, decode, high) if low is not None and high is not None and low < high else (decode,)
        found["decode tokens/s"] = Figure(passes, 1, True, table.rate)
    if row.get("speedup") is not None and row.get("method") != "greedy":
        found["speedup"] = Figure((row["speedup"],), 1, True, "{:.2f}x".format)
    if row.get("prefill") is not None:
        found["prefill tokens/s"] = Figure((row["prefill"],), 1, True, table.rate)
    return found | _sizes(row)


def _sizes(row: Mapping[str, Any]) -> dict[str, Figure]:
    found = {}
    if row.get("tokens_per_step") is not None:
        found["tokens/step"] = Figure((row["tokens_per_step"],), 1, False, "{:.2f}".format)
    names = {"weight_bytes": "weights", "cache_bytes": "cache", "temp_bytes": "temporaries"}
    for key, name in names.items():
        if row.get(key) is not None:
            found[name] = Figure((row[key],), -1, False, table.size)
    return found

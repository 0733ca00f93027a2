"""Runs side by side: a column a run, ratios to the first, and marks of what changed by more than noise.

    compare(["runs/quickstart-20260101-120000", "runs/quickstart-20260102-120000"])    # a notebook shows it as a page

Rows are matched by their names, which in a grid are made of the labels of its axes, and by these labels.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError, shown_text
from jaxinfer.experiment import compare as rows_beside
from jaxinfer.experiment import finished_run, noise, page, sheet
from jaxinfer.experiment.finished_run import ITEMS, ROWS, Figure, Finished
from jaxinfer.experiment.noise import Change
from jaxinfer.experiment.sheet import Table

UNLIKE = ("name", "output")  # keys of a config that explain no difference
FASTER, SLOWER, BETTER, WORSE, CHANGED = "faster", "slower", "better", "worse", "changed"


@dataclass(frozen=True)
class Cell:
    """One figure of one run: its value, None where the run has none; the change from the first run, and its mark."""

    figure: Figure | None
    change: Change | None = None
    mark: str = ""  # empty where it did not change by more than noise


@dataclass(frozen=True)
class Line:
    """One figure of one row in all runs."""

    row: str
    figure: str
    cells: tuple[Cell, ...]

    @property
    def changed(self) -> bool:
        """Tell whether any run has another figure than the first, by more than noise."""
        return any(cell.mark for cell in self.cells)


@dataclass(frozen=True)
class Difference:
    """One key of the configs or of versions.json that is not the same in all runs."""

    what: str
    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. A notebook shows it; `markdown`, `html` and `as_dict` write it."""

    runs: tuple[Finished, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Name the runs, each otherwise."""
        names = [run.label for run in self.runs]
        return tuple(f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1))

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Give a line for each figure of each row that two runs have; figures without noise only where they differ."""
        found = []
        for key in self._keys:
            rows = [self._of(run).get(key) for run in self.runs]
            if sum(row is not None for row in rows) < 2:
                continue
            figures = [run.figures[row] if row is not None else {} for run, row in zip(self.runs, rows, strict=True)]
            for name in dict.fromkeys(itertools.chain(*figures)):
                line = Line(_name(key), name, _cells([one.get(name) for one in figures]))
                if line.changed or any(cell.figure and cell.figure.timed for cell in line.cells):
                    found.append(line)
        return tuple(found)

    @cached_property
    def only(self) -> Mapping[str, tuple[str, ...]]:
        """Give the rows that some runs have and others lack, with the labels of those that have them."""
        found = {}
        for key in self._keys:
            having = tuple(label for label, run in zip(self.labels, self.runs, strict=True) if key in self._of(run))
            if len(having) < len(self.runs):
                found[_name(key)] = having
        return found

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Give what may explain a change: keys of config, software and machine that differ."""
        found = []
        for what, given in (("config", [x.config for x in self.runs]), ("versions", [x.versions for x in self.runs])):
            if not all(given):
                continue
            flat = [_dotted(one) for one in given]
            for key in dict.fromkeys(itertools.chain(*flat)):
                values = tuple(json.dumps(one[key], ensure_ascii=False) if key in one else "-" for one in flat)
                if len(set(values)) > 1 and key not in UNLIKE:
                    found.append(Difference(what, key, tuple(shown_text(value, 60) for value in values)))
        return tuple(found)

    @property
    def texts(self) -> Mapping[str, tuple[str, ...]]:
        """Give, by row, how many prompts of each run have the token ids of the first run's, where not all have."""
        found = {}
        for key in self._keys:
            rows = [run.rows[name] if (name := self._of(run).get(key)) is not None else {} for run in self.runs]
            first = rows[0]
            if not all("prompts" in row for row in rows if row) or not first or rows_beside.is_sampled(first):
                continue
            counts = tuple(_same(first, row) for row in rows)
            if len({count for count in counts if count != "-"}) > 1:
                found[_name(key)] = counts
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what was wrong with the files, and which rows failed."""
        found = [note for run in self.runs for note in run.notes]
        for label, run in zip(self.labels, self.runs, strict=True):
            found += [f"{label}: {name} failed: {error}" for name, error in run.failed.items()]
        return tuple(found)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Say what changed, in words."""
        timed = [line for line in self.lines if any(cell.figure and cell.figure.timed for cell in line.cells)]
        found = []
        for index, label in enumerate(self.labels[1:], start=1):
            changed: dict[str, list[str]] = {}
            for line in timed:
                cell = line.cells[index]
                if cell.mark and cell.change:
                    changed.setdefault(line.row, []).append(f"{line.figure} {cell.change.ratio:.2f}x, {cell.mark}")
            found += [f"{label}: {row}: {'; '.join(words)}." for row, words in changed.items()]
            if timed and not changed:
                found.append(f"{label}: no row is faster or slower than in {self.labels[0]} by more than noise.")
            if any(rows_beside.is_baseline(row) for row in self._baselines if row["name"] in changed):
                found.append(f"{label}: greedy itself has another speed; the machine changes speedups less.")
        alone = [line for line in timed if any(x.change and x.change.passes < 2 for x in line.cells)]
        if alone:
            found.append("Where a figure has one timed pass, nothing can be said of noise.")
        if not self.lines:
            found = ["The runs have no row in common."]
        return tuple(found)

    def table(self) -> Table:
        """Tabulate the lines: a column a run, and after each but the first its ratio to the first, with its mark."""
        first, *others = self.labels
        columns = ["row", "figure", first]
        for label in others:
            columns += [label, "ratio"]
        rows = [
            (line.row, line.figure, *itertools.chain(*(_texts(cell, i) for i, cell in enumerate(line.cells))))
            for line in self.lines
        ]
        return Table(tuple(columns), tuple(rows))

    def tables(self) -> list[Table]:
        """Give all tables: figures, texts that differ, rows that not all runs have, and what may explain changes."""
        found = [self.table()] if self.lines else []
        if self.texts:
            rows = tuple((row, *counts) for row, counts in self.texts.items())
            found.append(Table(("row", *self.labels), rows, "Prompts with the first run's tokens"))
        if self.only:
            only = tuple((row, ", ".join(labels)) for row, labels in self.only.items())
            found.append(Table(("row", "only in"), only, "Rows that not all runs have"))
        if self.differences:
            differing = tuple((f"{one.what}: {one.key}", *one.values) for one in self.differences)
            found.append(Table(("key", *self.labels), differing, "Differences that may explain it"))
        return found

    def markdown(self) -> str:
        """Write the comparison in Markdown."""
        parts = [*(sheet.markdown(table).rstrip() for table in self.tables()), *self.sentences, *self.notes]
        return "\n\n".join([*parts, noise.RULE]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Give all of it as plain data."""
        return {
            "runs": [
                {"label": label, "path": str(run.path), "kind": run.kind}
                for label, run in zip(self.labels, self.runs, strict=True)
            ],
            "lines": [
                {"row": line.row, "figure": line.figure, "runs": [_plain(cell) for cell in line.cells]}
                for line in self.lines
            ],
            "same_tokens": {row: list(counts) for row, counts in self.texts.items()},
            "only": {row: list(labels) for row, labels in self.only.items()},
            "differences": [{"what": x.what, "key": x.key, "values": list(x.values)} for x in self.differences],
            "sentences": list(self.sentences),
            "notes": list(self.notes),
            "rule": noise.RULE,
        }

    def html(self) -> str:
        """Write a page of its own, which loads nothing from anywhere."""
        title = f"{len(self.runs)} runs side by side"
        lead = f"{', '.join(self.labels[1:])}, held to {self.labels[0]}."
        return page.document(title, [f"<h1>{escape(title)}</h1><p class=lead>{escape(lead)}</p>", self._repr_html_()])

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(one)}</li>" for one in (*self.sentences, *self.notes))
        brief = f'<section id="brief" class=brief><h2>In brief</h2><ul>{items}</ul></section>'
        tables = self.tables()
        first = page.table_html(tables.pop(0), noise.RULE, _style) if self.lines else ""
        figures = f'<section id="rows"><h2>Figures</h2>{first}</section>' if first else ""
        return "\n".join(filter(None, [brief, figures, *map(page.table_html, tables)]))

    @property
    def _baselines(self) -> list[Mapping[str, Any]]:
        return [row for row in self.runs[0].rows.values() if isinstance(row.get("method"), Mapping)]

    @property
    def _by_axes(self) -> bool:
        return all("axes" in row or "status" not in row for run in self.runs for row in run.rows.values())

    @property
    def _keys(self) -> list[str]:
        return list(dict.fromkeys(itertools.chain(*(self._of(run) for run in self.runs))))

    def _of(self, run: Finished) -> dict[str, str]:
        """Give the names of a run's rows by what they are matched by."""
        by_axes = self._by_axes
        return {
            json.dumps([name, row.get("axes") if by_axes else None], sort_keys=True): name
            for name, row in run.rows.items()
        }


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Read runs, folders or their rows.jsonl or results.jsonl, and put them side by side: the first is the baseline.

    Raises InputError for a single run, for what is no run, and for runs of different kinds.
    """
    if isinstance(paths, str | Path) or len(paths) < 2:
        raise InputError("compare: takes two runs or more, the first being what the others are held to")
    runs = tuple(finished_run.read(path) for path in paths)
    for run in runs[1:]:
        if not _alike(run.kind, runs[0].kind):
            one, other = (f"{shown_text(str(x.path))}: is a run of kind {x.kind!r}" for x in (run, runs[0]))
            raise InputError(f"{one}, and {other}; compare runs of one kind")
    return Comparison(runs)


def _alike(one: str, other: str) -> bool:
    return one == other or (ITEMS in (one, other) and ROWS not in (one, other))


def _cells(figures: Sequence[Figure | None]) -> tuple[Cell, ...]:
    first = figures[0]
    found = [Cell(first)]
    for figure in figures[1:]:
        if first is None or figure is None:
            found.append(Cell(figure))
            continue
        change = noise.between(first.passes, figure.passes)
        found.append(Cell(figure, change, _mark(first, figure, change)))
    return tuple(found)


def _mark(first: Figure, other: Figure, change: Change | None) -> str:
    if first.timed:
        if change is None or not change.beyond:
            return ""
        return CHANGED if not first.better else FASTER if (change.ratio > 1) == (first.better > 0) else SLOWER
    if first.value == other.value:
        return ""
    if not first.better:
        return CHANGED
    return BETTER if (other.value > first.value) == (first.better > 0) else WORSE


def _style(text: str) -> str:
    """Give the CSS class of a cell: by the mark at its end."""
    mark = text.rpartition(" ")[2]
    return "up" if mark in (FASTER, BETTER) else "down" if mark in (SLOWER, WORSE) else ""


def _texts(cell: Cell, index: int) -> list[str]:
    value = "-" if cell.figure is None else cell.figure.write(cell.figure.value)
    if not index:
        return [value]
    ratio = f"{cell.change.ratio:.2f}x" if cell.change else "-" if cell.figure is None or not cell.mark else ""
    return [value, ", ".join(filter(None, (ratio, cell.mark)))]


def _plain(cell: Cell) -> dict[str, Any]:
    if cell.figure is None:
        return {"value": None}
    found: dict[str, Any] = {"value": cell.figure.value, "passes": list(cell.figure.passes)}
    if cell.change:
        found |= {"ratio": cell.change.ratio, "low": cell.change.low, "high": cell.change.high}
    return found | {"mark": cell.mark}


def _same(first: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if not row or [x["prompt"] for x in row["prompts"]] != [x["prompt"] for x in first["prompts"]]:
        return "-"
    return f"{rows_beside.identical(row, first)}/{len(first['prompts'])}"


def _dotted(value: Any, path: str = "") -> dict[str, Any]:
    """Give the leaves of nested data by their dotted paths."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if inner is None or not value:
        return {path: value}
    below = (_dotted(one, f"{path}.{name}" if path else str(name)) for name, one in inner)
    return {key: leaf for one in below for key, leaf in one.items()}


def _name(key: str) -> str:
    return str(json.loads(key)[0])

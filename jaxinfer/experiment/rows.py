"""The kind `rows`: methods, policies and samplings as the rows of a table, each beside its greedy baseline."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxinfer.experiment import (
    compare,
    finished,
    flat,
    grid,
    heading,
    quality_columns,
    report,
    row_ledger,
    row_profile,
    runner,
    schema,
    session,
    table,
)
from jaxinfer.experiment.grid import Point
from jaxinfer.experiment.kind import Kind, Run
from jaxinfer.experiment.passes import measure
from jaxinfer.experiment.prepare import Ready, batches, encoded, prepare
from jaxinfer.experiment.prompts import Prompt
from jaxinfer.experiment.schema import DecodingSpec, Experiment, ModelSpec, RowSpec
from jaxinfer.experiment.session import Session


def run(
    config: Experiment,
    model,
    prompts: tuple[Prompt, ...],
    resume: Path | None = None,
    console: Console | None = None,
    beside: Callable[[dict[str, Any]], Any] | None = None,
) -> Path:
    """Measure the rows of a config in order, in a new run folder or in `resume`, whose finished rows are kept.

    `model` is `config.model.source` as it was loaded: its context is extended here if the config says so. Returns the
    folder. After each row the row, table.md and report.html are on disk, so an interruption (raised as Interrupted), or
    what cannot be written (Unwritten), costs the row under way and no more. `beside` measures something else: see
    `measure`. Raises InputError, before anything is written, for a prompt that does not fit the model, a context that
    cannot be extended, and any row that cannot be measured; and for a folder that another process writes.
    """
    kind = dataclasses.replace(ROWS, measure=partial(measure_row, beside=beside))
    longer = model if config.axes else runner.extended(model, config.model)
    return runner.measure(kind, config, longer, prompts, resume=resume, console=console).folder


@dataclass(frozen=True)
class Prepared:
    """Token ids of every prompt, and every row of the plan as the engine takes it, by its name."""

    tokens: list[list[int]]
    rows: Mapping[str, Ready]

    @property
    def specs(self) -> list[RowSpec]:
        """Give the rows of the plan, in order."""
        return [ready.row for ready in self.rows.values()]


def prepared(config: Experiment, model: Any, prompts: tuple[Prompt, ...]) -> Prepared | Session:
    """Resolve and check every row, once. Raises InputError for any that cannot be measured on this model.

    Of a grid the models are loaded when their turn comes: a row that cannot be measured fails then.
    """
    if config.axes:
        return session.opened(config, prompts)
    tokens, decoding = encode(model, prompts, config), grid.decoding_of(config.decoding, config.prompts)
    return Prepared(tokens, {row.name: prepare(model, row, tokens, decoding) for row in plan(config)})


def items(config: Experiment, prompts: tuple[Prompt, ...]) -> dict[str, Any]:
    """Name the rows to measure, in order: those of the plan, or the points of a grid."""
    return {one.name: one for one in (grid.points(config) if config.axes else plan(config))}


def measure_row(
    row: RowSpec | Point, run: Run, beside: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Any]:
    """Measure one row, with its baseline in alternation: see `measure`. Its quality too, where that is asked for."""
    if isinstance(row, Point):
        return _measure_point(row, run)
    ready: Prepared = run.ready
    base, decoding = baseline(row, ready.specs), grid.decoding_of(run.config.decoding, run.config.prompts)
    passes = decoding.repeats * (1 if base == row else 2)
    run.expect(len(batches(run.prompts, decoding.batch)) * passes)
    rows = ready.rows[row.name], ready.rows[base.name]
    found = measure(run.model, *rows, run.prompts, ready.tokens, decoding, run.tick, beside)
    found |= _ledger(found, run, run.model, ready.rows[row.name], ready.tokens, decoding)
    found |= _profile(run, run.model, row.name, ready.rows[row.name], ready.tokens, decoding)
    return _with_quality(found, run, run.model, ready.tokens, lambda: run.model)


def _measure_point(point: Point, run: Run) -> dict[str, Any]:
    opened: Session = run.ready
    stand = opened.stand(point)
    passes = point.decoding.repeats * (1 if stand.row.row == stand.baseline.row else 2)
    run.expect(len(batches(stand.prompts, point.decoding.batch)) * passes)
    rows = stand.row, stand.baseline
    found = measure(stand.model, *rows, stand.prompts, stand.tokens, point.decoding, run.tick)
    found["axes"] = dict(point.labels)
    found |= _ledger(found, run, stand.model, stand.row, stand.tokens, point.decoding)
    found |= _profile(run, stand.model, point.name, stand.row, stand.tokens, point.decoding)
    first = grid.reference(point, opened.points)
    return _with_quality(found, run, stand.model, stand.tokens, lambda: opened.model(first or point))


def _ledger(
    found: dict[str, Any], run: Run, model: Any, row: Ready, tokens: list[list[int]], decoding: DecodingSpec
) -> dict[str, Any]:
    if not run.config.ledger:
        return {}
    run.say("measuring the ledger")
    return row_ledger.measured(model, row, found, tokens, decoding, run.say)


def _profile(
    run: Run, model: Any, name: str, row: Ready, tokens: list[list[int]], decoding: DecodingSpec
) -> dict[str, str]:
    if not run.config.profile:
        return {}
    return row_profile.written(model, row, name, tokens, decoding, run.folder, run.say)


def _with_quality(
    found: dict[str, Any], run: Run, model: Any, tokens: list[list[int]], reference_model: Callable[[], Any]
) -> dict[str, Any]:
    """Add what the config asks of a row's quality. reference_model: loads the model of its reference."""
    spec = run.config.quality
    if spec is None:
        return found
    first = compare.reference(found, [*run.rows, found])
    against = None
    if first is not None and spec.divergence:
        against = quality_columns.Against(reference_model(), first, tokens)
    return found | {"quality": quality_columns.measured(spec, found, model, against, run.rows, run.say)}


def check(config: Experiment) -> None:
    """Raise InputError for a file, a model or a mesh that there is not, before anything is loaded."""
    quality_columns.check(config.quality)
    session.check(config)


def model_of(config: Experiment) -> ModelSpec | None:
    """Give the model that all rows share; None for a grid, whose rows have their own."""
    return None if config.axes else config.model


def pages(run: Run, tables: Any, files: Mapping[str, str], summary: str | None) -> dict[str, str]:
    """Make table.md, report.html and results.jsonl."""
    flat_rows = {flat.NAME: flat.text(run.config, run.rows, run.failures, run.folder)}
    return {**report.pages(run, tables, files, summary), **flat_rows}


def _note(row: RowSpec | Point, run: Run) -> str:
    if isinstance(row, Point):
        base: Any = grid.baseline(row, run.ready.points)
        decoding = row.decoding
    else:
        base, decoding = baseline(row, run.ready.specs), run.config.decoding
    most = report.plural(decoding.repeats * (1 if base == row else 2), "timed pass", "timed passes")
    return f"compiling, and {'at most ' if decoding.agree else ''}{most}"


def units(config: Experiment, items: Mapping[str, Any]) -> dict[str, Any]:
    """Name by row what has to stay on one machine, where a row always takes turns with its own baseline.

    Of a grid the rows of what is loaded once; where quality is asked for, all rows with the same reference.
    """
    if not config.axes:
        return {name: "reference" if config.quality else name for name in items}
    points = list(items.values())
    if not config.quality:
        return {point.name: session.key(point) for point in points}
    found = ((point, grid.reference(point, points)) for point in points)
    return {point.name: (first or point).name for point, first in found}


def encode(model, prompts: tuple[Prompt, ...], config: Experiment) -> list[list[int]]:
    """Encode every prompt as token ids, with the chat template if the config asks for it.

    Raises InputError for a model without a tokenizer or a chat template, and for a prompt without tokens, with unknown
    ones, or that leaves no room for the new tokens in the model's context.
    """
    decoding = grid.decoding_of(config.decoding, config.prompts)
    return encoded(model, config.model.source, prompts, config.prompts, decoding)


def plan(config: Experiment) -> list[RowSpec]:
    """Plan the rows to measure: the config's, after a greedy reference for each that has none to compare with."""
    rows = grid.plan(config.rows)
    return grid.greedy_first(rows) if config.quality else rows


def baseline(row: RowSpec, rows: list[RowSpec]) -> RowSpec:
    """Give the greedy row of a plan that `row` is compared with; for that row itself, the first such."""
    key = compare.baseline_key(dataclasses.asdict(row))
    plain = ((other, dataclasses.asdict(other)) for other in rows)
    return next(other for other, found in plain if compare.is_baseline(found) and compare.baseline_key(found) == key)


ROWS = Kind(
    Experiment,
    items=items,
    measure=measure_row,
    table=lambda rows: table.table(compare.summarize(rows)),
    check=check,
    read=partial(schema.validate, also=heading.KEYS, grids=True),
    model=model_of,
    prepare=prepared,
    note=_note,
    summary=lambda run: report.sentence(run.config, run.rows),
    pages=pages,
    failure=lambda row: {"axes": dict(row.labels)} if isinstance(row, Point) else {},
    texts=session.texts,
    units=units,
    key="name",
    unit="row",
    finished=finished.check,
)

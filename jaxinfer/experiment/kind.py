"""A kind of experiment: what its file declares, and what the runner gives to it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError, shown
from jaxinfer.experiment import finished, page
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import Prompt
from jaxinfer.experiment.schema import ModelSpec
from jaxinfer.experiment.sheet import Table

Row = dict[str, Any]
Prompts = tuple[Prompt, ...]


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True)
class Run:
    """The parts of a run that a kind's functions are given.

    model: what `config.model` names, with its extras, or None; prompts: those of `config.prompts`, or none; ready: what
    the kind's `prepare` made of them; rows: the finished ones, those of earlier sittings too; failures: lines of those
    that failed, {name, "error"}.
    """

    config: Any
    folder: Path
    model: Any = None
    prompts: Prompts = ()
    ready: Any = None
    rows: Sequence[Row] = ()
    failures: Sequence[Row] = ()
    say: Callable[[str], None] = _nothing  # a line on the terminal
    expect: Callable[[int], None] = _nothing  # how many ticks this item takes
    tick: Callable[..., None] = _nothing  # one of them is done, or so many


def model_of(config: Any) -> ModelSpec | None:
    """Give the model that a config asks for, where it has a `model`."""
    return getattr(config, "model", None)


def failed_table(failures: Sequence[Row]) -> Table:
    """Tabulate what failed, and why."""
    return Table(("failed", "why"), tuple((str(finished.name_of(one)), one["error"]) for one in failures))


def same_prompts(config: Any, prompts: Prompts) -> Callable[[Row], list[str]]:
    """Say that every row has the prompts of the config."""
    texts = [prompt.text for prompt in prompts]
    return lambda row: texts


@dataclass(frozen=True)
class Kind:
    """The declarations of a file; the runner does the rest: see `runner`.

    config: a frozen dataclass with `name` and `output`, which forbids unknown keys; with `model`, `extras` and
    `prompts`, these are loaded. items(config, prompts): what is measured, by name, in order. measure(item, run): a row
    of plain data, or several, of what has to take turns. table(rows): what is shown of them.

    Where a kind has more to say: check(config) raises InputError, before a model is loaded; read(data, origin) makes
    the config; model(config) is the model to load; prepare(config, model, prompts) makes what all items need, before
    there is a folder; note(item, run) says what an item takes; summary(run) is a sentence; files(run) gives texts by
    the names of their files, after every item; pages(run, tables, files, summary) those of table.md and report.html;
    failed(rows) tells that the command ends with exit code 1; failure(item) says what is kept of one whose measuring
    raised an exception: where it is given the others go on, and the command ends with exit code 1; texts(config,
    prompts) tells of a finished row which prompts it should have; units(config, items) names by item what has to stay
    on one machine, where items may be measured on several. In rows.jsonl an item is a line {"item": name,
    "rows": [...]}, or, where `key` is given, its one row, which has its name under that key; finished(line, where,
    before) checks a line.
    """

    config: type
    items: Callable[[Any, Prompts], Mapping[str, Any]]
    measure: Callable[[Any, Run], Row | list[Row]]
    table: Callable[[Sequence[Row]], Table | Sequence[Table]]
    check: Callable[[Any], None] = _nothing
    read: Callable[[dict[str, Any], Origin], Any] | None = None
    model: Callable[[Any], ModelSpec | None] = model_of
    prepare: Callable[[Any, Any, Prompts], Any] = _nothing
    note: Callable[[Any, Run], str | None] = _nothing
    summary: Callable[[Run], str | None] = _nothing
    files: Callable[[Run], Mapping[str, str] | None] = _nothing
    pages: Callable[[Run, Sequence[Table], Mapping[str, str], str | None], Mapping[str, str]] = page.pages
    failed: Callable[[Sequence[Row]], bool | None] = _nothing
    failure: Callable[[Any], Mapping[str, Any]] | None = None
    texts: Callable[[Any, Prompts], Callable[[Row], list[str]]] = same_prompts
    units: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] | None = None
    key: str | None = None
    unit: str = "item"
    finished: Callable[[Any, str, list[Row]], Row] = finished.check_item

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self.config) if dataclasses.is_dataclass(self.config) else ()
        missing = [key for key in ("name", "output") if key not in {field.name for field in fields}]
        if missing:
            raise InputError(f"config={shown(self.config)} must be a frozen dataclass with a field {missing[0]!r}")
        if getattr(self.config, "__pydantic_config__", {}).get("extra") != "forbid":
            line = "__pydantic_config__ = FORBID_UNKNOWN_KEYS"
            raise InputError(f"config {self.config.__name__}: must forbid unknown keys: write {line!r} into it")

    def tables(self, rows: Sequence[Row], failures: Sequence[Row] = ()) -> list[Table]:
        """Give the tables of finished rows, none before the first, and one of those that failed."""
        made = self.table(rows) if rows else []
        tables = [made] if isinstance(made, Table) else list(made)
        return [*tables, failed_table(failures)] if failures else tables

    def line(self, name: str, found: Row | list[Row]) -> dict[str, Any]:
        """Give what rows.jsonl holds of an item."""
        if self.key is None:
            return {"item": name, "rows": found if isinstance(found, list) else [found]}
        if isinstance(found, list):
            raise TypeError(f"{name}: one row is kept under {self.key!r}")
        return found

    def rows(self, lines: Sequence[dict[str, Any]]) -> list[Row]:
        """Give the rows that lines of rows.jsonl hold."""
        return list(lines) if self.key else [row for line in lines for row in line["rows"]]

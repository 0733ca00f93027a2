"""Measure when a method that guesses pays: the time of a decode step by its width, over batch sizes.

    jaxinfer run configs/when_it_pays.yaml
    jaxinfer run configs/when_it_pays.yaml batches=[1] widths=[1,2,4,8]

A step over w tokens that takes r times as long as one over a single token pays if it emits more than r tokens. For a
chain of guesses that are each right with probability a this is (1 - a^w) / (1 - a) > r.

To the step of a method the time of its guesses is added, measured in the answers to `prompts`. What comes out is the
`break_even` that `Adaptive` takes: how many tokens a step has to emit, and how many of its guesses that is.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jaxinfer
from jaxinfer.analysis.step_cost import acceptance_to_break_even, propose_seconds, step_seconds, widths_of
from jaxinfer.decoding.checks import check_needs
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, lines, registry, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import token_ids
from jaxinfer.experiment.schema import ExtraSpec, ModelSpec, PromptSpec
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Config:
    """`live`: tokens of each row in the cache; `rounds`: measurements of each width, in turn, of `steps` steps."""

    name: str
    model: ModelSpec
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    widths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    live: int = 256
    rounds: int = 5
    steps: int = 12
    methods: dict[str, str | dict[str, Any]] = field(default_factory=dict)  # by a name of your choice
    prompts: PromptSpec = field(default_factory=PromptSpec)  # what methods guess after
    extras: dict[str, ExtraSpec] = field(default_factory=dict)  # what they need
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for numbers that cannot be measured."""
        for key in ("batches", "widths"):
            values = getattr(self, key)
            if not values or min(values) < 1:
                raise InputError(f"{key}={list(values)} must be whole numbers from 1")
        for key in ("live", "rounds", "steps"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)} must be at least 1")
        if 1 not in self.widths:
            raise InputError(f"widths={list(self.widths)} must hold 1, with which the others are compared")
        methods_of(self)


def methods_of(config: Config) -> dict[str, Any]:
    """Make the methods by name. Raises InputError for one that makes no guesses, or that needs what `extras` lack."""
    found = {name: registry.method(spec, ("methods", name), Origin("config")) for name, spec in config.methods.items()}
    for name, method in found.items():
        if method.width < 2:
            raise InputError(f"methods.{name}: makes no guesses")
        if missing := [need for need in method.needs if need.split(".")[0] not in config.extras]:
            raise InputError(f"methods.{name}: needs extras.{missing[0]}")
    return found


def of_batch(config: Config, seconds: Mapping[int, float], batch: int) -> list[dict[str, Any]]:
    """Measure by width the seconds of a step, the ratio to width 1, and the acceptance where a chain breaks even."""
    rows = []
    for width, value in sorted(seconds.items()):
        if width not in config.widths:
            continue
        ratio = value / seconds[1]
        pays_from = acceptance_to_break_even(ratio, width)
        rows.append({"batch": batch, "width": width, "seconds": value, "ratio": ratio, "pays_from": pays_from})
    return rows


def of_methods(
    methods: Mapping[str, Any],
    model: jaxinfer.Model,
    seconds: Mapping[int, float],
    batch: int,
    prompts: list[list[int]],
) -> list[dict[str, Any]]:
    """Measure for each method and width of its steps the seconds of its guesses, and what a step has to bring."""
    rows = []
    for name, method in methods.items():
        guesses = propose_seconds(model, method, [list(itertools.islice(itertools.cycle(prompts), batch))])
        for width in sorted(set(widths_of(method))):
            tokens = (seconds[width] + guesses) / seconds[1]
            share = (tokens - 1) / (width - 1)
            rows.append({"batch": batch, "method": name, "width": width, "guesses": guesses, "tokens": tokens})
            rows[-1]["share"] = share if share <= 1 else None
    return rows


@dataclass(frozen=True)
class Ready:
    """The methods by name, the prompts that they guess after, and all widths to measure."""

    methods: dict[str, Any]
    tokens: list[list[int]]
    widths: tuple[int, ...]


def prepare(config: Config, model: jaxinfer.Model, prompts: Prompts) -> Ready:
    """Make the methods and widths ready. Raises InputError for a method that the model cannot be decoded with."""
    methods = methods_of(config)
    if methods and model.tokenizer is None:
        raise InputError(f"model.source: {config.model.source!r} has no tokenizer, which methods need")
    tokens = [token_ids(model, prompt, config.prompts.chat) for prompt in prompts] if methods else []
    for method in methods.values():
        check_needs(method, model)
    widths = dict.fromkeys((*config.widths, *(width for one in methods.values() for width in widths_of(one))))
    return Ready(methods, tokens, tuple(widths))


def measure(batch: int, run: Run) -> list[Row]:
    """Measure rows for each width, then for each method."""
    config, ready = run.config, run.ready
    alone = dataclasses.replace(run.model, extras={})
    seconds = step_seconds(alone, ready.widths, batch, config.live, config.rounds, config.steps)
    return of_batch(config, seconds, batch) + of_methods(ready.methods, run.model, seconds, batch, ready.tokens)


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Split the rows into those of widths and those of methods."""
    return [row for row in rows if "method" not in row], [row for row in rows if "method" in row]


def methods_table(rows: Sequence[Row]) -> Table:
    """Tabulate a row for each method and width of its steps; under each batch size what a step has to emit."""
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    cells = {(row["method"], row["width"], row["batch"]): row for row in rows}
    shown = []
    for name, width in dict.fromkeys((row["method"], row["width"]) for row in rows):
        found = [cells[name, width, batch] for batch in batches]
        shares = ("never" if row["share"] is None else f"{row['share']:.0%}" for row in found)
        texts = (f"{row['tokens']:.2f} ({share})" for row, share in zip(found, shares, strict=True))
        shown.append((name, str(width), *texts))
    title = "tokens that a step has to emit to break even, and the share of its guesses that this is"
    return Table(("method", "width", *(f"batch {batch}" for batch in batches)), tuple(shown), title)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Tabulate a row for each batch size and width; and the table of methods, where there are any."""

    def pays(row: Row) -> str:
        return "-" if row["width"] == 1 else "never" if row["pays_from"] is None else f"{row['pays_from']:.2f}"

    widths, methods = split(rows)
    columns = {
        "batch": "{batch}",
        "width": "{width}",
        "ms a step": lambda row: f"{1e3 * row['seconds']:.1f}",
        "over width 1": "{ratio:.2f}",
        "a chain pays from acceptance": pays,
    }
    return [Table.of(widths, columns), *([methods_table(methods)] if methods else [])]


def files(run: Run) -> dict[str, str]:
    """Give results.json, and charts over the width: the time of a step, and the acceptance at which a chain pays."""
    found, paying = split(run.rows)
    made = {"results.json": json.dumps({"widths": found, "methods": paying}, indent=2) + "\n"}
    for file, key, label in (
        ("cost.svg", "ratio", "time of a step over that of width 1"),
        ("acceptance.svg", "pays_from", "acceptance at which a chain pays"),
    ):
        series = {
            f"batch {batch}": [
                (row["width"], row[key]) for row in found if row["batch"] == batch and row[key] is not None
            ]
            for batch in dict.fromkeys(row["batch"] for row in found)
        }
        made[file] = lines.chart(f"{run.model.name}: {label}", "tokens in a step", label, series, log_x=True)
    return made


KINDS.add(
    "when_it_pays",
    Kind(
        Config,
        items=lambda config, prompts: {f"batch {batch}": batch for batch in config.batches},
        measure=measure,
        table=tables,
        check=Config.check,
        prepare=prepare,
        files=files,
    ),
)

if __name__ == "__main__":
    script.run("when_it_pays", __doc__)

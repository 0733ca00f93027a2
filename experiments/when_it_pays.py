"""When does a method that guesses pay? The time of a decode step by its width, over batch sizes.

    python experiments/when_it_pays.py configs/when_it_pays.yaml
    python experiments/when_it_pays.py configs/when_it_pays.yaml batches=[1] widths=[1,2,4,8]

A step over w tokens that takes r times as long as one over a single token pays if it emits more than r tokens. For a
chain of guesses that are each right with probability a this is (1 - a^w) / (1 - a) > r.

To the step of a method the time of its guesses is added, measured in the answers to `prompts`. What comes out is the
`break_even` that `Adaptive` takes: how many tokens a step has to emit, and how many of its guesses that is.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import jaxinfer
from jaxinfer.analysis.step_cost import acceptance_to_break_even, propose_seconds, step_seconds, widths_of
from jaxinfer.caching import write_atomic
from jaxinfer.decoding.checks import check_needs
from jaxinfer.errors import InputError
from jaxinfer.experiment import extras, lines, load_prompts, registry, results, script
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import token_ids
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, ExtraSpec, ModelSpec, PromptSpec, read_as


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
    prompts: PromptSpec = field(default_factory=PromptSpec)  # what methods guess behind
    extras: dict[str, ExtraSpec] = field(default_factory=dict)  # what they need
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def to_mapping(self) -> dict:
        """What config.yaml of a run holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def check(self) -> None:
        """Raises InputError for numbers that cannot be measured."""
        for key in ("batches", "widths"):
            values = getattr(self, key)
            if not values or min(values) < 1:
                raise InputError(f"{key}={list(values)} must be whole numbers from 1")
        for key in ("live", "rounds", "steps"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)} must be at least 1")
        if 1 not in self.widths:
            raise InputError(f"widths={list(self.widths)} must hold 1, with which the others are compared")


def methods_of(config: Config) -> dict[str, Any]:
    """The methods by name. Raises InputError for one that makes no guesses, or that needs what `extras` lack."""
    found = {name: registry.method(spec, ("methods", name), Origin("config")) for name, spec in config.methods.items()}
    for name, method in found.items():
        if method.width < 2:
            raise InputError(f"methods.{name}: makes no guesses")
        if missing := [need for need in method.needs if need.split(".")[0] not in config.extras]:
            raise InputError(f"methods.{name}: needs extras.{missing[0]}")
    return found


def of_batch(config: Config, seconds: Mapping[int, float], batch: int) -> list[dict[str, Any]]:
    """For each width: seconds of a step, the ratio to width 1, and the acceptance at which a chain breaks even."""
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
    """For each method and width of its steps: seconds of its guesses, and what a step has to bring to break even."""
    rows = []
    for name, method in methods.items():
        guesses = propose_seconds(model, method, [list(itertools.islice(itertools.cycle(prompts), batch))])
        for width in sorted(set(widths_of(method))):
            tokens = (seconds[width] + guesses) / seconds[1]
            share = (tokens - 1) / (width - 1)
            rows.append({"batch": batch, "method": name, "width": width, "guesses": guesses, "tokens": tokens})
            rows[-1]["share"] = share if share <= 1 else None
    return rows


def methods_table(rows: list[dict[str, Any]]) -> Table:
    """A row for each method and width of its steps; under each batch size what a step has to emit."""
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    shown = Table("method", "width", *(f"batch {batch}" for batch in batches), box=None)
    cells = {(row["method"], row["width"], row["batch"]): row for row in rows}
    for name, width in dict.fromkeys((row["method"], row["width"]) for row in rows):
        found = [cells[name, width, batch] for batch in batches]
        shares = ("never" if row["share"] is None else f"{row['share']:.0%}" for row in found)
        texts = (f"{row['tokens']:.2f} ({share})" for row, share in zip(found, shares, strict=True))
        shown.add_row(name, str(width), *texts)
    return shown


def table(rows: list[dict[str, Any]]) -> Table:
    """A row for each batch size and width."""
    shown = Table("batch", "width", "ms a step", "over width 1", "a chain pays from acceptance", box=None)
    for row in rows:
        pays = "never" if row["pays_from"] is None else f"{row['pays_from']:.2f}"
        cells = (f"{1e3 * row['seconds']:.1f}", f"{row['ratio']:.2f}", "-" if row["width"] == 1 else pays)
        shown.add_row(str(row["batch"]), str(row["width"]), *cells)
    return shown


def main(path: str, *overrides: str) -> None:
    """Run the experiment: tables on the terminal and in table.txt; results.json and two charts in the run folder."""
    config = read_as(Config, path, overrides)
    config.check()
    methods = methods_of(config)
    prompts = load_prompts(config.prompts, Path(path).parent) if methods else ()
    results.check_writable(config.output)
    model = jaxinfer.load(config.model.source, config.model.dtype, config.model.weights)
    if methods and model.tokenizer is None:
        raise InputError(f"model.source: {config.model.source!r} has no tokenizer, which methods need")
    tokens = [token_ids(model, prompt, config.prompts.chat) for prompt in prompts]
    equipped = extras.attach(model, config.model.source, config.extras)
    for method in methods.values():
        check_needs(method, equipped)
    widths = tuple(dict.fromkeys((*config.widths, *(width for one in methods.values() for width in widths_of(one)))))
    found, paying = [], []
    with Console(stderr=True).status("measuring") as status:
        for batch in config.batches:
            status.update(f"batch {batch}")
            seconds = step_seconds(model, widths, batch, config.live, config.rounds, config.steps)
            found += of_batch(config, seconds, batch)
            paying += of_methods(methods, equipped, seconds, batch, tokens)
    folder = results.new_run(config)
    write_atomic(folder / "results.json", json.dumps({"widths": found, "methods": paying}, indent=2) + "\n")
    for file, key, label in (
        ("cost.svg", "ratio", "time of a step over that of width 1"),
        ("acceptance.svg", "pays_from", "acceptance at which a chain pays"),
    ):
        series = {
            f"batch {batch}": [
                (row["width"], row[key]) for row in found if row["batch"] == batch and row[key] is not None
            ]
            for batch in config.batches
        }
        write_atomic(
            folder / file, lines.chart(f"{model.name}: {label}", "tokens in a step", label, series, log_x=True)
        )
    title = "\ntokens that a step has to emit to break even, and the share of its guesses that this is"
    script.show(folder / "table.txt", table(found), *([title, methods_table(paying)] if paying else []))


if __name__ == "__main__":
    script.run(main, __doc__)

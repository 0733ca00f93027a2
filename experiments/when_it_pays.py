"""When does a method that guesses pay? The time of a decode step by its width, over batch sizes.

    python experiments/when_it_pays.py configs/when_it_pays.yaml
    python experiments/when_it_pays.py configs/when_it_pays.yaml batches=[1] widths=[1,2,4,8]

A step over w tokens that takes r times as long as one over a single token pays if it emits more than r tokens. For a
chain of guesses that are each right with probability a this is (1 - a^w) / (1 - a) > r.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

import jaxinfer
from jaxinfer.analysis.step_cost import acceptance_to_break_even, step_seconds
from jaxinfer.caching import write_atomic
from jaxinfer.errors import InputError
from jaxinfer.experiment import lines, results, script
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, ModelSpec, read_as


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


def of_batch(config: Config, model: jaxinfer.Model, batch: int) -> list[dict[str, Any]]:
    """For each width: seconds of a step, the ratio to width 1, and the acceptance at which a chain breaks even."""
    seconds = step_seconds(model, config.widths, batch, config.live, config.rounds, config.steps)
    rows = []
    for width, value in sorted(seconds.items()):
        ratio = value / seconds[1]
        pays_from = acceptance_to_break_even(ratio, width)
        rows.append({"batch": batch, "width": width, "seconds": value, "ratio": ratio, "pays_from": pays_from})
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """A row for each batch size and width."""
    shown = Table("batch", "width", "ms a step", "over width 1", "a chain pays from acceptance", box=None)
    for row in rows:
        pays = "never" if row["pays_from"] is None else f"{row['pays_from']:.2f}"
        cells = (f"{1e3 * row['seconds']:.1f}", f"{row['ratio']:.2f}", "-" if row["width"] == 1 else pays)
        shown.add_row(str(row["batch"]), str(row["width"]), *cells)
    return shown


def main(path: str, *overrides: str) -> None:
    """Run the experiment: a table on the terminal; results.json, table.txt and two charts in the run folder."""
    config = read_as(Config, path, overrides)
    config.check()
    results.check_writable(config.output)
    model = jaxinfer.load(config.model.source, dtype=config.model.dtype, weights=config.model.weights)
    found = []
    with Console(stderr=True).status("measuring") as status:
        for batch in config.batches:
            status.update(f"batch {batch}")
            found += of_batch(config, model, batch)
    folder = results.new_run(config)
    write_atomic(folder / "results.json", json.dumps(found, indent=2) + "\n")
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
    with Console(record=True, highlight=False) as console:
        console.print(table(found))
        console.print(f"{folder}")
    write_atomic(folder / "table.txt", console.export_text())


if __name__ == "__main__":
    script.run(main, __doc__)

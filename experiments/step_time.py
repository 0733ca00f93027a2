"""How long is a decode step, by the format of the weights and the tokens that it scores, and what did memory allow?

    python experiments/step_time.py configs/step_time.yaml
    python experiments/step_time.py configs/step_time.yaml model=random:llama3-8b "weights=[null, int8, int4]"

All variants are in memory at once and take turns, so that a machine whose speed drifts is the same for each. Beside the
time stand the bytes that a step has to read (weights, and the keys and values in use) over it, as a share of the
bandwidth at which the machine only reads, measured before and behind; and the time over that of the first variant.
"""

import dataclasses
import json
import statistics
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

import jaxinfer
from jaxinfer.analysis.measure import read_bandwidth
from jaxinfer.analysis.step_cost import in_turn, standing
from jaxinfer.caching import write_atomic
from jaxinfer.config import WeightFormat
from jaxinfer.errors import InputError
from jaxinfer.experiment import results, script
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, ModelSpec, read_as
from jaxinfer.transform import quantize_weights


@dataclass(frozen=True)
class Config:
    """What is measured: see configs/step_time.yaml."""

    name: str
    model: ModelSpec
    weights: tuple[WeightFormat | Literal["bfloat16"] | None, ...] = (None, "bfloat16", "int8", "int4")
    widths: tuple[int, ...] = (1, 8)
    batches: tuple[int, ...] = (1,)
    live: tuple[int, ...] = (128,)
    rounds: int = 9
    steps: int = 16
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def to_mapping(self) -> dict[str, Any]:
        """What config.yaml of a run holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def check(self) -> None:
        """Raises InputError for what cannot be measured."""
        for name in ("weights", "widths", "batches", "live"):
            if not getattr(self, name):
                raise InputError(f"{name}: give at least one value")
        for name in ("widths", "batches", "live"):
            if min(getattr(self, name)) < 1:
                raise InputError(f"{name}: {min(getattr(self, name))} must be 1 or above")
        if min(self.rounds, self.steps) < 1:
            raise InputError("rounds and steps must be 1 or above")
        if self.model.weights:
            raise InputError("model.weights: leave it out; the formats that are compared stand under weights")


def as_format(config: Config, plain: jaxinfer.Model, name: str | None) -> jaxinfer.Model:
    """The model with weights of that format."""
    if name == "bfloat16":
        return jaxinfer.load(config.model.source, name)
    return quantize_weights(plain, name) if name else plain


def measured(config: Config, models: dict[str, jaxinfer.Model], batch: int, live: int) -> list[dict[str, Any]]:
    """A row for each format and width."""
    most = config.steps * (config.rounds + 2)
    running = {
        (name, width): standing(model, width, batch, live, most)
        for name, model in models.items()
        for width in config.widths
    }
    taken = in_turn(running, config.rounds, config.steps)
    first = taken[next(iter(running))]
    rows = []
    for (name, width), seconds in taken.items():
        row = {"weights": name, "batch": batch, "live": live, "width": width, "seconds": statistics.median(seconds)}
        row["best_seconds"] = min(seconds)
        row["bytes"] = running[name, width].stats().step_bytes
        row["ratio"] = statistics.median(a / b for a, b in zip(seconds, first, strict=True))
        rows.append(row)
    return rows


def main(path: str, *overrides: str) -> None:
    """Run the experiment: a table on the terminal; results.json and table.txt in the run folder."""
    config = read_as(Config, path, overrides)
    config.check()
    results.check_writable(config.output)
    plain = jaxinfer.load(config.model.source, config.model.dtype)
    models = {name or plain.dtype: as_format(config, plain, name) for name in config.weights}
    before, found = read_bandwidth(), []
    with Console(stderr=True).status("measuring") as status:
        for batch in config.batches:
            for live in config.live:
                status.update(f"batch {batch}, {live} tokens in the cache")
                found += measured(config, models, batch, live)
    bandwidth = max(before, read_bandwidth())
    for row in found:
        row["of_bandwidth"] = row["bytes"] / row["seconds"] / bandwidth
    folder = results.new_run(config)
    record = {"read_bytes_per_s": bandwidth, "rows": found}
    write_atomic(folder / "results.json", json.dumps(record, indent=2) + "\n")
    shown = [
        row | {"ms": 1e3 * row["seconds"], "best": 1e3 * row["best_seconds"], "mb": row["bytes"] / 1e6} for row in found
    ]
    with Console(record=True, highlight=False) as console:
        console.print(f"{plain.name}: the machine reads {bandwidth / 1e9:.1f} GB/s")
        columns = {"weights": "{weights}", "batch": "{batch}", "live": "{live}", "width": "{width}", "ms": "{ms:.2f}"}
        columns |= {"best": "{best:.2f}", "over_the_first": "{ratio:.2f}", "MB": "{mb:.0f}"}
        console.print(script.table(shown, **columns, of_bandwidth="{of_bandwidth:.0%}"))
        console.print(f"{folder}")
    write_atomic(folder / "table.txt", console.export_text())


if __name__ == "__main__":
    script.run(main, __doc__)

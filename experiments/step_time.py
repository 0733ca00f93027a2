"""Measure a decode step by the format of the weights and the tokens that it scores, beside what memory allows.

    jaxinfer run configs/step_time.yaml
    jaxinfer run configs/step_time.yaml model=random:llama3-8b "weights=[null, int8, int4]"

All variants are in memory at once and take turns, so that a machine whose speed drifts is the same for each. Beside the
time stand the bytes that a step has to read (weights, and the keys and values in use) over it, as a share of the
bandwidth at which the machine only reads, measured before and after; and the time over that of the first variant.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import jaxinfer
from jaxinfer.analysis.measure import read_bandwidth
from jaxinfer.analysis.step_cost import in_turn, standing
from jaxinfer.compress import quantize_weights
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, script, spread
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.experiment.schema import ModelSpec
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.weights.formats import FORMATS


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/step_time.yaml."""

    name: str
    model: ModelSpec
    weights: tuple[str | None, ...] = (None, "bfloat16", "int8", "int4")
    widths: tuple[int, ...] = (1, 8)
    batches: tuple[int, ...] = (1,)
    live: tuple[int, ...] = (128,)
    rounds: int = 9
    steps: int = 16
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        for name in ("weights", "widths", "batches", "live"):
            if not getattr(self, name):
                raise InputError(f"{name}: give at least one value")
        for name in ("widths", "batches", "live"):
            if min(getattr(self, name)) < 1:
                raise InputError(f"{name}: {min(getattr(self, name))} must be 1 or above")
        if min(self.rounds, self.steps) < 1:
            raise InputError("rounds and steps must be 1 or above")
        for name in self.weights:
            if name not in (None, "bfloat16"):
                FORMATS.find(name, "weights")
        if self.model.weights:
            raise InputError("model.weights: leave it out; the formats that are compared stand under weights")
        spread.check(self.model)


def as_format(config: Config, plain: jaxinfer.Model, name: str | None) -> jaxinfer.Model:
    """Give the model with weights of that format."""
    if name == "bfloat16":
        return jaxinfer.load(config.model.source, name)
    return quantize_weights(plain, name) if name else plain


def on_one_device(config: Config) -> ModelSpec:
    """Give the model as it is loaded: its formats are made of it before they are spread over a mesh."""
    return dataclasses.replace(config.model, mesh=None, pad_heads=False)


def items(config: Config, prompts: Prompts) -> dict[str, tuple[int, int]]:
    """List rows and tokens of a cache; in each, formats and widths take turns."""
    return {f"batch {n}, {live} tokens in the cache": (n, live) for n in config.batches for live in config.live}


@dataclass(frozen=True)
class Ready:
    """The model by the format of its weights, and the bandwidth measured before: bytes a second."""

    models: dict[str, jaxinfer.Model]
    bandwidth: float


def prepare(config: Config, model: jaxinfer.Model, prompts: Prompts) -> Ready:
    """Put all formats into memory at once."""
    models = {name or model.dtype: as_format(config, model, name) for name in config.weights}
    if over := spread.Spread.of_model(config.model):
        models = {name: over.over(one) for name, one in models.items()}
    return Ready(models, read_bandwidth())


def measure(item: tuple[int, int], run: Run) -> list[Row]:
    """Measure a row for each format and width."""
    batch, live = item
    config: Config = run.config
    running = {
        (name, width): standing(model, width, batch, live, config.steps * (config.rounds + 2))
        for name, model in run.ready.models.items()
        for width in config.widths
    }
    taken = in_turn(running, config.rounds, config.steps)
    first = taken[next(iter(running))]
    bandwidth = max(run.ready.bandwidth, read_bandwidth())
    rows = []
    for (name, width), seconds in taken.items():
        row: Row = {
            "weights": name,
            "batch": batch,
            "live": live,
            "width": width,
            "seconds": statistics.median(seconds),
        }
        row["best_seconds"] = min(seconds)
        row["bytes"] = running[name, width].stats().step_bytes
        row["ratio"] = statistics.median(a / b for a, b in zip(seconds, first, strict=True))
        rows.append(row | {"read_bytes_per_s": bandwidth})
    return rows


def of_bandwidth(rows: Sequence[Row]) -> tuple[float, list[Row]]:
    """Give the best bandwidth that was measured, in bytes a second, and the rows with their share of it."""
    best = max(row["read_bytes_per_s"] for row in rows)
    shares = [row | {"of_bandwidth": row["bytes"] / row["seconds"] / best} for row in rows]
    return best, [{key: value for key, value in row.items() if key != "read_bytes_per_s"} for row in shares]


def table(rows: Sequence[Row]) -> Table:
    """Tabulate a line for each format and width."""
    columns = {
        "weights": "{weights}",
        "batch": "{batch}",
        "live": "{live}",
        "width": "{width}",
        "ms": lambda row: f"{1e3 * row['seconds']:.2f}",
        "best": lambda row: f"{1e3 * row['best_seconds']:.2f}",
        "over the first": "{ratio:.2f}",
        "MB": lambda row: f"{row['bytes'] / 1e6:.0f}",
        "of bandwidth": "{of_bandwidth:.0%}",
    }
    return Table.of(of_bandwidth(rows)[1], columns)


def files(run: Run) -> dict[str, str]:
    """Give results.json: all figures."""
    best, rows = of_bandwidth(run.rows)
    return {"results.json": json.dumps({"read_bytes_per_s": best, "rows": rows}, indent=2) + "\n"}


def summary(run: Run) -> str:
    """Name the bandwidth that shares are of, and the mesh."""
    over = spread.Spread.of_model(run.config.model)
    mesh = f" over the mesh {over}" if over else ""
    return f"{run.model.name}{mesh}: the machine reads {of_bandwidth(run.rows)[0] / 1e9:.1f} GB/s"


CALLS = dict(check=Config.check, model=on_one_device, prepare=prepare, files=files, summary=summary)
KINDS.add("step_time", Kind(Config, items, measure, table, **CALLS))

if __name__ == "__main__":
    script.run("step_time", __doc__)

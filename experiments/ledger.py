"""Measure how far models are from what the machine allows, and what takes the rest: a ledger for each setting.

    jaxinfer run configs/ledger.yaml
    jaxinfer run configs/ledger.yaml models=[gemma3-270m] weights=[null] batches=[1,8]

The bound of a step is that of its compulsory bytes at the bandwidth, and of its operations at the peak, both as the
machine has them in the same rounds. What the clock says beyond it is split by operator, with the profiler.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jaxinfer
from jaxinfer.analysis import hardware
from jaxinfer.analysis.ledger import ledger
from jaxinfer.compress import quantize_weights
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.weights.formats import FORMATS

LARGEST = 3  # losses that the table names


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/ledger.yaml."""

    name: str
    models: tuple[str, ...]
    weights: tuple[str | None, ...] = (None, "int8", "int4")
    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (128,)
    hardware: str = hardware.THIS_MACHINE
    steps: int = 2
    rounds: int = 24
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        for name in ("models", "weights", "batches", "contexts"):
            if not getattr(self, name):
                raise InputError(f"{name}: give at least one value")
        for name in ("batches", "contexts"):
            if min(getattr(self, name)) < 1:
                raise InputError(f"{name}: {min(getattr(self, name))} must be 1 or above")
        if min(self.rounds, self.steps) < 1:
            raise InputError("rounds and steps must be 1 or above")
        for name in self.weights:
            if name not in (None, "bfloat16"):
                FORMATS.find(name, "weights")


Item = tuple[str, str | None, int, int]


def items(config: Config, prompts: Prompts) -> dict[str, Item]:
    """List the settings: model, weights, rows, and tokens of each."""
    return {
        f"{model} {weights or 'as loaded'}, batch {batch}, {context} tokens": (model, weights, batch, context)
        for model in config.models
        for weights in config.weights
        for batch in config.batches
        for context in config.contexts
    }


@dataclass
class Ready:
    """The models as loaded, by name, the device, and the one variant that was measured last."""

    models: dict[str, jaxinfer.Model]
    device: hardware.Hardware
    last: tuple[Any, jaxinfer.Model | None] = (None, None)

    def variant(self, name: str, weights: str | None) -> jaxinfer.Model:
        """Give a model in a format of weights. One variant is in memory besides the models."""
        if self.last[0] != (name, weights):
            plain = self.models[name]
            if weights == "bfloat16":
                plain = jaxinfer.load(name, weights)
            self.last = (name, weights), quantize_weights(plain, weights) if weights in FORMATS else plain
        model = self.last[1]
        assert model is not None
        return model


def prepare(config: Config, model: Any, prompts: Prompts) -> Ready:
    """Load the models, and measure the machine if it has not been."""
    return Ready({name: jaxinfer.load(name) for name in config.models}, hardware.get(config.hardware, say=print))


def measure(item: Item, run: Run) -> Row:
    """Measure the ledger of a setting."""
    name, weights, batch, context = item
    model, config = run.ready.variant(name, weights), run.config
    found = ledger(model, context, batch, steps=config.steps, rounds=config.rounds, hardware=run.ready.device)
    row: Row = {"model": name, "weights": model.weights or model.dtype, "batch": batch, "context": context}
    return row | {"ledger": found.as_dict()}


def figures(row: Row, stage: str) -> dict[str, Any]:
    """Give the figures of a stage of a row that a table shows."""
    one = row["ledger"]["stages"][stage]
    physics, clock, losses = one["physics"], one["clock"], one["losses"]
    return {
        **{key: row[key] for key in ("model", "weights", "batch", "context")},
        "bound_by": physics["bound"],
        "bound_ms": 1e3 * physics["seconds"],
        "ms": 1e3 * clock["seconds"],
        "share": clock["share"],
        "losses_ms": sum(loss["milliseconds"] for loss in losses),
        "losses": [f"{loss['name']} {loss['milliseconds']:.2f} ms" for loss in losses[:LARGEST]],
        "why": losses[0]["why"],
    }


def table(rows: Sequence[Row]) -> list[Table]:
    """Tabulate decode steps and prefills, a line for each setting."""
    columns = {
        "model": "{model}",
        "weights": "{weights}",
        "batch": "{batch}",
        "context": "{context}",
        "bound": "{bound_ms:.2f} ms",
        "by": "{bound_by}",
        "clock": "{ms:.2f} ms",
        "of the bound": "{share:.0%}",
        "largest losses": lambda row: "; ".join(row["losses"]),
    }
    made = []
    for stage in ("decode", "prefill"):
        if found := [figures(row, stage) for row in rows if stage in row["ledger"]["stages"]]:
            made.append(Table.of(found, {stage: "{model}", **{k: v for k, v in columns.items() if k != "model"}}))
    return made


def files(run: Run) -> dict[str, str]:
    """Give results.json: the figures of the tables, and the ledgers whole."""
    shown = {
        stage: [figures(row, stage) for row in run.rows if stage in row["ledger"]["stages"]]
        for stage in ("decode", "prefill")
    }
    return {"results.json": json.dumps(shown | {"ledgers": [row["ledger"] for row in run.rows]}, indent=2) + "\n"}


def summary(run: Run) -> str:
    """Say what takes the time of the setting that is furthest from its bound."""
    worst = min(run.rows, key=lambda row: row["ledger"]["stages"]["decode"]["clock"]["share"])
    return f"Furthest from its bound: {worst['model']} {worst['weights']}. {worst['ledger']['sentence']}"


KINDS.add(
    "ledger",
    Kind(Config, items, measure, table, check=Config.check, prepare=prepare, files=files, summary=summary),
)

if __name__ == "__main__":
    script.run("ledger", __doc__)

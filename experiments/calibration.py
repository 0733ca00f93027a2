"""Measure how far operators stay from their roofline on this machine, and how well that predicts other settings.

    jaxinfer run configs/calibration.yaml
    jaxinfer roofline --model smollm2-135m --weights float32 --calibration runs/calibration-.../calibration.csv

Prefills and decode steps under `measure` give the points of a calibration, those under `check` are predicted by it and
measured as well.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jaxinfer
from jaxinfer.analysis import calibrating, hardware
from jaxinfer.analysis.calibrating import Measured
from jaxinfer.analysis.roofline.calibration import Calibration, Point, as_csv
from jaxinfer.compress import quantize_weights
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.weights.formats import FORMATS


@dataclass(frozen=True)
class Settings:
    """Settings of a stage: lengths of prompts; and of decode steps each batch with each context, or given pairs."""

    prefills: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    steps: tuple[tuple[int, ...], ...] = ()  # pairs of batch and context

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    @property
    def pairs(self) -> list[tuple[int, ...]]:
        """List batches with their contexts."""
        return [(batch, context) for batch in self.batches for context in self.contexts] + list(self.steps)


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/calibration.yaml."""

    name: str
    models: tuple[str, ...]
    measure: Settings
    weights: tuple[str | None, ...] = (None, "int8")
    check: Settings = Settings()
    rounds: int = 3
    hardware: str = hardware.THIS_MACHINE
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def checked(self) -> None:
        """Raise InputError for what cannot be measured."""
        for name in ("models", "weights"):
            if not getattr(self, name):
                raise InputError(f"{name}: give at least one value")
        for name in self.weights:
            if name is not None:
                FORMATS.find(name, "weights")
        if not self.measure.prefills or not self.measure.pairs:
            raise InputError("measure: give prefills, and batches with contexts")
        for part in ("measure", "check"):
            settings = getattr(self, part)
            for pair in settings.steps:
                if len(pair) != 2:
                    raise InputError(f"{part}.steps: {list(pair)} must be a batch and a context")
            for number in (*settings.prefills, *(n for pair in settings.pairs for n in pair)):
                if number < 1:
                    raise InputError(f"{part}: {number} must be 1 or above")
        if self.rounds < 1:
            raise InputError(f"rounds: {self.rounds} must be 1 or above")


@dataclass(frozen=True)
class Item:
    """A setting of a model: a prefill of so many tokens, or a decode step of so many rows."""

    model: str
    weights: str | None
    part: str  # measure or check
    tokens: int
    batch: int = 0  # 0: a prefill

    @property
    def name(self) -> str:
        what = f"{self.batch} x {self.tokens}" if self.batch else f"prefill {self.tokens}"
        return f"{self.part} {self.model} {self.weights or 'as loaded'}: {what}"


def items(config: Config, prompts: Prompts) -> dict[str, Item]:
    """List the settings: of each model and format those that are measured, then those that are predicted."""
    found = []
    for model in config.models:
        for weights in config.weights:
            for part in ("measure", "check"):
                settings = getattr(config, part)
                found += [Item(model, weights, part, tokens) for tokens in settings.prefills]
                found += [Item(model, weights, part, context, batch) for batch, context in settings.pairs]
    return {item.name: item for item in found}


@dataclass
class Ready:
    """The device, and the model that was measured last."""

    device: hardware.Hardware
    last: tuple[Any, Any] = (None, None)

    def model(self, name: str, weights: str | None) -> jaxinfer.Model:
        """Give a model with weights in a format; one is in memory."""
        if self.last[0] != (name, weights):
            self.last = None, None
            plain = jaxinfer.load(name)
            self.last = (name, weights), quantize_weights(plain, weights) if weights else plain
        return self.last[1]


def measure(item: Item, run: Run) -> Row:
    """Measure a setting: points of a calibration, or what the points so far predict and the clock."""
    ready, config = run.ready, run.config
    model = ready.model(item.model, item.weights)
    label = model.weights or model.dtype
    if item.batch:
        found = calibrating.step(model, item.batch, item.tokens, ready.device, config.rounds)
    else:
        found = calibrating.prefill(model, item.tokens, ready.device, config.rounds)
    row: Row = {"model": item.model, "weights": label, "part": item.part, "stage": found.stage}
    row |= {"batch": item.batch or 1, "tokens": item.tokens, "seconds": found.seconds}
    if item.part == "measure":
        return row | {"points": [vars(point) for point in found.points(label)]}
    return row | predicted(found, calibration(run.rows, ready.device.name).for_weights(label))


def predicted(found: Measured, known: Calibration) -> Row:
    """Give what the bare roofline and the calibrated one say of a setting."""
    bare, said = (replace(found.roofline, calibration=one).seconds(found.stage) for one in (None, known))
    return {"roofline": bare, "predicted": said, "off": said / found.seconds - 1}


def calibration(rows: Sequence[Row], name: str) -> Calibration:
    """Gather the points of the rows that were measured."""
    points = tuple(Point(**point) for row in rows for point in row.get("points", ()))
    return Calibration(name, points, points[0].weights if points else "")


def table(rows: Sequence[Row]) -> list[Table]:
    """Tabulate what was predicted beside what was measured."""
    checked = [row for row in rows if row["part"] == "check"]
    columns = {
        "model": "{model}",
        "weights": "{weights}",
        "stage": "{stage}",
        "batch": "{batch}",
        "tokens": "{tokens}",
        "roofline": lambda row: f"{1e3 * row['roofline']:.1f} ms",
        "predicted": lambda row: f"{1e3 * row['predicted']:.1f} ms",
        "clock": lambda row: f"{1e3 * row['seconds']:.1f} ms",
        "off": "{off:+.0%}",
    }
    return [Table.of(checked, columns)] if checked else []


def files(run: Run) -> dict[str, str]:
    """Give the calibration as CSV, and what was predicted as JSON."""
    checked = [{key: row[key] for key in row if key != "part"} for row in run.rows if row["part"] == "check"]
    known = calibration(run.rows, run.ready.device.title)
    return {"calibration.csv": as_csv(known), "results.json": json.dumps(checked, indent=2) + "\n"}


def summary(run: Run) -> str | None:
    """Say how far the predictions are off, and how far the bare roofline."""
    checked = [row for row in run.rows if row["part"] == "check"]
    if not checked:
        return None
    off = statistics.median(abs(row["off"]) for row in checked)
    bare = statistics.median(row["seconds"] / row["roofline"] for row in checked)
    return (
        f"{len(checked)} settings that calibration did not see are predicted {off:.0%} off the clock, by median; "
        f"the bare roofline is short by a factor of {bare:.1f}."
    )


KINDS.add(
    "calibration",
    Kind(
        Config,
        items,
        measure,
        table,
        check=Config.checked,
        prepare=lambda config, model, prompts: Ready(hardware.get(config.hardware, say=print)),
        files=files,
        summary=summary,
        unit="setting",
    ),
)

if __name__ == "__main__":
    script.run("calibration", __doc__)

"""Measure the points of a calibration: prefills and decode steps of a loaded model, by class of operators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.ledger.measuring import Running, room, rows_of
from jaxinfer.analysis.ledger.physics import setting_of
from jaxinfer.analysis.ledger.running import Timing
from jaxinfer.analysis.roofline.analysis import Roofline, Stage, analyze
from jaxinfer.analysis.roofline.calibration import REST, Place, Point
from jaxinfer.analysis.roofline.network import operators
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.api import Model
from jaxinfer.runtime.request import Options

LEAST = (
    1e-3  # of its bound is what a class is taken to need that has no instruction of its own: it is fused into others
)


class _Exact:
    """A machine as fast as its roofline, which reads prompts in chunks as every machine does."""

    def slowdowns(self, made: Sequence[Operator], place: Place) -> Mapping[str, float]:
        return {one.kind: 1.0 for one in made}

    def rest(self, place: Place) -> float:
        return 0.0


@dataclass(frozen=True)
class Measured:
    """A stage of a model: its roofline without and with a calibration, and the clock."""

    stage: Stage
    roofline: Roofline
    timing: Timing

    @property
    def seconds(self) -> float:
        return self.timing.seconds

    def points(self, weights: str) -> list[Point]:
        """Give a point for each class of operators, and one for the rest, which no operator accounts for.

        A prompt that is read in several calls gives the mean of these.
        """
        found = self.roofline.stages[self.stage]
        parts = self.roofline.parts(self.stage)
        calls = len(parts)
        places = [Place.of(operators(part), part.decoding) for part in parts]
        tokens, context = (sum(getattr(one, name) for one in places) / calls for name in ("tokens", "context"))
        kinds = {one.operator.name: one.operator.kind for one in found}
        clock = dict.fromkeys(kinds.values(), 0.0)
        rest = self.timing.between + self.timing.host
        for name, seconds in self.timing.operators.items():
            kind = kinds.get(name, "attention" if name.startswith("attention") else None)
            if kind is None:
                rest += seconds
            else:
                clock[kind] += seconds
        bounds = {kind: sum(one.total for one in found if one.operator.kind == kind) for kind in clock}
        where = (weights, self.stage, places[0].width, tokens, context)
        made = [
            Point(kind, *where, bound / calls, max(clock[kind], LEAST * bound) / calls)
            for kind, bound in bounds.items()
            if bound
        ]
        return [*made, Point(REST, *where, 0.0, rest / calls)]


def _running(model: Model, tokens: list[list[int]], steps: int, rounds: int) -> Running:
    asked = Options(room(rounds, steps, 1), ignore_eos=True).checked(model, tokens)
    return Running.begin(model, tokens, asked, steps, rounds)


def prefill(model: Model, tokens: int, hardware: Hardware, rounds: int) -> Measured:
    """Measure the reading of a prompt of which so many tokens are committed."""
    running = _running(model, rows_of(model, tokens + 1, 1), 1, rounds)
    timing = running.prefill(hardware, beside=False).timing
    setting = setting_of(model, running.generation.state.cache).replace(prompt=tokens)
    return Measured("prefill", analyze(model.config, hardware, setting, calibration=_Exact()), timing)


def step(model: Model, batch: int, context: int, hardware: Hardware, rounds: int, steps: int = 8) -> Measured:
    """Measure a decode step of rows that hold about so many tokens each."""
    running = _running(model, rows_of(model, context, batch), steps, rounds)
    timing = running.decode(hardware, beside=False).timing
    middle = round(sum(running.context) / batch)
    setting = setting_of(model, running.generation.state.cache).replace(batch=batch, prompt=middle)
    return Measured("decode", analyze(model.config, hardware, setting, calibration=_Exact()), timing)

"""The analysis of a model on a device in a setting: operators with their times, stages, memory, and what fits."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.roofline import llm_viewer
from jaxinfer.analysis.roofline.arithmetic import over
from jaxinfer.analysis.roofline.calibration import Place
from jaxinfer.analysis.roofline.call import Call
from jaxinfer.analysis.roofline.memory import Memory, memory, most, sum_of
from jaxinfer.analysis.roofline.network import operators
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.analysis.roofline.setting import AXES, Setting
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, shown
from jaxinfer.runtime.placed import chunks

Stage = Literal["prefill", "decode"]
STAGES: tuple[Stage, ...] = ("prefill", "decode")
FIGURES = ("ops", "weights", "read", "written", "kv_read", "kv_written", "wire")
POINTS = 33  # steps of a generation whose times are computed; the others lie between these


class Slowness(Protocol):
    """The slowness of a machine, over its roofline: see `calibration.Calibration`."""

    def slowdowns(self, made: Sequence[Operator], place: Place) -> Mapping[str, float]:
        """Give the time of a call's operators over their roofline, by their class."""

    def rest(self, place: Place) -> float:
        """Give the seconds of a call that no operator accounts for."""


@dataclass(frozen=True)
class Timed:
    """An operator on a device: what bounds it, the rate that this allows, and the time of one call in one layer."""

    operator: Operator
    bound: Literal["memory", "compute", "network"]
    rate: float  # operations/s
    seconds: float

    @property
    def total(self) -> float:
        """Give the seconds of all layers."""
        return self.seconds * float(self.operator.layers)

    def as_dict(self) -> dict[str, Any]:
        one = self.operator
        kinds = ("weights", "read", "written", "kv_read", "kv_written", "wire")
        return {
            "kind": one.kind,
            "layers": one.layers,
            "ops": one.ops,
            "bytes": one.bytes,
            "intensity": one.intensity,
            "bound": self.bound,
            "rate": self.rate,
            "seconds": self.seconds,
            **{name: getattr(one, name) for name in kinds},
        }


def timed(one: Operator, hardware: Hardware, slowdown: float = 1.0) -> Timed:
    """Give the time of an operator: the longer of operations over peak and bytes over bandwidth, or that of its wire.

    Raises InputError for a collective on a device without links.
    """
    if one.wire:
        if hardware.link is None:
            raise InputError(f"{hardware.name}: has no links to other devices: several of them need 'link'")
        return Timed(one, "network", 0.0, one.wire / hardware.link * slowdown)
    peak, bandwidth = hardware.peak(one.bits), hardware.bandwidth
    rate = min(peak, one.intensity * bandwidth) / slowdown
    seconds = max(one.ops / peak, one.bytes / bandwidth) * slowdown
    return Timed(one, "memory" if one.intensity < peak / bandwidth else "compute", rate, seconds)


def joined(one: Timed, other: Timed) -> Timed:
    """Add two calls of one operator in the same layers; what bounds the longer one counts."""
    sums = {name: getattr(one.operator, name) + getattr(other.operator, name) for name in FIGURES}
    seconds, longer = one.seconds + other.seconds, max(one, other, key=lambda timed: timed.seconds)
    operator = replace(longer.operator, **sums)
    return Timed(operator, longer.bound, operator.ops / seconds if seconds else 0.0, seconds)


@dataclass(frozen=True)
class Roofline:
    """A model on a device in a setting. Stages are `prefill` and `decode`: one step, whose context is the prompt."""

    config: ModelConfig
    hardware: Hardware
    setting: Setting
    compat: str | None = None
    calibration: Slowness | None = None

    @cached_property
    def stages(self) -> Mapping[Stage, tuple[Timed, ...]]:
        """Give the operators of each stage, with their times."""
        return {stage: self._timed(stage) for stage in STAGES}

    def call(self, stage: Stage, context: int | None = None) -> Call:
        """Give the forward of a stage: all tokens of the prompts, or a step's `width` after `context` tokens."""
        return call(self.config, self.setting, stage, self.hardware.on_chip, context)

    def _timed(self, stage: Stage, context: int | None = None) -> tuple[Timed, ...]:
        if self.compat:
            made = llm_viewer.operators(self.config, self.setting, stage, self.hardware.on_chip)
            return tuple(timed(one, self.hardware) for one in made)
        if self.calibration is None:
            return tuple(timed(one, self.hardware) for one in operators(self.call(stage, context)))
        found: dict[str, Timed] = {}
        for part in self.parts(stage, context):
            for one in self._slowly(part, self.calibration):
                name = one.operator.name
                found[name] = joined(found[name], one) if name in found else one
        return tuple(found.values())

    def parts(self, stage: Stage, context: int | None = None) -> list[Call]:
        """Give the calls that the engine makes of a stage: a prompt is read in chunks, of whole widths."""
        one = self.call(stage, context)
        if one.decoding:
            return [one]
        found, done = [], 0
        for width in chunks(one.tokens):
            scored = one.scored if done + width >= one.tokens else 0
            found.append(replace(one, tokens=width, context=done + width, scored=scored))
            done += width
        return found

    def _slowly(self, part: Call, calibration: Slowness) -> Iterator[Timed]:
        made = operators(part)
        place = Place.of(made, part.decoding)
        slow = calibration.slowdowns(made, place)
        for one in made:
            yield timed(one, self.hardware, slow[one.kind])
        yield Timed(Operator("rest", "rest"), "memory", 0.0, calibration.rest(place))

    def total(self, stage: Stage, field: str) -> float:
        """Sum a figure of the operators over all layers of a stage, such as `ops` or `weights`."""
        return sum(getattr(one.operator, field) * one.operator.layers for one in self.stages[stage])

    def seconds(self, stage: Stage) -> float:
        """Give the seconds of a stage: its operators one after the other."""
        return sum(one.total for one in self.stages[stage])

    def step_seconds(self, context: int) -> float:
        """Give the seconds of a decode step, its guesses included, whose last sure token sees `context` tokens."""
        alone = sum(one.total for one in self._timed("decode", context))
        return alone * (1 + float(self.setting.draft_cost))

    @cached_property
    def generation(self) -> dict[str, float]:
        """Give the whole generation: steps, seconds, and new tokens a second over all rows of all replicas.

        The steps' contexts grow by what they emit; times between the computed ones are interpolated.
        """
        setting = self.setting
        steps = math.ceil(setting.generate / setting.tokens_per_step)
        seconds = self.seconds("prefill") + self._decode_seconds(steps)
        new = setting.batch * setting.generate
        decode = seconds - self.seconds("prefill")
        found = {"steps": steps, "seconds": seconds, "decode_seconds": decode, "tokens_per_second": new / decode}
        if self.hardware.power is not None:
            devices = math.prod(getattr(setting, axis) for axis in AXES)
            found["joules_per_token"] = self.hardware.power * devices * seconds / new
        return found

    def _decode_seconds(self, steps: int) -> float:
        if self.compat:
            return steps * self.seconds("decode")
        places = sorted({round(i * (steps - 1) / (POINTS - 1)) for i in range(POINTS)})
        times = [self.step_seconds(int(self.setting.prompt + i * self.setting.tokens_per_step)) for i in places]
        total = times[-1]
        for (a, one), (b, other) in itertools.pairwise(zip(places, times, strict=True)):
            n = b - a  # steps a to b - 1, whose times go from `one` nearly to `other`
            total += n * one + (other - one) * (n - 1) / 2
        return total

    def memory(self, stage: Stage) -> Memory | dict[str, Any]:
        """Give the bytes that one device holds in a stage, by kind; with compat, as that tool counts them."""
        made = [one.operator for one in self.stages[stage]]
        if self.compat:
            return llm_viewer.memory(self.config, self.setting, made)
        return memory(self.config, self.setting, self.call(stage), made)

    @cached_property
    def peak_memory(self) -> dict[str, float]:
        """Give the memory of the stage that needs more, by kind and in total."""
        found = [one if isinstance(one, dict) else one.as_dict() for one in map(self.memory, STAGES)]
        return max(found, key=lambda one: one["total"])

    @property
    def fits(self) -> bool:
        """Tell whether the device's memory holds it."""
        return self.peak_memory["total"] <= self.hardware.memory

    def largest_batch(self) -> int:
        """Find the largest batch that fits, in whole replicas; 0: not even one row a replica does."""
        parts = int(self.setting.parts)
        return parts * most(lambda rows: self.replace(batch=rows * parts).fits)

    def longest_prompt(self) -> int:
        """Find the longest prompt that fits with this batch and as many new tokens; 0: not even one token does."""
        return most(lambda prompt: self.replace(prompt=prompt).fits)

    def batch_to_compute_bound(self, operator: str = "up_proj") -> int | None:
        """Find the smallest batch whose decode step bounds an operator by compute; None if none up to 2^20 does."""

        def by_memory(batch: int) -> bool:
            stages = self.replace(batch=batch).stages["decode"]
            return all(one.bound == "memory" for one in stages if one.operator.name == operator)

        found = most(lambda batch: batch < 2**20 and by_memory(batch)) + 1
        return found if found < 2**20 else None

    def replace(self, **changes: Any) -> "Roofline":
        """Give the analysis of a setting that differs in these fields."""
        return replace(self, setting=self.setting.replace(**changes))

    def totals(self, stage: Stage) -> dict[str, float]:
        """Give the sums over all layers of a stage: operations, bytes by what they are of, seconds."""
        found = {name: self.total(stage, name) for name in (*FIGURES, "bytes")}
        found["intensity"] = found["ops"] / found["bytes"]
        found["seconds"] = self.seconds(stage)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Give all figures as plain data: operators by stage, totals, memory."""
        totals: dict[str, Any] = {stage: self.totals(stage) for stage in STAGES}
        stages = {stage: self.memory(stage) for stage in STAGES}
        by_stage = {name: one if isinstance(one, dict) else one.as_dict() for name, one in stages.items()}
        return {
            "model": self.config.family,
            "hardware": self.hardware.name,
            **{stage: {one.operator.name: one.as_dict() for one in self.stages[stage]} for stage in STAGES},
            "totals": totals | {"generation": self.generation},
            "memory": self.peak_memory | by_stage,
        }


def call(config: ModelConfig, setting: Setting, stage: Stage, on_chip: float, context: int | None = None) -> Call:
    """Give the forward of a stage. context: tokens that a step's first token sees, itself too; default: the prompt."""
    if stage == "prefill":
        scored = 1 if setting.prompt_logits else 0
        return Call(config, setting, over(setting.prompt, setting.context), setting.prompt, scored, on_chip, False)
    sees = (setting.prompt if context is None else context) + (setting.width - 1)
    return Call(config, setting, setting.width, sees, setting.width, on_chip, True)


def analyze(
    config: ModelConfig,
    hardware: Hardware,
    setting: Setting,
    compat: str | None = None,
    calibration: Slowness | None = None,
) -> Roofline:
    """Analyze a model on a device. compat: "llm-viewer" for that tool's arithmetic.

    calibration: how much slower than its roofline the device is; prompts are then read in chunks, as the engine does.

    Raises InputError for a setting that the model or the device cannot have.
    """
    if compat not in (None, "llm-viewer"):
        raise InputError(f"compat={shown(compat)} must be 'llm-viewer', or left out")
    check(config, setting)
    if compat:
        if calibration is not None:
            raise InputError("compat='llm-viewer': knows no calibration; leave one of them out")
        llm_viewer.check(config, setting)
        hardware = llm_viewer.as_there(hardware)
    return Roofline(config, hardware, setting, compat, calibration)


def check(config: ModelConfig, setting: Setting) -> None:
    """Raise InputError for devices over which the model's heads, layers or experts do not divide."""
    sizes = {"tensor": ("n_heads", config.n_heads), "pipeline": ("n_layers", config.n_layers)}
    for name, (what, size) in sizes.items():
        devices = getattr(setting, name)
        if isinstance(devices, int) and size % devices:
            raise InputError(f"{name}={devices} does not divide {what}={size}")
    if isinstance(setting.expert, int) and setting.expert > 1:
        experts = [kind.moe.experts for kind in config.kinds if kind.moe]
        if not experts:
            raise InputError(f"expert={setting.expert} must be 1: {config.family} has no experts")
        if experts[0] % setting.expert:
            raise InputError(f"expert={setting.expert} does not divide the {experts[0]} experts")


def sums(made: Sequence[Operator], field: str) -> Any:
    """Sum a figure over operators, numbers or formulas."""
    return sum_of(getattr(one, field) * one.layers for one in made)

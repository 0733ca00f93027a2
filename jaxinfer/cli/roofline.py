"""`jaxinfer roofline`: figures of a model on a device, as tables or JSON."""

import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from jaxinfer.analysis import hardware
from jaxinfer.analysis.roofline import Roofline, Setting, analyze
from jaxinfer.analysis.roofline.analysis import STAGES, Stage, Timed
from jaxinfer.analysis.roofline.calibration import Calibration, load
from jaxinfer.analysis.roofline.formats import FLOATS, kv_storage, weight_storage
from jaxinfer.analysis.roofline.setting import weights_of
from jaxinfer.analysis.roofline.shapes import config_of
from jaxinfer.errors import InputError
from jaxinfer.experiment.progress import stderr, table_console

OPTIONS = {
    "tensor": "tensor_parallel",
    "pipeline": "pipeline_parallel",
    "data": "data_parallel",
    "expert": "expert_parallel",
}
"""The fields of a `Setting` that the command calls otherwise."""


def show(options: Mapping[str, Any], as_json: bool) -> None:
    """Print the analysis that the options of the command ask for. Raises InputError for options that cannot be."""
    found = analysis(options)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
        return
    console = table_console()
    for stage in STAGES:
        console.print(_operators(found, stage), "")
    for line in _lines(found):
        console.print(line, soft_wrap=True, markup=False)


def analysis(options: Mapping[str, Any]) -> Roofline:
    """Make the analysis of the command's options. Raises InputError, which names the option."""
    config = config_of(options["model"])
    device = hardware.get(options["hardware"], say=stderr.print)
    slowness = options["calibration"] and measured(options["calibration"], options["weights"])
    return analyze(config, device, setting_of(options), options["compat"], slowness)


def measured(file: str, weights: str) -> Calibration:
    """Read the calibration of a machine for weights as `--weights` names them. Raises InputError."""
    names = {str(bits): name for name, bits in FLOATS.items()}
    return load(file).for_weights(names.get(weights, weights))


def setting_of(options: Mapping[str, Any]) -> Setting:
    """Make the setting of the command's options. Raises InputError."""
    names = ("batch", "prompt", "generate", "activations", "flash", "width", "draft_cost", "kv_budget")
    given = {name: options[name] for name in names} | {field: options[name] for field, name in OPTIONS.items()}
    weights, group = weight_storage(options["weights"]), options["group"]
    if group is not None:
        if not options["weights"].isdecimal() or weights.bits >= 16:
            raise InputError("--group: goes with --weights in bits below 16; a format has its own")
        if group < 1:
            raise InputError(f"--group: expected a whole number from 1, got {group}")
        weights = weights_of(weights.bits, group)
    if options["compat"]:
        given["weights"], given["kv"] = weights.bits, kv_storage(options["kv"]).bits
    else:
        given["weights"], given["kv"] = weights, kv_storage(options["kv"])
    return Setting(**given, tokens_per_step=tokens_per_step(options["width"], options["acceptance"]))


def tokens_per_step(width: int, acceptance: float | None) -> float:
    """Give the tokens that a step emits on average: (1 - a^width) / (1 - a), Leviathan et al. 2023, equation 1."""
    if acceptance is None:
        return 1.0
    if not 0 <= acceptance <= 1:
        raise InputError(f"--acceptance: expected a number from 0 to 1, got {acceptance:g}")
    return float(sum(acceptance**i for i in range(max(width, 1))))


def _operators(found: Roofline, stage: Stage) -> Table:
    table = Table(title=f"{stage}: {_seconds(found.seconds(stage))}", title_justify="left", box=None, padding=(0, 1))
    table.add_column("operator")
    for name in ("layers", "operations", "bytes", "ops/byte", "bound", "time a layer", "share"):
        table.add_column(name, justify="left" if name == "bound" else "right")
    whole = found.seconds(stage)
    for one in found.stages[stage]:
        table.add_row(*_row(one, whole))
    return table


def _row(one: Timed, whole: float) -> list[str]:
    operator = one.operator
    moved = operator.wire or operator.bytes
    return [
        operator.name,
        f"{operator.layers:g}",
        scaled(operator.ops, ""),
        scaled(moved, "B"),
        f"{operator.intensity:.1f}",
        one.bound,
        _seconds(one.seconds),
        f"{one.total / whole:.1%}" if whole else "",
    ]


def _lines(found: Roofline) -> list[str]:
    setting, device, memory = found.setting, found.hardware, found.peak_memory
    generation = found.generation
    parts = ", ".join(f"{name} {scaled(size, 'B')}" for name, size in memory.items() if name != "total" and size)
    fits = "fits" if memory["total"] <= device.memory else "does not fit"
    lines = [
        f"{device.title}: {scaled(device.bandwidth, 'B/s')}, {scaled(device.peak(16), 'FLOP/s')} in 16 bits",
        f"memory: {scaled(memory['total'], 'B')} of {scaled(device.memory, 'B')}: {fits} ({parts})",
        f"generation: {setting.generate} tokens of {setting.batch} rows in {_seconds(generation['seconds'])}, "
        f"{generation['tokens_per_second']:.1f} tokens/s after the prompt",
    ]
    if not found.compat:
        batch, length = found.largest_batch(), found.longest_prompt()
        lines.append(f"fits at most: batch {batch:,} at this length, prompts of {length:,} tokens at this batch")
    if "joules_per_token" in generation:
        lines.append(
            f"energy: at most {generation['joules_per_token']:.3g} J a token, at the board's {device.power:g} W"
        )
    return lines


def scaled(value: float, unit: str) -> str:
    """Write a number with the prefix that leaves one to three digits before the point."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def _seconds(value: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"

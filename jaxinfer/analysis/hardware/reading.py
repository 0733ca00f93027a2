"""Hardware from YAML: the devices of the package, and files of a user's own."""

import dataclasses
import functools
import math
import typing
from pathlib import Path
from typing import Any

from jaxinfer.analysis.hardware.constants import BITS, OPTIONAL, PLAIN, Hardware, Kind
from jaxinfer.analysis.hardware.interconnect import FIELDS, Interconnect
from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.host.files import path_of, read_text
from jaxinfer.host.yaml_text import MOST_BYTES, parse

DEVICES = Path(__file__).parent / "devices"
NAMES = tuple(sorted(path.stem for path in DEVICES.glob("*.yaml")))
"""The devices of the package."""

ALIASES = {
    "a100": "a100-80gb",
    "a100-40g": "a100-40gb",
    "a100-80g": "a100-80gb",
    "rtx-a6000": "a6000",
    "h100": "h100-sxm",
    "h100-sxm5": "h100-sxm",
    "rtx3090": "rtx-3090",
    "rtx4090": "rtx-4090",
    "rtx5090": "rtx-5090",
    "3090": "rtx-3090",
    "4090": "rtx-4090",
    "5090": "rtx-5090",
    "v4": "tpu-v4",
    "v5e": "tpu-v5e",
    "v5p": "tpu-v5p",
    "v6e": "tpu-v6e",
    "trillium": "tpu-v6e",
    "v7": "tpu-v7",
    "tpu7x": "tpu-v7",
    "ironwood": "tpu-v7",
    "groq": "groq-lpu",
    "lpu": "groq-lpu",
    "ipu": "graphcore-ipu",
    "gc200": "graphcore-ipu",
}
"""Other spellings of them."""

_TEXTS = ("name", "title", "kind")
_KEYS = (*_TEXTS, "flops", *PLAIN, "interconnect", "sources")


def known(name: str) -> str | None:
    """Return the device that a name or an alias means, in either case, with - or _; None for any other name."""
    plain = name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    plain = ALIASES.get(plain, plain)
    return plain if plain in NAMES else None


@functools.cache
def device(name: str) -> Hardware:
    """Return a device of the package."""
    return read_file(DEVICES / f"{name}.yaml")


def read_file(path: str | Path) -> Hardware:
    """Read a YAML file of one device. Raises InputError, which names the file and the key, for what is wrong with it.

    Sizes and rates are plain numbers, in bytes, bytes/s, operations/s and W. `link`, `host_link` and `power` may be
    null. `interconnect` may be left out. So may `sources`, in whole or in part: the file is the source then.
    """
    where = str(path_of(path, "hardware"))
    values = parse(read_text(path, "hardware", most=MOST_BYTES), where)
    return from_values(values, where)


def from_values(values: Any, where: str) -> Hardware:
    """Make a device of what YAML or JSON holds. Raises InputError, which begins with `where`: see `read_file`."""
    values = _mapping(values, where, "hardware is a mapping that starts with 'name: ...'")
    for key in values:
        if key not in _KEYS:
            raise InputError(f"{where}: hardware has no constant {shown(key)}{nearest(str(key), _KEYS)}")
    for key in _KEYS[:-2]:
        if key not in values:
            hint = "; write null where there is none" if key in OPTIONAL else ""
            raise InputError(f"{where}: constant {key!r} is missing{hint}")
    for key in _TEXTS:
        if not isinstance(values[key], str) or not values[key].strip():
            raise InputError(f"{where}: {key}: must be a text, not {shown(values[key])}")
    kinds = typing.get_args(Kind)
    if values["kind"] not in kinds:
        hint = nearest(values["kind"], kinds)
        raise InputError(f"{where}: kind: must be one of {', '.join(kinds)}, not {shown(values['kind'])}{hint}")
    plain = {key: _constant(values[key], where, key, key in OPTIONAL) for key in PLAIN}
    texts: dict[str, Any] = {key: values[key].strip() for key in _TEXTS}
    between = _interconnect(values.get("interconnect"), where)
    found = Hardware(**texts, **plain, flops=_flops(values["flops"], where), sources={}, interconnect=between)
    return dataclasses.replace(found, sources=_sources(values.get("sources"), where, tuple(found.constants())))


def _flops(values: Any, where: str) -> dict[str, float]:
    table = _mapping(values, f"{where}: flops", "operations/s by type, such as {float32: 19.5e12, bfloat16: 312e12}")
    for name in table:
        if name not in BITS:
            raise InputError(
                f"{where}: flops: {shown(name)} is no type of operand: {', '.join(BITS)}{nearest(str(name), BITS)}"
            )
    if "float32" not in table:
        raise InputError(f"{where}: constant 'flops.float32' is missing")
    return {name: _constant(rate, where, f"flops.{name}") for name, rate in table.items()}


def _interconnect(values: Any, where: str) -> Interconnect | None:
    if values is None:
        return None
    table = _mapping(values, f"{where}: interconnect", f"a mapping of {', '.join(FIELDS)}")
    for name in (*table, *FIELDS):
        if name not in FIELDS:
            raise InputError(f"{where}: interconnect has no constant {shown(name)}{nearest(str(name), FIELDS)}")
        if name not in table:
            raise InputError(f"{where}: constant 'interconnect.{name}' is missing")
    for name, least in (("dimensions", 0), ("wraps", 1), ("domain", 1)):
        if isinstance(table[name], bool) or not isinstance(table[name], int) or not least <= table[name] < 2**31:
            raise InputError(
                f"{where}: interconnect.{name}: must be a whole number from {least}, not {shown(table[name])}"
            )
    for name in ("hop", "start"):
        value = table[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"{where}: interconnect.{name}: must be seconds, 0 or above, not {shown(value)}")
    network = _constant(table["network"], where, "interconnect.network", True)
    return Interconnect(table["dimensions"], table["wraps"], table["domain"], table["hop"], table["start"], network)


def _sources(values: Any, where: str, names: tuple[str, ...]) -> dict[str, str]:
    table = {} if values is None else _mapping(values, f"{where}: sources", "a text for each constant")
    for name, text in table.items():
        if name not in names:
            raise InputError(f"{where}: sources: there is no constant {shown(name)}{nearest(str(name), names)}")
        if not isinstance(text, str):
            raise InputError(f"{where}: sources.{name}: must be a text, not {shown(text)}")
    return {name: table.get(name, where) for name in names}


def _constant(value: Any, where: str, name: str, optional: bool = False) -> Any:
    """Return a positive finite number as a float, or None where that may be."""
    if value is None and optional:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value):
        return float(value)
    raise InputError(f"{where}: {name}: must be a positive finite number{' or null' * optional}, not {shown(value)}")


def _mapping(value: Any, where: str, wanted: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        found = "nothing" if value is None else shown(value)
        raise InputError(f"{where}: must be a mapping, not {found}: {wanted}")
    return value

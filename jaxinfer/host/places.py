"""The place of a process among those of a run: as it is given, by the environment, or by its cluster."""

import inspect
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.errors import InputError, shown
from jaxinfer.host.values import whole

TIMEOUT = 120.0  # seconds that processes wait for each other at the beginning
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES")
OPTIONS = ("--coordinator", "--process", "--processes")


@dataclass(frozen=True)
class Place:
    """A process among those of a run. coordinator: "HOST:PORT", where process 0 listens."""

    coordinator: str
    process: int
    processes: int
    devices: tuple[int, ...] | None = None  # of this machine that are this process's; None: all


def place_of(
    coordinator: str | None = None, process: int | None = None, processes: int | None = None, timeout: float = TIMEOUT
) -> Place | None:
    """Find this process among those of a run: as given, by the environment, or by its cluster; None where it is alone.

    Raises InputError for what is incomplete or cannot be.
    """
    given: list[Any] = [coordinator, process, processes]
    names = list(OPTIONS)
    for index, variable in enumerate(VARIABLES):
        if given[index] is None and os.environ.get(variable):
            given[index], names[index] = os.environ[variable], variable
    if given[0] is None and given[1] is None and given[2] in (None, 1, "1"):
        return _found(timeout) if given[2] is None else None
    detected = _found(timeout) if None in given else None
    if detected is not None:
        known = (detected.coordinator, detected.process, detected.processes)
        given = [mine if mine is not None else theirs for mine, theirs in zip(given, known, strict=True)]
    if None in given:
        missing = ", ".join(name for name, value in zip(OPTIONS, given, strict=True) if value is None)
        raise InputError(f"{missing}: must be given with {_listed(names, given)}: a run of several processes needs all")
    count = whole(_number(given[2]), names[2], 1)
    number = whole(_number(given[1]), names[1], 0)
    if number >= count:
        raise InputError(f"{names[1]}={number} must be below {names[2]}={count}: processes are counted from 0")
    if count == 1:
        return None
    address_of(str(given[0]), names[0])
    return Place(str(given[0]), number, count, detected.devices if detected else None)


def _found(timeout: float) -> Place | None:
    """Ask JAX for the cluster that this process was started in; None where it is no part of one, or alone."""
    try:
        from jax._src.clusters import ClusterEnv

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detect = ClusterEnv.auto_detect_unset_distributed_params
            asked: dict[str, Any] = dict.fromkeys(inspect.signature(detect).parameters)
            asked["initialization_timeout"] = int(timeout)
            address, number, process, devices = detect(**asked)[:4]
    except Exception:  # a service that is asked and does not answer: this is no such machine
        return None
    if address is None or number is None or process is None or number < 2:
        return None
    return Place(address, process, number, None if devices is None else tuple(devices))


def address_of(text: str, name: str) -> tuple[str, int]:
    """Read "HOST:PORT". Raises InputError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise InputError(f"{name}={shown(text)} must be HOST:PORT, as in 10.0.0.1:8476")
    return host, int(port)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _listed(names: Sequence[str], given: Sequence[Any]) -> str:
    return ", ".join(name for name, value in zip(names, given, strict=True) if value is not None)

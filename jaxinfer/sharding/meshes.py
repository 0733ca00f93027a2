"""Meshes: as they are written ("data=2,tensor=4"), as JAX makes them, and settled for a model."""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.sharding.rules import LOGICAL, RULES, Rules, rules_of

EXAMPLE = "data=2,tensor=4"
MOST_VIRTUAL = 64  # devices that a CPU is made to show without being asked for as many by name


@dataclass(frozen=True)
class MeshShape:
    """The axes of a mesh and their sizes, the outermost first."""

    axes: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, given: Any) -> "MeshShape":
        """Read "data=2,tensor=4", or a mapping {data: 2, tensor: 4}. Raises InputError for anything else."""
        if isinstance(given, MeshShape):
            return given
        if isinstance(given, Mapping):
            pairs = list(given.items())
        elif isinstance(given, str):
            pairs = []
            for part in given.split(","):
                name, equals, size = (piece.strip() for piece in part.partition("="))
                if not equals:
                    raise InputError(f"mesh {shown(given)}: {shown(part)} must be axis=devices, as in {EXAMPLE}")
                pairs.append((name, int(size) if size.isascii() and size.isdigit() and len(size) < 10 else size))
        else:
            raise InputError(f"mesh={shown(given)} must be written as {EXAMPLE}")
        if not pairs:
            raise InputError(f"a mesh needs an axis, as in {EXAMPLE}")
        rules_of(str(name) for name, _ in pairs)
        for name, size in pairs:
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(f"mesh axis {name}={shown(size)} must be a whole number of devices, 1 or above")
        if len({name for name, _ in pairs}) < len(pairs):
            raise InputError(f"mesh {shown(given)} names an axis twice")
        return cls(tuple(pairs))

    @property
    def size(self) -> int:
        """Count the devices."""
        return math.prod(size for _, size in self.axes)

    @property
    def shape(self) -> dict[str, int]:
        """Give the size of each axis, as `Mesh.shape` does."""
        return dict(self.axes)

    @property
    def rules(self) -> Rules:
        """Join the tables of the axes."""
        return rules_of(self.shape)

    def on(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Lay the mesh on devices. Default: the first of those present, as many as it takes.

        Raises InputError for more devices than present, and for given ones of another number.
        """
        if devices is None:
            present = jax.devices()
            if self.size > len(present):
                raise InputError(f"mesh {self} takes {self.size} devices, and there are {len(present)}; {_more()}")
            devices = present[: self.size]
        if len(devices) != self.size:
            raise InputError(f"mesh {self} takes {self.size} devices, and there are {len(devices)} to lay it on")
        sizes, names = tuple(self.shape.values()), tuple(self.shape)
        return Mesh(np.array(devices, dtype=object).reshape(sizes), names, axis_types=(AxisType.Auto,) * len(names))

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.axes)


def make_virtual(count: int) -> None:
    """Let a CPU show `count` virtual devices, up to `MOST_VIRTUAL`, where that can still be said.

    JAX hears it before its backends start, once. Who has set a number of CPU devices themselves keeps it, and so does a
    process that is one of several. Other platforms have the devices that they have.
    """
    asked = jax.config.values.get("jax_num_cpu_devices", -1) >= 0 or "device_count" in os.environ.get("XLA_FLAGS", "")
    if asked or not 1 < count <= MOST_VIRTUAL or jax.distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # they have started
        jax.config.update("jax_num_cpu_devices", count)


def virtual(mesh: Mesh) -> bool:
    """Tell whether a mesh lies on several devices that are one CPU of this process."""
    here = [device for device in mesh.devices.flat if device.platform == "cpu" and _is_here(device)]
    return len(here) > 1


def _more() -> str:
    """Say how a machine shows more devices than it has, where it can."""
    if jax.default_backend() != "cpu":
        return "take a smaller mesh"
    return "XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight of one CPU"


def settled(mesh: Any, rules: Any) -> Mesh:
    """Return the mesh to spread a model over by these rules: the same devices and names, its axes of the type Auto.

    `jax.make_mesh` gives axes of the type Explicit, for which every operation would have to say how its result lies.
    Raises InputError for what is no mesh or no rules, a device that this process has not, a logical axis that no array
    has, a mesh axis that the rules name and the mesh lacks, and one that it has and no rule names: over it all would be
    replicated.
    """
    if not isinstance(mesh, Mesh) or not mesh.devices.size:
        raise InputError(f"mesh={shown(mesh)} must be a jax.sharding.Mesh of devices, such as jax.make_mesh(...) gives")
    if not isinstance(rules, Rules):
        raise InputError(f"rules={shown(rules)} must be a jaxinfer.sharding.Rules")
    if not any(_is_here(device) for device in mesh.devices.flat):
        device = mesh.devices.flat[0]
        raise InputError(f"mesh: device {shown(device)} is none that this process can use: {shown(jax.devices())}")
    for axis, target in (*rules.table, *rules.at_rest):
        if axis not in LOGICAL:
            known = nearest(str(axis), LOGICAL) or f": {', '.join(LOGICAL)}"
            raise InputError(f"rules {rules.name!r} name {shown(axis)}, an axis of no array{known}")
        if target not in mesh.axis_names and target not in RULES:  # a mesh may do without one of the usual axes
            known = ", ".join(map(repr, mesh.axis_names))
            raise InputError(f"rules {rules.name!r} split {axis!r} over {shown(target)}: the mesh has the axes {known}")
    for name, size in mesh.shape.items():
        if size > 1 and name not in rules.mesh_axes:
            known = ", ".join(map(repr, rules.mesh_axes))
            raise InputError(f"mesh axis {name!r}: rules {rules.name!r} split nothing over it, only over {known}")
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _is_here(device: Any) -> bool:
    """Tell whether this process can put arrays on a device; it cannot on one that is only compiled for."""
    try:
        return device in jax.local_devices(backend=device.platform)
    except RuntimeError:  # no such backend here
        return False

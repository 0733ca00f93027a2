"""Logical axes to mesh axes.

Every parameter, cache leaf and activation names its logical axes where it is defined; a `Rules` table says which mesh
axis each one is split over. The same model then runs on one device, on virtual CPU devices and on a real mesh
(GSPMD, Xu et al. 2021).

Logical axes: batch, tokens, slots, embed, heads, kv_heads, head_dim, latent, mlp, experts, vocab,
positions, layers.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.host.values import typed

LOGICAL = (
    *("batch", "tokens", "slots", "embed", "heads", "kv_heads", "head_dim", "latent", "mlp", "experts", "vocab"),
    *("positions", "layers"),
)

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Rules:
    """A table from logical to mesh axes. A logical axis that is not in it is replicated."""

    name: str
    table: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        typed(self)
        for pair in self.table:
            if len(pair) != 2:
                raise InputError(f"table holds {shown(pair)}: it must hold pairs, ('heads', 'tensor')")

    def spec(self, axes: Axes, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        """Return the layout on the mesh of an array with these logical axes.

        A dimension that its mesh axis does not divide is replicated (SmolLM2 has 9 heads). Raises InputError if two
        dimensions of the array would be split over the same mesh axis.
        """
        table = dict(self.table)
        entries = []
        for axis, size in zip(axes, shape, strict=True):
            target = table.get(axis) if axis else None
            entries.append(target if target in mesh.shape and size % mesh.shape[target] == 0 else None)
        used = [entry for entry in entries if entry]
        if len(used) != len(set(used)):
            raise InputError(f"rules {self.name!r} split two dimensions of {axes} over the same mesh axis: {entries}")
        return PartitionSpec(*entries)


DATA_TENSOR = Rules(
    "data_tensor",
    (("batch", "data"), ("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor")),
)
"""Batch over `data`; heads, feed-forward and vocabulary over `tensor` (Megatron-LM, Shoeybi et al. 2019)."""


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
    for device in mesh.devices.flat:
        if not _is_here(device):
            raise InputError(f"mesh: device {shown(device)} is none that this process can use: {shown(jax.devices())}")
    for axis, target in rules.table:
        if axis not in LOGICAL:
            raise InputError(f"rules {rules.name!r} name {shown(axis)}, an axis of no array{_near(axis, LOGICAL)}")
        # A mesh may do without one of the two usual axes.
        if target not in mesh.axis_names and target not in dict(DATA_TENSOR.table).values():
            known = ", ".join(map(repr, mesh.axis_names))
            raise InputError(f"rules {rules.name!r} split {axis!r} over {shown(target)}: the mesh has the axes {known}")
    for name, size in mesh.shape.items():
        if size > 1 and name not in dict(rules.table).values():
            known = ", ".join(repr(target) for target in dict.fromkeys(dict(rules.table).values()))
            raise InputError(f"mesh axis {name!r}: rules {rules.name!r} split nothing over it, only over {known}")
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _near(word: Any, choices: tuple[str, ...]) -> str:
    return nearest(str(word), choices) or f": {', '.join(choices)}"


def _is_here(device: Any) -> bool:
    """Tell whether this process can put arrays on a device; it cannot on another process's, and one to compile for."""
    try:
        return device in jax.local_devices(backend=device.platform)
    except RuntimeError:  # no such backend here
        return False


@dataclass(frozen=True)
class Sharding:
    """A mesh and the rules to lay arrays on it. Hashable: it is static under jit."""

    mesh: Mesh
    rules: Rules = DATA_TENSOR

    def of(self, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(self.mesh, self.rules.spec(axes, shape, self.mesh))

    def place(self, x, axes: Axes) -> jax.Array:
        return jax.device_put(x, self.of(axes, x.shape))


_ACTIVE: contextvars.ContextVar[Sharding | None] = contextvars.ContextVar("jaxinfer_sharding", default=None)


@contextlib.contextmanager
def use(sharding: Sharding | None) -> Iterator[None]:
    """Let `constrain` lay activations out by this sharding while tracing inside."""
    token = _ACTIVE.set(sharding)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Name the logical axes of an activation; on a mesh this also fixes its layout."""
    sharding = _ACTIVE.get()
    if sharding is None:
        return x
    return jax.lax.with_sharding_constraint(x, sharding.of(axes, x.shape))


def active() -> Sharding | None:
    """Return the layout that the program being traced is for."""
    return _ACTIVE.get()


def device() -> jax.Device:
    """Return a device of the kind that the program being traced is for."""
    sharding = _ACTIVE.get()
    return jax.devices()[0] if sharding is None else sharding.mesh.devices.flat[0]


def platform() -> str:
    """Return the platform that the program being traced is for: "cpu", "gpu" or "tpu"."""
    return device().platform

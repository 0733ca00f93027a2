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

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Rules:
    """A table from logical to mesh axes. A logical axis that is not in it is replicated."""

    name: str
    table: tuple[tuple[str, str], ...]

    def spec(self, axes: Axes, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        """How an array with these logical axes lies on the mesh.

        A dimension that its mesh axis does not divide is replicated (SmolLM2 has 9 heads). Raises ValueError if two
        dimensions of the array would be split over the same mesh axis.
        """
        table = dict(self.table)
        entries = []
        for axis, size in zip(axes, shape, strict=True):
            target = table.get(axis) if axis else None
            entries.append(target if target in mesh.shape and size % mesh.shape[target] == 0 else None)
        used = [entry for entry in entries if entry]
        if len(used) != len(set(used)):
            raise ValueError(f"rules {self.name!r} split two dimensions of {axes} over the same mesh axis: {entries}")
        return PartitionSpec(*entries)


DATA_TENSOR = Rules(
    "data_tensor",
    (("batch", "data"), ("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor")),
)
"""Batch over `data`; heads, feed-forward and vocabulary over `tensor` (Megatron-LM, Shoeybi et al. 2019)."""


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
    """While tracing inside, `constrain` lays activations out by this sharding."""
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
    """The layout that the program being traced is for."""
    return _ACTIVE.get()


def device() -> jax.Device:
    """A device of the kind that the program being traced is for."""
    sharding = _ACTIVE.get()
    return jax.devices()[0] if sharding is None else sharding.mesh.devices.flat[0]


def platform() -> str:
    """What the program being traced is for: "cpu", "gpu" or "tpu"."""
    return device().platform

"""Layouts: a mesh and its rules, and how arrays are laid out by them while a program is traced."""

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding

from jaxinfer.sharding import across
from jaxinfer.sharding.rules import DATA_TENSOR, Axes, Rules

FEW_TOKENS = 64
"""Tokens of a step that are never split: a draft's. Their products wait for weights, which every device reads whole."""


@dataclass(frozen=True)
class Sharding:
    """A mesh and the rules to lay arrays on it. Hashable: it is static under jit."""

    mesh: Mesh
    rules: Rules = DATA_TENSOR

    def of(self, axes: Axes, shape: tuple[int, ...], at_rest: bool = False) -> NamedSharding:
        """Give the layout of an array with these logical axes. at_rest: of a weight that lies there."""
        sized = zip(axes, shape, strict=True)
        axes = tuple(None if axis == "tokens" and size <= FEW_TOKENS else axis for axis, size in sized)
        return NamedSharding(self.mesh, self.rules.spec(axes, shape, self.mesh, at_rest))

    def place(self, x, axes: Axes, at_rest: bool = False) -> jax.Array:
        """Lay an array out."""
        return across.put(x, self.of(axes, x.shape, at_rest))

    def size(self, axis: str) -> int:
        """Count the devices along an axis of the mesh; 1 if it has none of that name."""
        return self.mesh.shape.get(axis, 1)


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


def token_axis(tokens: int) -> str | None:
    """Name the logical axis of rows that begin with so many tokens: "tokens" where those are split, as a prompt's are.

    Rows of folded heads are more than tokens, so that their own number does not tell.
    """
    sharding = _ACTIVE.get()
    is_split = sharding is not None and sharding.of(("tokens",), (tokens,)).spec[0] is not None
    return "tokens" if is_split else None


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

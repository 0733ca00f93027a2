"""Arrays over the devices of several processes: each holds the same values, and puts and reads its own shards.

A process cannot read what lies on another's devices. `fetch` gathers first, so all processes must call it alike.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Lay an array out. On devices of several processes each gives the same array, and its own shards are put there."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return _laid_out((sharding,))([x])[0]
    host = np.asarray(x)
    # Copies: what lies on a device may be donated, and must not share memory with the host's array.
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


def fetch(tree: Any) -> Any:
    """Give the arrays of a tree as numpy arrays, wherever they lie."""
    leaves, form = jax.tree.flatten(tree)
    return jax.tree.unflatten(form, [np.asarray(x) for x in _gathered(leaves)])


def readable(x: jax.Array) -> jax.Array:
    """Give an array that this process can read: the same one, unless parts of it lie on another's devices."""
    return x if not _is_apart(x) else jax.numpy.asarray(fetch(x))


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """Put the arrays of a tree that lie on this process alone on every device of a mesh of several processes."""
    if mesh is None or NamedSharding(mesh, PartitionSpec()).is_fully_addressable:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    is_here = lambda x: isinstance(x, jax.Array) and x.is_fully_addressable  # noqa: E731
    return jax.tree.map(lambda x: put(x, whole) if is_here(x) else x, tree)


def _is_apart(x: Any) -> bool:
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _gathered(leaves: list[Any]) -> list[Any]:
    """Replicate the arrays of which this process has only parts, all in one program."""
    apart = [index for index, x in enumerate(leaves) if _is_apart(x)]
    if not apart:
        return leaves
    found = [leaves[index] for index in apart]
    whole = _laid_out(tuple(NamedSharding(x.sharding.mesh, PartitionSpec()) for x in found))(found)
    gathered = dict(zip(apart, whole, strict=True))
    return [gathered.get(index, x) for index, x in enumerate(leaves)]


@functools.lru_cache(maxsize=256)
def _laid_out(shardings: tuple[NamedSharding, ...]) -> Any:
    return jax.jit(lambda arrays: arrays, out_shardings=list(shardings))

"""Static trees filled with guesses, depth by depth: what methods that draft with heads share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.decoding.checks import fits, takes_trees
from jaxinfer.decoding.trees import from_paths, levels
from jaxinfer.errors import InputError

Paths = tuple[tuple[int, ...], ...]  # see `trees.from_paths`; one path of zeros is a chain

Guess = Callable[[int, np.ndarray, jax.Array], jax.Array]
"""(depth, columns at that depth, tokens i32[B, T'] so far) -> scores [B, columns, M] of what follows each column."""


def check_paths(paths: Paths, deepest: int | None = None) -> None:
    """Raises InputError for what is no tree, or is deeper than heads that guess `deepest` tokens can fill."""
    if not paths or not all(paths):
        raise InputError(f"paths={paths} must hold at least one path, and each at least one rank, such as ((0, 0),)")
    for path in paths:
        if any(rank < 0 for rank in path):
            raise InputError(f"paths: {path} must be ranks from 0, the best guess")
        if deepest is not None and len(path) > deepest:
            raise InputError(f"paths: {path} is {len(path)} deep, and there are {deepest} heads")


def check_branches(method: Any, model: Any) -> None:
    """Raises InputError if the tree of `method.paths` cannot be scored by this model; a chain always can."""
    if parents(method.paths, 1) is None:
        fits(method, model)
    else:
        takes_trees(method, model)


def width(paths: Paths) -> int:
    """Columns of the tree, the root among them."""
    return len(from_paths(paths)[0])


def parents(paths: Paths, batch: int) -> jax.Array | None:
    """i32[B, T] for a draft; None for a chain."""
    parent, _ = from_paths(paths)
    if np.array_equal(parent, np.arange(len(parent)) - 1):
        return None
    return jnp.broadcast_to(jnp.asarray(parent), (batch, len(parent)))


def grow(paths: Paths, pending: jax.Array, vocab: jax.Array, guess: Guess) -> jax.Array:
    """Tokens i32[B, T] of a tree below pending i32[B]: at every column the guess of its rank, of vocab i32[M]."""
    parent, rank = from_paths(paths)
    at = levels(parent)
    tokens = pending[:, None]
    for depth, below in enumerate(at[1:]):
        above = np.unique(parent[below])  # those that have children
        _, best = jax.lax.top_k(guess(depth, above, tokens), int(rank[below].max()) + 1)
        chosen = best[:, np.searchsorted(above, parent[below]), rank[below]]
        tokens = jnp.concatenate([tokens, vocab[chosen]], axis=1)
    return tokens

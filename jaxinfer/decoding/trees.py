"""Token trees: several guesses for each next token, scored in one forward (SpecInfer, Miao et al. 2023, section 3).

A tree is an array of parents i32[B, T]: column t hangs below column parent[t] < t. Column 0 is the root, the pending
token, and its parent is -1. So the first columns of a tree are a tree, and a chain is the tree of parents t - 1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def ancestors(parent: jax.Array) -> jax.Array:
    """bool[B, T, T]: whether column t stands below column s or is it; what token t may see of the others."""
    width = parent.shape[-1]
    sees = jax.nn.one_hot(parent, width, dtype=jnp.float32) + jnp.eye(width)
    for _ in range((width - 1).bit_length()):  # paths of one step, two, four ...
        sees = jnp.minimum(sees @ sees, 1.0)
    return sees > 0


def depths(parent: jax.Array) -> jax.Array:
    """i32[B, T]: steps from the root."""
    return jnp.sum(ancestors(parent), axis=-1, dtype=jnp.int32) - 1


def from_paths(paths: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Parents i32[T] and ranks i32[T] of the tree in which each path goes by the rank of a guess at every depth.

    (0,), (0, 0), (1,) are the best first guess, the best second one below it, and the second best first one (Medusa,
    Cai et al. 2024, section 2.1.2). Paths that are beginnings of others may be left out. The rank of the root is 0.
    """
    nodes = sorted({tuple(path[:n]) for path in paths for n in range(1, len(path) + 1)}, key=lambda p: (len(p), p))
    place = {(): 0, **{node: i for i, node in enumerate(nodes, start=1)}}
    parent = np.array([-1, *(place[node[:-1]] for node in nodes)], np.int32)
    return parent, np.array([0, *(node[-1] for node in nodes)], np.int32)

"""Token trees: several guesses for each next token, scored in one forward (SpecInfer, Miao et al. 2023, section 3).

A tree is an array of parents i32[B, T]: column t hangs below column parent[t] < t. Column 0 is the root, the pending
token, and its parent is -1. So the first columns of a tree are a tree, and a chain is the tree of parents t - 1.
"""

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Rates = Any  # how often guesses are right: numbers by rank, or by depth and rank


def ancestors(parent: jax.Array) -> jax.Array:
    """Give bool[B, T, T]: whether column t stands below column s or is it, so what token t may see of the others."""
    width = parent.shape[-1]
    sees = jax.nn.one_hot(parent, width, dtype=jnp.float32) + jnp.eye(width)
    for _ in range((width - 1).bit_length()):  # paths of one step, two, four ...
        sees = jnp.minimum(sees @ sees, 1.0)
    return sees > 0


def depths(parent: jax.Array) -> jax.Array:
    """Give i32[B, T]: steps from the root."""
    return jnp.sum(ancestors(parent), axis=-1, dtype=jnp.int32) - 1


def from_paths(paths: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Give parents i32[T] and ranks i32[T] of the tree in which each path goes by the rank of a guess at every depth.

    (0,), (0, 0), (1,) are the best first guess, the best second one below it, and the second best first one (Medusa,
    Cai et al. 2024, section 2.1.2). Paths that are beginnings of others may be left out. The rank of the root is 0.
    """
    nodes = sorted({tuple(path[:n]) for path in paths for n in range(1, len(path) + 1)}, key=lambda p: (len(p), p))
    place = {(): 0, **{node: i for i, node in enumerate(nodes, start=1)}}
    parent = np.array([-1, *(place[node[:-1]] for node in nodes)], np.int32)
    return parent, np.array([0, *(node[-1] for node in nodes)], np.int32)


def levels(parent: np.ndarray) -> list[np.ndarray]:
    """Give the columns at each depth of a tree that is the same in every row, parent i32[T]; the root's first."""
    depth = np.zeros(len(parent), np.int32)
    for column in range(1, len(parent)):
        depth[column] = depth[parent[column]] + 1
    return [np.flatnonzero(depth == level) for level in range(depth.max() + 1)]


def likeliest(rates: Rates, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Give parents i32[width] and ranks i32[width] of the tree that most guesses are accepted of: `likeliest_paths`."""
    return from_paths(likeliest_paths(rates, width))


def likeliest_paths(rates: Rates, width: int) -> tuple[tuple[int, ...], ...]:
    """Give the paths of the tree of `width` nodes, the root among them, that most guesses are accepted of.

    rates[d][r]: how often the guess of rank r at depth d is right where all above it are, in falling order of r; no
    node is deeper than there are rates. Or rates[r], the same at every depth, however deep. A node is right as often as
    the product of the rates on its path. No node beats the one above it or the sibling before it, so the width - 1
    nodes for which that is largest are a tree, and no tree is better: what Sequoia (Chen et al. 2024, section 3.1)
    finds by a dynamic programme over size and depth, and Medusa (Cai et al. 2024, section 2.3.3) by adding nodes.
    Fewer nodes, where there are no more.
    """
    best: list[tuple[float, tuple[int, ...], float]] = [
        (-(_rate(rates, (0,)) or 0.0), (0,), 1.0)
    ]  # with each path, how often what is above its end is right
    paths: list[tuple[int, ...]] = []
    while best and len(paths) < width - 1:
        worth, path, above = heapq.heappop(best)
        paths.append(path)
        for after, over in (((*path, 0), -worth), ((*path[:-1], path[-1] + 1), above)):
            rate = _rate(rates, after)
            if rate is not None:
                heapq.heappush(best, (-over * rate, after, over))
    return tuple(paths)


def expected_tokens(rates: Rates, paths: Sequence[Sequence[int]]) -> float:
    """Count the tokens a step of the tree with these nodes: one, and the sum over nodes of how often each is right."""
    nodes = {tuple(path[:n]) for path in paths for n in range(len(path) + 1)}
    return sum(math.prod(_rate(rates, node[:n]) or 0.0 for n in range(1, len(node) + 1)) for node in nodes)


def fastest_paths(
    rates: Rates, seconds: Mapping[int, float], level_seconds: float = 0.0, deepest: int = 8
) -> tuple[tuple[tuple[int, ...], ...], float]:
    """Give the paths of the tree that makes most tokens a second, and how many (Sequoia, section 3.3: hardware-aware).

    seconds: of a step by its width (`analysis.step_cost.step_seconds`); one of width 1 makes 1 / seconds[1] tokens a
    second, which the tree need not reach. level_seconds: of the draft model or heads, for each depth of the tree.
    """
    by_depth = rates if isinstance(rates[0], Sequence | np.ndarray) else [rates] * deepest
    found = []
    for depth, width in itertools.product(range(1, len(by_depth) + 1), seconds):
        paths = likeliest_paths(by_depth[:depth], width)
        if paths:
            levels = max(map(len, paths))
            found.append((expected_tokens(rates, paths) / (seconds[width] + levels * level_seconds), paths))
    speed, paths = max(found, key=lambda one: one[0])
    return paths, speed


def _rate(rates: Rates, path: tuple[int, ...]) -> float | None:
    """Tell how often the end of a path is right where what is above it is; None where no such guess is made."""
    depth, rank = len(path) - 1, path[-1]
    if isinstance(rates[0], Sequence | np.ndarray):
        if depth >= len(rates):
            return None
        rates = rates[depth]
    return float(rates[rank]) if rank < len(rates) else None


def from_continuations(
    root: jax.Array, tokens: jax.Array, weight: jax.Array, width: int, decay: float = 0.9
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Give the heaviest nodes of the trie of several continuations: tokens i32[B, T], size i32[B], parent i32[B, T].

    root i32[B]; tokens i32[B, P, D], each continuation ending before its first -1; weight f32[B, P]. A node weighs as
    much as the continuations that run through it, times `decay` for every step from the root, for what is guessed far
    ahead is often wrong.
    """
    batch, many, deep = tokens.shape
    same = jnp.cumprod((tokens[:, :, None] == tokens[:, None]).astype(jnp.float32), axis=-1)
    valid = jnp.cumprod(tokens >= 0, axis=-1)
    heft = jnp.einsum("bpqd,bq->bpd", same, weight) * valid * decay ** jnp.arange(deep)
    # Continuations that begin alike share their nodes, which the first of them stands for.
    first = jnp.argmax(same, axis=2)
    score = jnp.where(first == jnp.arange(many)[:, None], heft, 0.0).reshape(batch, -1)
    # A node weighs less than the one above it, so it comes after it.
    score, node = jax.lax.top_k(score, width - 1)
    step = node % deep
    above = jnp.take_along_axis(first.reshape(batch, -1), jnp.maximum(node - 1, 0), axis=1) * deep + step - 1
    column = 1 + jnp.argmax(node[:, None] == above[:, :, None], axis=2)
    parent = jnp.where((step > 0) & (score > 0), column, 0)
    chosen = jnp.where(score > 0, jnp.take_along_axis(tokens.reshape(batch, -1), node, axis=1), root[:, None])
    head = jnp.full((batch, 1), -1)
    return (
        jnp.concatenate([root[:, None], chosen], axis=1),
        1 + jnp.sum(score > 0, axis=1, dtype=jnp.int32),
        jnp.concatenate([head, parent], axis=1).astype(jnp.int32),
    )

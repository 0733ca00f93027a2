"""Trees filled with guesses, depth by depth: what methods that draft with heads or with a draft model share.

A static tree has one shape, given by paths, and only its tokens differ. A dynamic one takes the shape that the draft
believes in, another in every row and step; its width is static all the same, so nothing retraces.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.decoding.checks import fits, takes_trees
from jaxinfer.decoding.drafts.trees import from_paths, levels
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed, whole
from jaxinfer.network.transformer import likeliest_tokens

Paths = tuple[tuple[int, ...], ...]  # see `trees.from_paths`; one path of zeros is a chain

MOST_LEAVES = 1 << 16

Pick = Callable[[jax.Array, int, np.ndarray], jax.Array]
"""(scores [B, columns, M], count, columns) -> i32[B, columns, count]: the guesses below each column, in order."""

Guess = Callable[[int, np.ndarray, jax.Array], jax.Array]
"""(depth, columns at that depth, tokens i32[B, T'] so far) -> scores [B, columns, M] of what follows each column."""


def check_paths(paths: Paths, deepest: int | None = None) -> None:
    """Raise InputError for what is no tree, or is deeper than heads that guess `deepest` tokens can fill."""
    if not paths or not all(paths):
        raise InputError(f"paths={paths} must hold at least one path, and each at least one rank, such as ((0, 0),)")
    for path in paths:
        if any(rank < 0 for rank in path):
            raise InputError(f"paths: {path} must be ranks from 0, the best guess")
        if deepest is not None and len(path) > deepest:
            raise InputError(f"paths: {path} is {len(path)} deep, and there are {deepest} heads")


def expansion(*counts: int) -> Paths:
    """Give the paths with counts[d] guesses below every node at depth d: <k1, k2, ...> (SpecInfer, section 3)."""
    counts = tuple(whole(count, "expansion", 1) for count in counts)
    if math.prod(counts) > MOST_LEAVES:
        raise InputError(f"expansion{counts} has {math.prod(counts)} leaves: at most {MOST_LEAVES} can be guessed")
    return tuple(itertools.product(*map(range, counts)))


@dataclass(frozen=True)
class Dynamic:
    """A tree that grows where the draft is sure (EAGLE-2, Li et al. 2024, section 4)."""

    width: int = 16  # tokens scored per step: the pending one, and the likeliest width - 1 of all guesses
    depth: int = 4  # how many guesses follow one another at most
    beam: int = 4  # nodes that are expanded at every depth, and guesses below each of them

    def __post_init__(self):
        typed(self)
        if not 1 <= self.depth < self.width:
            raise InputError(
                f"depth={self.depth} must be from 1 to {self.width - 1}, the guesses of width={self.width}"
            )
        if self.beam < 1:
            raise InputError(f"beam={self.beam} must be at least 1")
        guesses = self.beam + (self.depth - 1) * self.beam**2
        if self.width - 1 > guesses:
            raise InputError(
                f"width={self.width} is more than beam={self.beam} and depth={self.depth} fill: {guesses + 1}"
            )


def check_branches(method: Any, model: Any, vocab: int) -> None:
    """Raise InputError if this model cannot score the tree of a method, or `vocab` tokens cannot fill it.

    A chain can be scored by every model.
    """
    most = method.dynamic.beam if method.dynamic else 1 + max(map(max, method.paths))
    if most > vocab:
        raise InputError(f"{most} guesses below one token are more than the {vocab} tokens that can be guessed")
    if method.dynamic is None and parents(method.paths, 1) is None:
        fits(method, model)
    else:
        takes_trees(method, model)


def width(paths: Paths) -> int:
    """Count the columns of the tree, the root among them."""
    return len(from_paths(paths)[0])


def parents(paths: Paths, batch: int) -> jax.Array | None:
    """Give the parents i32[B, T] of a draft; None for a chain."""
    parent, _ = from_paths(paths)
    if np.array_equal(parent, np.arange(len(parent)) - 1):
        return None
    return jnp.broadcast_to(jnp.asarray(parent), (batch, len(parent)))


def likeliest(scores: jax.Array, count: int, columns: np.ndarray) -> jax.Array:
    """Take the best of scores [B, columns, M]: i32[B, columns, count]."""
    return likeliest_tokens(scores, count)[1]


def grow(paths: Paths, pending: jax.Array, vocab: jax.Array | None, guess: Guess, pick: Pick = likeliest) -> jax.Array:
    """Grow tokens i32[B, T] of a tree below pending i32[B]: at every column the guess of its rank.

    vocab i32[M]: the tokens that scores are of; None: all.
    """
    parent, rank = from_paths(paths)
    at = levels(parent)
    tokens = pending[:, None]
    for depth, below in enumerate(at[1:]):
        above = np.unique(parent[below])  # those that have children
        best = pick(guess(depth, above, tokens), int(rank[below].max()) + 1, above)
        chosen = best[:, np.searchsorted(above, parent[below]), rank[below]]
        tokens = jnp.concatenate([tokens, chosen if vocab is None else vocab[chosen]], axis=1)
    return tokens


def grow_dynamic(
    dynamic: Dynamic,
    pending: jax.Array,
    vocab: jax.Array | None,
    guess: Callable[[jax.Array, jax.Array, np.ndarray], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Grow tokens i32[B, T] and parents i32[B, T] of the tree that the draft thinks likeliest, below pending i32[B].

    guess(tokens i32[B, T'], parent i32[B, T'], columns): scores [B, columns, M], logits, of what follows each column. A
    node is worth the product of the draft's probabilities on its path. At every depth the `beam` nodes worth most are
    expanded; of all that were guessed, the width - 1 worth most are the draft (section 4.1 and 4.2).
    """
    beam, batch = dynamic.beam, len(pending)
    rows = jnp.arange(batch)[:, None]
    tokens, parent = pending[:, None], jnp.full((batch, 1), -1, jnp.int32)  # of the nodes that are expanded
    found = jnp.full((batch, 1), -1, jnp.int32)  # which of all guesses each of them is
    worth = jnp.zeros((batch, 1))
    values: list[jax.Array] = []
    guessed: list[jax.Array] = []
    above: list[jax.Array] = []
    newest = 1
    for _ in range(dynamic.depth):
        columns = np.arange(tokens.shape[1])[-newest:]
        scores = jax.nn.log_softmax(guess(tokens, parent, columns), axis=-1)
        best, which = likeliest_tokens(scores, min(beam, scores.shape[-1]))
        value = (worth[:, :, None] + best).reshape(batch, -1)
        token = (which if vocab is None else vocab[which]).reshape(batch, -1).astype(jnp.int32)
        below = jnp.broadcast_to(jnp.repeat(jnp.asarray(columns, jnp.int32), best.shape[2]), value.shape)
        before = sum(v.shape[1] for v in values)
        values, guessed, above = [*values, value], [*guessed, token], [*above, found[rows, below]]
        newest = min(beam, value.shape[1])
        worth, top = jax.lax.top_k(value, newest)
        tokens = jnp.concatenate([tokens, token[rows, top]], axis=1)
        parent = jnp.concatenate([parent, below[rows, top]], axis=1)
        found = jnp.concatenate([found, before + top.astype(jnp.int32)], axis=1)
    # No node is worth more than the one above it, and of equals the first is taken: that one comes first, and is in.
    _, order = jax.lax.top_k(jnp.concatenate(values, axis=1), dynamic.width - 1)
    parents = jnp.concatenate(above, axis=1)[rows, order]  # as guesses; -1: the root
    column = 1 + jnp.argmax(order[:, None] == parents[:, :, None], axis=2)
    column = jnp.where(parents >= 0, column, 0).astype(jnp.int32)
    drafted = jnp.concatenate(guessed, axis=1)[rows, order]
    return (
        jnp.concatenate([pending[:, None], drafted], axis=1),
        jnp.concatenate([jnp.full((batch, 1), -1, jnp.int32), column], axis=1),
    )

"""Retrieval-based speculative decoding: guesses from a datastore (REST, He et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.decoding.checks import ngrams, takes_trees
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.drafts import trees
from jaxinfer.decoding.methods.llma import encode
from jaxinfer.decoding.methods.lookup import ending
from jaxinfer.decoding.methods.suffix import check_tree
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed, whole
from jaxinfer.network.transformer import Output

MOST_DEPTH = 256  # tokens that places are sorted by, and compared with in every step


@struct.dataclass
class Datastore:
    """The token ids of a corpus and its suffix array: its places in the order of the tokens from each on."""

    tokens: jax.Array  # i32[N], -1 after each document
    order: jax.Array  # i32[N]: places; those whose first `depth` tokens agree lie together
    depth: int = struct.field(pytree_node=False)  # how many tokens the order goes by

    @classmethod
    def build(cls, documents: Sequence[Any], tokenizer: Any = None, depth: int = 16) -> "Datastore":
        """Build it from texts or lists of token ids, on the host. `tokenizer`: that of the model, for texts.

        Sorted by prefix doubling: log2(depth) sorts of N numbers (Manber and Myers 1990). Raises InputError.
        """
        if isinstance(documents, (str, bytes)) or not hasattr(documents, "__len__") or not len(documents):
            raise InputError("datastore: give a list of documents, texts or lists of token ids, with at least one")
        depth = whole(depth, "depth", 1, MOST_DEPTH)
        parts = []
        for number, document in enumerate(documents):
            ids = np.asarray(encode(document, tokenizer), np.int32)
            if ids.ndim != 1 or not ids.size or ids.min() < 0:
                raise InputError(f"datastore: document {number} must be a text or a list of token ids, and not empty")
            parts += [ids, np.array([-1], np.int32)]
        tokens = np.concatenate(parts)
        return cls(jnp.asarray(tokens), jnp.asarray(suffix_array(tokens, depth)), depth)


@dataclass(frozen=True)
class Retrieval(DecodeMethod):
    """REST: guess a tree of what follows the text's ending in a datastore. Lossless.

    The longest ending of at most `ngram` tokens that the datastore holds is looked for (He et al. 2023, section 3.2);
    up to `matches` of the places where it stands, evenly among all of them, give the trie of guesses, cut to its
    heaviest nodes (section 3.3). `model.attach(datastore=jaxinfer.Datastore.build(...))`.
    """

    width: int = 32  # tokens scored per step: the pending one and width - 1 guesses
    ngram: int = 8  # the longest match looked for
    min_ngram: int = 1  # the shortest match that is worth a draft
    depth: int = 8  # the most tokens guessed in a row
    matches: int = 32  # places that the tree is made of

    samples: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("datastore",)

    def __post_init__(self):
        typed(self)
        check_tree(self)
        ngrams(self)

    def check(self, model, policy) -> None:
        takes_trees(self, model)
        store = model.extras["datastore"]
        if not isinstance(store, Datastore):
            raise InputError(f"datastore is a {type(store).__name__}: it must come from jaxinfer.Datastore.build")
        if self.ngram > store.depth:
            raise InputError(
                f"ngram={self.ngram} is longer than the depth={store.depth} that the datastore is sorted by"
            )
        high = int(jnp.max(store.tokens))
        if high >= model.config.vocab_size:
            raise InputError(f"datastore holds token id {high}: ids go from 0 to {model.config.vocab_size - 1}")

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        store = ctx.extras["datastore"]
        start, count, length = longest_match(store, ending(state.tokens, state.n, self.ngram), self.min_ngram)
        follow, weight = retrieve(store, start, count, length, self.matches, self.depth)
        return Draft(*trees.from_continuations(state.pending, follow, weight, self.width))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits))


def suffix_array(tokens: np.ndarray, depth: int) -> np.ndarray:
    """Sort the places of tokens i32[N] by the next `depth` tokens or more, of equals the first: i32[N]."""
    rank, sorted_by = np.unique(tokens, return_inverse=True)[1].astype(np.int64), 1
    while sorted_by < depth:
        after = np.zeros_like(rank)  # the end of the corpus comes before every token
        after[:-sorted_by] = rank[sorted_by:] + 1
        rank = np.unique(rank * (rank.max() + 2) + after, return_inverse=True)[1].astype(np.int64)
        sorted_by *= 2
    return np.argsort(rank, kind="stable").astype(np.int32)


def longest_match(store: Datastore, ends: jax.Array, shortest: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Find the longest ending in the suffix array: its first place in `order`, how many, and its length, i32[B].

    ends i32[B, K]: the text in reverse (`lookup.ending`). The range of every length down to `shortest` is found by
    binary search; the count is 0 if there is none.
    """
    batch, longest = ends.shape
    lengths = jnp.arange(shortest, longest + 1)
    # pattern[b, l, j]: token j of the ending of length lengths[l].
    offset = lengths[:, None] - 1 - jnp.arange(longest)
    pattern = jnp.where(offset >= 0, ends[:, jnp.maximum(offset, 0)], 0)
    inside = offset >= 0
    size = store.tokens.shape[0]

    def precedes(place: jax.Array, or_equal: bool) -> jax.Array:
        """Tell whether the suffix at `place` i32[B, lengths] sorts before the pattern, or agrees with it."""
        at = place[:, :, None] + jnp.arange(longest)
        text = jnp.where(at < size, store.tokens[jnp.minimum(at, size - 1)], -3)
        differs = (text != pattern) & inside
        first = jnp.argmax(differs, axis=2)[:, :, None]
        smaller = jnp.take_along_axis(text, first, 2)[:, :, 0] < jnp.take_along_axis(pattern, first, 2)[:, :, 0]
        return jnp.where(jnp.any(differs, axis=2), smaller, or_equal)

    def bound(or_equal: bool) -> jax.Array:
        """Find the first place in the order that does not precede the pattern."""

        def halve(_, span):
            low, high = span
            middle = (low + high) // 2
            before = precedes(store.order[jnp.minimum(middle, size - 1)], or_equal) & (low < high)
            return jnp.where(before, middle + 1, low), jnp.where(before | (low >= high), high, middle)

        zeros = jnp.zeros((batch, lengths.shape[0]), jnp.int32)
        return jax.lax.fori_loop(0, size.bit_length() + 1, halve, (zeros, zeros + size))[0]

    start, stop = bound(False), bound(True)
    best = jnp.max(jnp.where(stop > start, jnp.arange(lengths.shape[0]), 0), axis=1)

    def pick(x):
        return jnp.take_along_axis(x, best[:, None], axis=1)[:, 0]

    return pick(start), pick(stop - start), lengths[best]


def retrieve(
    store: Datastore, start: jax.Array, count: jax.Array, length: jax.Array, many: int, depth: int
) -> tuple[jax.Array, jax.Array]:
    """Give what follows up to `many` matches, evenly among all: i32[B, many, depth], -1 after each end; weights."""
    size, order = store.tokens.shape[0], jnp.arange(many)
    step = jnp.maximum(count, many)[:, None] / many
    chosen = (order * step).astype(jnp.int32)
    places = store.order[jnp.minimum(start[:, None] + chosen, size - 1)] + length[:, None]
    at = places[:, :, None] + jnp.arange(depth)
    follow = jnp.where(at < size, store.tokens[jnp.minimum(at, size - 1)], -1)
    return follow, (chosen < count[:, None]).astype(jnp.float32)

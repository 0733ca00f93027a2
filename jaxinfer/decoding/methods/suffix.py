"""Suffix decoding: all that followed the text's ending before, as a tree (Oliaro et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxinfer.decoding.checks import ngrams, room_to_guess, takes_trees
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.drafts import trees
from jaxinfer.decoding.methods.lookup import continuations, earlier_matches
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output

MOST_ORDER = 2**31 - 1 - 2**20  # of a length and a place in one whole number
MOST_COMPARED = 1 << 24  # tokens of continuations that are compared with one another in a step, 64 MB a row
TRUST = 4.0  # how much more a match counts that is one token longer


@dataclass(frozen=True)
class Suffix(DecodeMethod):
    """Suffix decoding: guess a tree of what followed the last n-gram before, the most frequent first. Lossless.

    The suffix tree of the paper is never built: the text is compared with its own ending, as in `Lookup`, and the trie
    of what follows the longest matches is cut to its heaviest nodes. A match counts the more the longer it is.
    """

    width: int = 16  # tokens scored per step: the pending one and width - 1 guesses
    ngram: int = 4  # the longest match looked for
    min_ngram: int = 1  # the shortest match that is worth a draft
    depth: int = 8  # the most tokens guessed in a row
    matches: int = 16  # places that the tree is made of: those of the longest matches, of equals the latest

    samples: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        check_tree(self)
        ngrams(self)

    def check(self, model, policy) -> None:
        takes_trees(self, model)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        length = earlier_matches(state.tokens, state.n, self.ngram)
        # In the order of length, then of place: both in one whole number.
        order = jnp.minimum(length, MOST_ORDER // length.shape[1]) * length.shape[1] + jnp.arange(length.shape[1])
        _, places = jax.lax.top_k(order, min(self.matches, length.shape[1]))
        length = jnp.take_along_axis(length, places, axis=1)
        # Next to the longest match, lest a power of a long one is infinite.
        more = (length - jnp.max(length, axis=1, keepdims=True)).astype(jnp.float32)
        weight = jnp.where(length >= self.min_ngram, TRUST**more, 0.0)
        follow = continuations(state.tokens, state.n, places, self.depth)
        return Draft(*trees.from_continuations(state.pending, follow, weight, self.width))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits))


def check_tree(method) -> None:
    """Raise InputError if `matches` continuations of `depth` tokens cannot fill a tree of `width` tokens."""
    room_to_guess(method)
    for name in ("depth", "matches"):
        if getattr(method, name) < 1:
            raise InputError(f"{name}={getattr(method, name)} must be at least 1")
    if method.matches**2 * method.depth > MOST_COMPARED:
        raise InputError(
            f"matches={method.matches} continuations of depth={method.depth} tokens are too many to compare with one "
            f"another: matches x matches x depth may be {MOST_COMPARED:,}"
        )
    if method.width - 1 > method.depth * method.matches:
        raise InputError(
            f"width={method.width} is more than matches={method.matches} continuations of depth={method.depth} tokens "
            f"can fill: at most {method.depth * method.matches + 1}"
        )

"""Suffix decoding: all that followed the text's ending before, as a tree (Oliaro et al. 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxinfer.decoding import trees
from jaxinfer.decoding.checks import ngrams, room_to_guess, takes_trees
from jaxinfer.decoding.lookup import continuations, earlier_matches
from jaxinfer.decoding.method import Context, DecodeState, Draft, Verdict
from jaxinfer.decoding.verify import accept
from jaxinfer.errors import InputError
from jaxinfer.model import Output

TRUST = 4.0  # how much more a match counts that is one token longer


@dataclass(frozen=True)
class Suffix:
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
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check_tree(self)
        ngrams(self)

    def check(self, model, policy) -> None:
        takes_trees(self, model)

    def init(self, ctx: Context, state: DecodeState) -> None:
        return None

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        length = earlier_matches(state.tokens, state.n, self.ngram)
        # In the order of length, then of place: both in one whole number.
        order = length * length.shape[1] + jnp.arange(length.shape[1])
        _, places = jax.lax.top_k(order, min(self.matches, length.shape[1]))
        length = jnp.take_along_axis(length, places, axis=1)
        weight = jnp.where(length >= self.min_ngram, TRUST ** length.astype(jnp.float32), 0.0)
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
    if method.width - 1 > method.depth * method.matches:
        raise InputError(
            f"width={method.width} is more than matches={method.matches} continuations of depth={method.depth} tokens "
            f"can fill: at most {method.depth * method.matches + 1}"
        )

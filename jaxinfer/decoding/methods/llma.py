"""LLMA: copying from reference documents (Inference with Reference, Yang et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.decoding.checks import fits, ngrams, room_to_guess
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.methods.lookup import ending, latest_longest, matches
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.errors import InputError, shown
from jaxinfer.host.token_ids import checked_text, token_ids
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output


@dataclass(frozen=True)
class LLMA(DecodeMethod):
    """LLMA: guess that the text goes on as a reference does where its last n-gram stands. Lossless.

    `model.attach(references=...)`: token ids i32[N] of one reference, or i32[R, N] of several, each padded with -1,
    as `jaxinfer.references` gives them. All rows may copy from all of them.
    """

    width: int = 8  # tokens scored per step: the pending one and width - 1 guesses
    ngram: int = 3  # the longest match looked for
    min_ngram: int = 1  # the shortest match that is worth a draft

    samples: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self):
        typed(self)
        room_to_guess(self)
        ngrams(self)

    def check(self, model, policy) -> None:
        fits(self, model)
        ids = model.extras["references"]
        shape, dtype = getattr(ids, "shape", ()), getattr(ids, "dtype", None)
        if dtype is None or not np.issubdtype(dtype, np.integer) or len(shape) not in (1, 2) or not np.size(ids):
            raise InputError("references must be an array of token ids [N] or [R, N], of one token or more")
        low, high = int(np.min(ids)), int(np.max(ids))
        if low < -1 or high >= model.config.vocab_size:
            wrong = low if low < -1 else high
            raise InputError(
                f"references hold token id {wrong}: ids go from 0 to {model.config.vocab_size - 1}, -1 pads"
            )

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        corpus = jnp.atleast_2d(ctx.extras["references"]).astype(jnp.int32)
        corpus = jnp.pad(corpus, ((0, 0), (0, 1)), constant_values=-1).reshape(1, -1)
        guesses, count = copy(corpus, ending(state.tokens, state.n, self.ngram), self.width - 1, self.min_ngram)
        tokens = jnp.concatenate([state.pending[:, None], guesses], axis=1)
        return Draft(tokens, size=1 + count)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits))


def copy(corpus: jax.Array, ends: jax.Array, count: int, shortest: int) -> tuple[jax.Array, jax.Array]:
    """Copy what follows the longest (else latest) match of an ending i32[B, K] (`lookup.ending`) in corpus i32[1, M].

    Returns i32[B, count] and how many of them are valid, i32[B]: those before the next -1, and none if the match is
    shorter than `shortest` tokens. A match at the very end of a document, which nothing follows, is none.
    """
    follows = jnp.concatenate([corpus[:, 1:] >= 0, jnp.zeros((1, 1), bool)], axis=1)
    length = jnp.where(follows, matches(ends, corpus), 0)
    best = latest_longest(length)
    found = jnp.take_along_axis(length, best[:, None], axis=1) >= shortest
    index = best[:, None] + 1 + jnp.arange(count)
    guesses = jnp.where(index < corpus.shape[1], corpus[0, jnp.minimum(index, corpus.shape[1] - 1)], -1)
    valid = jnp.cumprod((guesses >= 0) & found, axis=1)
    return jnp.maximum(guesses, 0), jnp.sum(valid, axis=1, dtype=jnp.int32)


def references(documents: Sequence[Any], tokenizer: Any = None) -> np.ndarray:
    """Put documents, texts or lists of token ids, into i32[R, N] padded with -1: what `LLMA` copies from."""
    if isinstance(documents, (str, bytes)) or not hasattr(documents, "__iter__"):
        raise InputError(f"references={shown(documents)} must be a list of documents, texts or lists of token ids")
    ids = [np.asarray(encode(document, tokenizer), np.int32) for document in documents]
    if not ids or min(map(len, ids)) == 0:
        raise InputError("references: give at least one document, and none that is empty")
    padded = np.full((len(ids), max(map(len, ids))), -1, np.int32)
    for row, document in zip(padded, ids, strict=True):
        row[: len(document)] = document
    return padded


def encode(document: Any, tokenizer: Any) -> Sequence[int]:
    """Encode a text as token ids, or what is token ids already. Raises InputError for a text without a tokenizer."""
    if not isinstance(document, str):
        return token_ids(document, "document")
    if tokenizer is None:
        raise InputError("a document that is text needs a tokenizer: give model.tokenizer, or lists of token ids")
    return tokenizer.encode(checked_text(document, "document"))

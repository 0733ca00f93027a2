"""The results that are read from the state of a generation: the text of each prompt, and a search's hypotheses."""

import functools
from typing import Any

import jax
import numpy as np

from jaxinfer.decoding.contract import DecodeState, Hypotheses
from jaxinfer.sharding import across


def best(method: Any, state: DecodeState, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Give of each prompt its tokens i32[B, M], how many count i32[B], and log-probabilities f32[B, M] if kept.

    They are those of its one row, or of the best hypothesis; of a search that has none yet, the prompt (`lengths`).
    """
    if method.hypotheses is None:
        return across.fetch((state.tokens, state.n, state.logprobs))
    found = across.fetch(_hypotheses(method, state))
    logprobs = None if found.logprobs is None else found.logprobs[:, 0]
    return found.tokens[:, 0], np.maximum(found.n[:, 0], lengths), logprobs


def hypotheses(method: Any, state: DecodeState, lengths: np.ndarray) -> list[list[tuple[list[int], float]]] | None:
    """Give the new tokens and the score of every hypothesis of each prompt, best first; None of a method without."""
    if method.hypotheses is None:
        return None
    found = across.fetch(_hypotheses(method, state))
    return [
        [
            (tokens[start:n].tolist(), float(score))
            for tokens, n, score in zip(found.tokens[row], found.n[row], found.score[row], strict=True)
            if n > 0
        ]
        for row, start in enumerate(lengths)
    ]


def pairs(ids: np.ndarray, values: np.ndarray) -> list[list[tuple[int, float]]]:
    """Pair ids i32[T, K] and values f32[T, K]: for each of T places, K pairs."""
    return [list(zip(*place, strict=True)) for place in zip(ids.tolist(), values.tolist(), strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _hypotheses(method: Any, state: DecodeState) -> Hypotheses:
    return method.hypotheses(state)

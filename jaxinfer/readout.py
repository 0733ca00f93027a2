"""What is read from the state of a generation: the text of each prompt, and the hypotheses of a search."""

import functools
from typing import Any

import jax
import numpy as np

from jaxinfer.decoding.method import DecodeState, Hypotheses


def best(method: Any, state: DecodeState, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Of each prompt: its tokens i32[B, M], how many count i32[B], and log-probabilities f32[B, M] if they are kept.

    They are those of its one row, or of the best hypothesis; of a search that has none yet, the prompt (`lengths`).
    """
    if not hasattr(method, "hypotheses"):
        return jax.tree.map(np.asarray, (state.tokens, state.n, state.logprobs))
    found = _hypotheses(method, state)
    logprobs = None if found.logprobs is None else np.asarray(found.logprobs[:, 0])
    return np.asarray(found.tokens[:, 0]), np.maximum(found.n[:, 0], lengths), logprobs


def hypotheses(method: Any, state: DecodeState, lengths: np.ndarray) -> list[list[tuple[list[int], float]]] | None:
    """Of each prompt the new tokens and the score of every hypothesis, best first; None of a method without them."""
    if not hasattr(method, "hypotheses"):
        return None
    found = jax.tree.map(np.asarray, _hypotheses(method, state))
    return [
        [
            (tokens[start:n].tolist(), float(score))
            for tokens, n, score in zip(found.tokens[row], found.n[row], found.score[row], strict=True)
            if n > 0
        ]
        for row, start in enumerate(lengths)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _hypotheses(method: Any, state: DecodeState) -> Hypotheses:
    return method.hypotheses(state)

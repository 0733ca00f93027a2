"""Read prompts into a cache, chunk by chunk, and give what of that is asked for: logits, hidden states, routing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.cache.store import Cache
from jaxinfer.decoding.loop import logprobs_of
from jaxinfer.network.transformer import Output, Transformer, forward, logits_of

Give = Callable[..., Any]
"""(model, params, output, and what `prefill` is given besides) -> what is asked for. Static: each is a program."""


def prefill(
    model: Transformer, give: Give, params: Any, cache: Cache, tokens: jax.Array, n: jax.Array, *more: jax.Array
) -> tuple[Cache, Any]:
    """Commit the first n[B] of tokens i32[B, T], and give what `give`, one of the functions below, makes of them."""
    output = forward(model, params, tokens, positions_of(cache, tokens), cache, n=n)
    found = give(model, params, output, *more)
    with jax.named_scope("commit"):
        return cache.policy.commit(cache, output.fresh, None, n, output.stats), found


def nothing(model: Transformer, params: Any, output: Output) -> None:
    """Give nothing: the vocabulary is never touched."""


def hidden(model: Transformer, params: Any, output: Output) -> jax.Array:
    """Give the hidden state of every token after the final norm: [B, T, D]."""
    return output.hidden


def logits(model: Transformer, params: Any, output: Output) -> jax.Array:
    """Give the logits after every token: float32[B, T, V]."""
    return logits_of(model, params, output.hidden)


def routing(model: Transformer, params: Any, output: Output) -> dict[str, Any]:
    """Give, by layer kind, what the routers do with the tokens: RouterStats with leaves [L, ...]."""
    return output.routing


@dataclass(frozen=True)
class LogProbs:
    """Gives `logprobs_of` the tokens i32[B, T] that follow each, and of the `count` likeliest in their places."""

    count: int

    def __call__(self, model: Transformer, params: Any, output: Output, following: jax.Array) -> Any:
        return logprobs_of(logits_of(model, params, output.hidden), following, self.count)


def positions_of(cache: Cache, tokens: jax.Array) -> jax.Array:
    """Give i32[B, T]: where the next T tokens of each row stand."""
    return cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)

"""What runs on the device: prefill, one step, one loop around it.

`jaxinfer.generation` drives it from the host: generate runs the loop to the end, stream a few steps a call. Nothing
here knows a decode method or a cache policy by name.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxinfer.cache.store import Cache
from jaxinfer.decoding.method import Context, DecodeMethod, DecodeState, Verdict
from jaxinfer.decoding.sampling import observe
from jaxinfer.decoding.trees import ancestors
from jaxinfer.model import Output, Transformer


def forward(
    model: Transformer, params: Any, tokens: jax.Array, positions: jax.Array, cache: Cache, **options
) -> Output:
    """The network as a function of its parameters: see `Transformer.__call__`."""
    return cast(Output, model.apply({"params": params}, tokens, positions, cache, **options))


def logits_of(model: Transformer, params: Any, hidden: jax.Array) -> jax.Array:
    """hidden[B, T, D] -> float32[B, T, V]."""
    return cast(jax.Array, model.apply({"params": params}, hidden, method=Transformer.logits))


def prefill(model: Transformer, params: Any, cache: Cache, tokens: jax.Array, n: jax.Array) -> Cache:
    """Commit the first n[B] of tokens i32[B, T]. The vocabulary is never touched."""
    output = forward(model, params, tokens, positions_of(cache, tokens), cache, n=n)
    return cache.policy.commit(cache, output.fresh, None, n, output.stats)


def features(model: Transformer, params: Any, cache: Cache, tokens: jax.Array, n: jax.Array) -> tuple[Cache, jax.Array]:
    """Prefill that also gives [B, T, D]: the hidden state of every token."""
    output = forward(model, params, tokens, positions_of(cache, tokens), cache, n=n)
    return cache.policy.commit(cache, output.fresh, None, n, output.stats), output.hidden


def score(model: Transformer, params: Any, cache: Cache, tokens: jax.Array, n: jax.Array) -> tuple[Cache, jax.Array]:
    """Prefill that also gives float32[B, T, V]: the logits behind every token."""
    output = forward(model, params, tokens, positions_of(cache, tokens), cache, n=n)
    logits = logits_of(model, params, output.hidden)
    return cache.policy.commit(cache, output.fresh, None, n, output.stats), logits


def routing(
    model: Transformer, params: Any, cache: Cache, tokens: jax.Array, n: jax.Array
) -> tuple[Cache, dict[str, Any]]:
    """What the routers do with the first n[B] of tokens i32[B, T]: by layer kind, RouterStats with leaves [L, ...]."""
    output = forward(model, params, tokens, positions_of(cache, tokens), cache, n=n)
    return cache, output.routing


def positions_of(cache: Cache, tokens: jax.Array) -> jax.Array:
    """i32[B, T]: where the next T tokens of each row stand."""
    return cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)


def step(method: DecodeMethod, ctx: Context, state: DecodeState) -> DecodeState:
    """Propose, one forward of the target, verify, commit what was accepted."""
    with jax.named_scope("propose"):
        draft = method.propose(ctx, state)
    tree = None if draft.parent is None else ancestors(draft.parent)
    positions = state.cache.length[:, None] + draft.depth
    output = forward(ctx.model, ctx.params, draft.tokens, positions, state.cache, tree=tree, decoding=True)
    logits = logits_of(ctx.model, ctx.params, output.hidden)
    with jax.named_scope("verify"):
        verdict = method.verify(ctx, state, draft, output, logits)

    n, stopped = _cut(state, verdict.emit, verdict.n)
    with jax.named_scope("commit"):
        cache = state.cache.policy.commit(state.cache, output.fresh, verdict.take, n, output.stats)
    rows = jnp.arange(n.shape[0])[:, None]
    order = jnp.arange(verdict.emit.shape[1], dtype=jnp.int32)
    place = jnp.where(order < n[:, None], state.n[:, None] + order, state.tokens.shape[1])  # outside: dropped
    total = state.n + n
    alive = ~state.done
    return dataclasses.replace(
        state,
        tokens=state.tokens.at[rows, place].set(verdict.emit, mode="drop"),
        n=total,
        done=state.done | stopped | (total >= state.limit),
        cache=cache,
        sampling=None if state.sampling is None else observe(state.sampling, verdict.emit, n),
        logprobs=_record(state, verdict, logits, rows, place),
        aux=verdict.aux,
        steps=state.steps + alive,
        proposed=state.proposed + jnp.where(alive, draft.size - 1, 0),
        accepted=state.accepted + jnp.where(alive, jnp.maximum(n - 1, 0), 0),
    )


def _cut(state: DecodeState, emit: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """End each row at its limit and behind its first stop token: tokens to emit i32[B], and whether it stopped."""
    n = jnp.where(state.done, 0, jnp.minimum(n, state.limit - state.n))
    is_stop = jnp.any(emit[:, :, None] == state.stop, axis=-1) & (jnp.arange(emit.shape[1]) < n[:, None])
    stopped = jnp.any(is_stop, axis=1)
    return jnp.where(stopped, jnp.argmax(is_stop, axis=1).astype(jnp.int32) + 1, n), stopped


def _record(
    state: DecodeState, verdict: Verdict, logits: jax.Array, rows: jax.Array, place: jax.Array
) -> jax.Array | None:
    """Log-probabilities of the emitted tokens, under the model's own distribution."""
    if state.logprobs is None:
        return None
    if verdict.take is not None:
        logits = jnp.take_along_axis(logits, verdict.take[:, :, None], axis=1)
    chosen = jnp.take_along_axis(logits, verdict.emit[:, :, None], axis=-1)[..., 0]
    return state.logprobs.at[rows, place].set(chosen - jax.nn.logsumexp(logits, axis=-1), mode="drop")


def decode(
    model: Transformer, method: DecodeMethod, params: Any, extras: dict[str, Any], state: DecodeState, budget: jax.Array
) -> DecodeState:
    """Up to `budget` steps (i32[]), until every row is done. This is the only loop."""
    ctx = Context(params, extras, model)

    def running(carry):
        state, left = carry
        return (left > 0) & ~jnp.all(state.done)

    def body(carry):
        state, left = carry
        return step(method, ctx, state), left - 1

    return jax.lax.while_loop(running, body, (state, budget))[0]

"""What runs on the device: prefill, one step, one loop around it.

`jaxinfer.generation` drives it from the host: generate runs the loop to the end, stream a few steps a call. Nothing
here knows a decode method or a cache policy by name.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.cache.store import Cache, reorder
from jaxinfer.decoding.constraint import behind, follow, mask, moved
from jaxinfer.decoding.method import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling import observe
from jaxinfer.model import Output, Transformer, forward, logits_of


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
    output, verdict, logprobs, at = _judge(method, ctx, state, dataclasses.replace(draft, held=None))
    n, stopped = _cut(state, verdict.emit, verdict.n)
    with jax.named_scope("commit"):
        cache = state.cache.policy.commit(state.cache, output.fresh, verdict.take, n, output.stats)
        if verdict.rows is not None:
            cache, state = reorder(cache, verdict.rows), _go_on(state, verdict.rows)
    rows = jnp.arange(n.shape[0])[:, None]
    order = jnp.arange(verdict.emit.shape[1], dtype=jnp.int32)
    place = jnp.where(order < n[:, None], state.n[:, None] + order, state.tokens.shape[1])  # outside: dropped
    total = state.n + n
    alive = ~state.done
    done = state.done | stopped | (total >= state.limit)
    return dataclasses.replace(
        state,
        tokens=state.tokens.at[rows, place].set(verdict.emit, mode="drop"),
        n=total,
        done=done if verdict.done is None else done | verdict.done,
        cache=cache,
        sampling=None if state.sampling is None else observe(state.sampling, verdict.emit, n, verdict.surprise),
        logprobs=None if state.logprobs is None else state.logprobs.at[rows, place].set(logprobs, mode="drop"),
        aux=verdict.aux,
        held=draft.held,
        steps=state.steps + alive,
        guessed=state.guessed + (alive & (draft.size > 1)),
        runs=state.runs.at[rows[:, 0], n].add(alive),
        proposed=state.proposed + jnp.where(alive, draft.size - 1, 0),
        accepted=state.accepted + jnp.where(alive, jnp.maximum(n - 1, 0), 0),
        constraint=moved(state.constraint, at),
    )


def _go_on(state: DecodeState, rows: jax.Array) -> DecodeState:
    """The state whose texts are those of other rows i32[B], of the same length. Limits and counters stay in place."""
    logprobs = None if state.logprobs is None else state.logprobs[rows]
    return dataclasses.replace(state, tokens=state.tokens[rows], logprobs=logprobs)


def _cut(state: DecodeState, emit: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """End each row at its limit and behind its first stop token: tokens to emit i32[B], and whether it stopped."""
    n = jnp.where(state.done, 0, jnp.minimum(n, state.limit - state.n))
    is_stop = jnp.any(emit[:, :, None] == state.stop, axis=-1) & (jnp.arange(emit.shape[1]) < n[:, None])
    stopped = jnp.any(is_stop, axis=1)
    return jnp.where(stopped, jnp.argmax(is_stop, axis=1).astype(jnp.int32) + 1, n), stopped


def _judge(
    method: DecodeMethod, ctx: Context, state: DecodeState, draft: Draft
) -> tuple[Output, Verdict, jax.Array | None, jax.Array | None]:
    """One forward over a draft, the method's verdict, log-probabilities of what it emits, if they are asked for, and
    the states i32[B] of the constraints behind that, if there are any.

    A draft is scored at the least of its widths that holds every row's size: one in which no row has a guess as one
    token a row, so that a method that has nothing to say costs nothing. The cache is only read here: a branch that
    wrote to it would copy it.
    """

    def score(draft: Draft) -> tuple[Output, Verdict, jax.Array | None, jax.Array | None]:
        if hasattr(method, "forward"):
            output = method.forward(ctx, state, draft)
        else:
            places = state.cache.length[:, None] + draft.depth
            options = {"tree": draft.tree, "decoding": True, "layers": getattr(method, "reads_layers", False)}
            output = forward(ctx.model, ctx.params, draft.tokens, places, state.cache, **options)
        logits = logits_of(ctx.model, ctx.params, output.hidden)
        with jax.named_scope("verify"):
            at = follow(state.constraint, draft)
            verdict = method.verify(ctx, state, draft, output, mask(state.constraint, at, logits))
        return output, verdict, _logprobs(state, verdict, logits), behind(state.constraint, at, verdict)

    *narrower, _ = draft.widths
    if not narrower:
        return score(draft)
    score = jax.jit(score, inline=True)  # is traced once for its shapes and for the branch
    shapes = jax.eval_shape(score, draft)
    branches = [lambda draft, width=width: _pad(score(draft.first(width)), shapes) for width in narrower]
    needed = jnp.max(jnp.where(state.done, 1, draft.size))
    return jax.lax.switch(jnp.sum(needed > jnp.array(narrower)), [*branches, score], draft)


def _pad(tree: Any, shapes: Any) -> Any:
    """Arrays with zeros behind what is there, up to these shapes."""

    def grow(x, shape):
        return jnp.pad(x, [(0, wanted - given) for given, wanted in zip(x.shape, shape.shape, strict=True)])

    return jax.tree.map(grow, tree, shapes)


def _logprobs(state: DecodeState, verdict: Verdict, logits: jax.Array) -> jax.Array | None:
    """float32[B, E]: log-probabilities of the emitted tokens, under the model's own distribution."""
    if state.logprobs is None:
        return None
    if verdict.rows is not None:
        logits = logits[verdict.rows]
    if verdict.take is not None:
        logits = jnp.take_along_axis(logits, verdict.take[:, :, None], axis=1)
    chosen = jnp.take_along_axis(logits, verdict.emit[:, :, None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


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

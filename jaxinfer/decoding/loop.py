"""One step, and the one loop around it: propose, one forward, verify, commit.

It lies beside the contract, below the runtime, because a cascade runs the loop of its draft within its own. Nothing
here knows a method or a cache policy by name.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.cache.store import reorder
from jaxinfer.decoding.constraints.constraint import follow, mask, moved, state_after
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.settings import observe
from jaxinfer.decoding.sampling.stopping import hold_back
from jaxinfer.network.transformer import Output, Transformer, forward, likeliest_tokens, logits_of


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
    best = None if logprobs is None else logprobs[1]
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
        logprobs=None if state.logprobs is None else state.logprobs.at[rows, place].set(logprobs[0], mode="drop"),
        likeliest=jax.tree.map(lambda old, new: old.at[rows, place].set(new, mode="drop"), state.likeliest, best),
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
    """Give the state whose texts are those of other rows i32[B], as long. Limits and counters stay in place."""
    moved = jax.tree.map(lambda x: x[rows], (state.tokens, state.logprobs, state.likeliest))
    return dataclasses.replace(state, **dict(zip(("tokens", "logprobs", "likeliest"), moved, strict=True)))


def _cut(state: DecodeState, emit: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """End each row at its limit and after its first stop token: tokens to emit i32[B], and whether it stopped."""
    n = jnp.where(state.done, 0, jnp.minimum(n, state.limit - state.n))
    is_stop = jnp.any(emit[:, :, None] == state.stop, axis=-1) & (jnp.arange(emit.shape[1]) < n[:, None])
    stopped = jnp.any(is_stop, axis=1)
    return jnp.where(stopped, jnp.argmax(is_stop, axis=1).astype(jnp.int32) + 1, n), stopped


def _judge(
    method: DecodeMethod, ctx: Context, state: DecodeState, draft: Draft
) -> tuple[Output, Verdict, Any, jax.Array | None]:
    """Run one forward over a draft: the method's verdict, log-probabilities of what it emits, if asked for, and
    the states i32[B] of the constraints after that, if there are any.

    A draft is scored at the least of its widths that holds every row's size: one in which no row has a guess as one
    token a row, so that a method that has nothing to say costs nothing. The cache is only read here: a branch that
    wrote to it would copy it.
    """

    def score(draft: Draft) -> tuple[Output, Verdict, Any, jax.Array | None]:
        if method.forward is not None:
            output = method.forward(ctx, state, draft)
        else:
            places = state.cache.length[:, None] + draft.depth
            options = {"tree": draft.tree, "decoding": True, "layers": method.reads_layers}
            output = forward(ctx.model, ctx.params, draft.tokens, places, state.cache, **options)
        logits = logits_of(ctx.model, ctx.params, output.hidden)
        with jax.named_scope("verify"):
            at = follow(state.constraint, draft)
            allowed = mask(state.constraint, at, logits)
            if not method.holds_back:
                allowed = hold_back(state, draft.depth, allowed)
            verdict = method.verify(ctx, state, draft, output, allowed)
        return output, verdict, _logprobs(state, verdict, logits), state_after(state.constraint, at, verdict)

    *narrower, _ = draft.widths
    if not narrower:
        return score(draft)
    score = jax.jit(score, inline=True)  # is traced once for its shapes and for the branch
    shapes = jax.eval_shape(score, draft)
    branches = [lambda draft, width=width: _pad(score(draft.first(width)), shapes) for width in narrower]
    needed = jnp.max(jnp.where(state.done, 1, draft.size))
    return jax.lax.switch(jnp.sum(needed > jnp.array(narrower)), [*branches, score], draft)


def _pad(tree: Any, shapes: Any) -> Any:
    """Pad arrays with zeros after what is there, up to these shapes."""

    def grow(x, shape):
        return jnp.pad(x, [(0, wanted - given) for given, wanted in zip(x.shape, shape.shape, strict=True)])

    return jax.tree.map(grow, tree, shapes)


def _logprobs(state: DecodeState, verdict: Verdict, logits: jax.Array) -> Any:
    """Compute float32[B, E]: log-probabilities of the emitted tokens, under the model's own distribution.

    And, where they are asked for, those of the K likeliest in their places: i32[B, E, K], float32[B, E, K].
    """
    if state.logprobs is None:
        return None
    if verdict.rows is not None:
        logits = logits[verdict.rows]
    if verdict.take is not None:
        logits = jnp.take_along_axis(logits, verdict.take[:, :, None], axis=1)
    return logprobs_of(logits, verdict.emit, 0 if state.likeliest is None else state.likeliest[0].shape[-1])


def logprobs_of(logits: jax.Array, tokens: jax.Array, count: int) -> Any:
    """Compute the log-probabilities of tokens i32[B, T] in logits[B, T, V], and (ids, values) [B, T, count] of the
    likeliest; None for a count of 0."""
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, :, None], axis=-1)[..., 0]
    if not count:
        return chosen - total, None
    best, ids = likeliest_tokens(logits, count)
    return chosen - total, (ids.astype(jnp.int32), best - total[..., None])


def decode(
    model: Transformer, method: DecodeMethod, params: Any, extras: dict[str, Any], state: DecodeState, budget: jax.Array
) -> DecodeState:
    """Take up to `budget` steps (i32[]), until every row is done. This is the only loop."""
    ctx = Context(params, extras, model)

    def running(carry):
        state, left = carry
        return (left > 0) & ~jnp.all(state.done)

    def body(carry):
        state, left = carry
        return step(method, ctx, state), left - 1

    return jax.lax.while_loop(running, body, (state, budget))[0]

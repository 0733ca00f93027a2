"""Speculative decoding with a draft model (Leviathan et al. 2023; Chen et al. 2023)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxinfer.cache.store import Cache, rollback
from jaxinfer.decoding.checks import check_draft, check_lenience, room_to_guess
from jaxinfer.decoding.constraint import advance, mask
from jaxinfer.decoding.method import Companion, Context, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling import distribution
from jaxinfer.decoding.verify import accept_drawn, draw
from jaxinfer.errors import InputError
from jaxinfer.model import Output, forward, logits_of

DRAFTING = 1 << 30  # apart from the keys that the target draws with


@dataclass(frozen=True)
class Speculative:
    """A smaller model with the same vocabulary guesses a chain of tokens. Lossless at lenience 1, sampled too."""

    width: int = 5  # tokens scored per step: the pending one and width - 1 guesses
    schedule: Literal["constant", "heuristic"] = (
        "constant"  # heuristic: two guesses more after a full run, else one less
    )
    confidence: float = 0.0  # a row stops guessing where the draft model's likeliest token is less likely than this
    lenience: float = 1.0  # below 1: accept more than the target would say, see `verify.accept_drawn`: lossy

    samples: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("draft",)

    def __post_init__(self):
        room_to_guess(self)
        check_lenience(self)
        if not 0 <= self.confidence <= 1:
            raise InputError(f"confidence={self.confidence} must be between 0 and 1")

    @property
    def lossless(self) -> bool:
        return self.lenience == 1

    def check(self, model: Any, policy: Any) -> None:
        check_draft(model)

    def hold(self, ctx: Context, state: DecodeState) -> Cache:
        return ctx.extras["draft"].cache

    def init(self, ctx: Context, state: DecodeState) -> jax.Array:
        """i32[B]: how many guesses the schedule allows each row."""
        return jnp.full_like(state.n, self.width - 1)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        # The draft model has not read the newest token, nor, if all its guesses were accepted, the last of them.
        draft, cache = ctx.extras["draft"], rollback(state.held, state.n - 1)
        columns = jnp.minimum(cache.length[:, None] + jnp.arange(2), state.n[:, None] - 1)
        unread = jnp.take_along_axis(state.tokens, columns, axis=1)
        cache, logits = read(draft, cache, unread, state.n - cache.length)
        return guess(self, draft, cache, logits, state)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        accepted = accept_drawn(state, draft, logits, lenience=self.lenience)
        return Verdict(*accepted, aux=self._next_reach(state.aux, draft.size, accepted.n))

    def _next_reach(self, reach: jax.Array, size: jax.Array, n: jax.Array) -> jax.Array:
        if self.schedule == "constant":
            return reach
        change = jnp.where(n == size, 2, -1)
        return jnp.where(size > 1, jnp.clip(reach + change, 1, self.width - 1), reach)


def guess(method: Speculative, draft: Companion, cache: Cache, logits: jax.Array, state: DecodeState) -> Draft:
    """Guess token by token, as long as any row goes on. logits float32[B, V]: those behind the newest token."""
    batch, vocab = logits.shape
    reach = jnp.where(state.done, 0, jnp.minimum(state.aux, state.limit - state.n - 1))
    tokens = jnp.zeros((batch, method.width), jnp.int32).at[:, 0].set(state.pending)
    behind = None if state.sampling is None else jnp.zeros((batch, method.width, vocab))
    at = None if state.constraint is None else state.constraint.at[:, None]

    def going(carry):
        i, _, _, _, size, *_ = carry
        return (i < method.width) & jnp.any((size == i) & (reach >= i))

    def one_more(carry):
        i, cache, logits, at, size, tokens, behind = carry
        logits = mask(state.constraint, at, logits[:, None])[:, 0]
        if behind is None:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            probs = distribution(state.sampling, logits[:, None])[:, 0]
            keys = jax.vmap(lambda key: jax.random.fold_in(key, DRAFTING))(state.keys(i[None])[:, 0])
            behind, token = behind.at[:, i - 1].set(probs), draw(keys, probs)
        goes_on = (size == i) & (reach >= i)
        if method.confidence:
            goes_on &= jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1) >= method.confidence
        size = jnp.where(goes_on, i + 1, size)
        cache, logits = read(draft, cache, token[:, None], (size == i + 1).astype(jnp.int32))
        at = advance(state.constraint, at, token[:, None])
        return i + 1, cache, logits, at, size, tokens.at[:, i].set(token), behind

    carry = (jnp.int32(1), cache, logits, at, jnp.ones_like(state.n), tokens, behind)
    _, cache, _, _, size, tokens, behind = jax.lax.while_loop(going, one_more, carry)
    return Draft(tokens, size, proposal=behind, held=cache)


def read(model: Companion, cache: Cache, tokens: jax.Array, n: jax.Array) -> tuple[Cache, jax.Array]:
    """Commit the first n[B] of tokens i32[B, T], and give the logits float32[B, V] behind the last of them."""
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    output = forward(model.model, model.params, tokens, positions, cache, n=n, decoding=True)
    last = jnp.take_along_axis(output.hidden, jnp.maximum(n - 1, 0)[:, None, None], axis=1)
    logits = logits_of(model.model, model.params, last)[:, 0]
    return cache.policy.commit(cache, output.fresh, None, n, output.stats), logits

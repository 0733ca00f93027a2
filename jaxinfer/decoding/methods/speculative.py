"""Speculative decoding with a draft model (Leviathan et al. 2023; Chen et al. 2023)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxinfer.cache.store import Cache, rollback
from jaxinfer.decoding.checks import check_confidence, check_draft, check_lenience, room_to_guess
from jaxinfer.decoding.constraints.constraint import advance, mask
from jaxinfer.decoding.contract import Companion, Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.drafts import draft_length
from jaxinfer.decoding.sampling.acceptance import accept, draw
from jaxinfer.decoding.sampling.settings import distribution
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output, forward, likeliest_token, logits_of

Schedule = Literal["constant", "heuristic", "acceptance"]  # how many tokens a row guesses in the next step

DRAFTING = 1 << 30  # apart from the keys that the target draws with
LONG = 32  # tokens in a forward of a draft model that has fallen behind: about the time of two or three of one token


@dataclass(frozen=True)
class Speculative(DecodeMethod):
    """A smaller model with the same vocabulary guesses a chain of tokens. Lossless at lenience 1, sampled too."""

    width: int = 5  # tokens scored per step: the pending one and width - 1 guesses
    schedule: Schedule = "constant"  # heuristic: two guesses more after a full run, or one less; acceptance: `lengths`
    draft_cost: float = 0.2  # schedule acceptance: time of a guess over that of a step without guesses
    wide_cost: float = 1.0  # and time of a step with guesses over that: `analysis.step_cost.speculation_costs` has both
    confidence: float = 0.0  # a row stops guessing where the draft model's likeliest token is less likely than this
    lenience: float = 1.0  # below 1: accept more than the target would say, see `acceptance.accept`: lossy

    samples: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("draft",)

    def __post_init__(self):
        typed(self)
        room_to_guess(self)
        check_lenience(self)
        check_confidence(self)
        for name in ("draft_cost", "wide_cost"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)} must be above 0: a time, in steps without guesses")

    @property
    def lossless(self) -> bool:
        return self.lenience == 1

    def check(self, model: Any, policy: Any) -> None:
        check_draft(model)

    def hold(self, ctx: Context, state: DecodeState) -> Cache:
        return ctx.extras["draft"].cache

    def init(self, ctx: Context, state: DecodeState) -> draft_length.Acceptance | jax.Array:
        """Give what the schedule goes by: the acceptance so far, or how many guesses each row is allowed, i32[B]."""
        if self.schedule == "acceptance":
            return draft_length.unknown(len(state.n))
        return jnp.full_like(state.n, self.width - 1)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        draft, reach = ctx.extras["draft"], allowed(state, self._reach(state.aux))
        cache, logits = catch_up(draft, rollback(state.held, state.n - 1), state.tokens, state.n, reach > 0)
        return guess(self, draft, cache, logits, state, reach)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        accepted = accept(state, draft, logits, lenience=self.lenience)
        aux = self._next(state.aux, draft.size, accepted.n)
        return Verdict(*accepted, aux=jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state.aux, aux))

    def _reach(self, aux: Any) -> jax.Array:
        if self.schedule == "acceptance":
            return draft_length.best_length(aux.rate, self.width - 1, self.draft_cost, self.wide_cost)
        return aux

    def _next(self, aux: Any, size: jax.Array, n: jax.Array) -> Any:
        if self.schedule == "acceptance":
            return draft_length.observe(aux, size, n)
        if self.schedule == "constant":
            return aux
        change = jnp.where(n == size, 2, -1)
        return jnp.where(size > 1, jnp.clip(aux + change, 1, self.width - 1), aux)


def allowed(state: DecodeState, most: jax.Array | int) -> jax.Array:
    """Count the guesses that a row may make, i32[B]: at most `most`, none after its limit, none where it is done."""
    return jnp.where(state.done, 0, jnp.minimum(most, state.limit - state.n - 1))


def catch_up(
    draft: Companion, cache: Cache, tokens: jax.Array, n: jax.Array, wanted: jax.Array, width: int = 2
) -> tuple[Cache, jax.Array]:
    """Read those of the first n[B] of tokens i32[B, M] that the draft model has not read.

    Gives its cache, and the logits float32[B, V] after the last token read. A chain has two tokens at most, the newest,
    and the guess before it if all were accepted: one forward of `width`. Rows that did not draft in the last steps have
    more: they are read `LONG` at a time, up to the last few. Nothing is read while no row of wanted bool[B] needs it.
    """

    def missing(cache: Cache) -> jax.Array:
        return jnp.max(jnp.where(wanted, n - cache.length, 0))

    def reading(width: int, least: int, carry: tuple[Cache, jax.Array]) -> tuple[Cache, jax.Array]:
        def read_some(carry):
            cache, logits = carry
            unread = jnp.clip(n - cache.length, 0, width)
            columns = jnp.minimum(cache.length[:, None] + jnp.arange(width), tokens.shape[1] - 1)
            cache, new = read(draft, cache, jnp.take_along_axis(tokens, columns, axis=1), unread)
            return cache, jnp.where((unread > 0)[:, None], new, logits)

        return jax.lax.while_loop(lambda carry: missing(carry[0]) >= least, read_some, carry)

    carry = cache, jnp.zeros((n.shape[0], draft.model.cfg.vocab_size))
    return reading(width, 1, reading(LONG, LONG // 4, carry))


def pick(
    method: Any, state: DecodeState, logits: jax.Array, i: jax.Array, drawn_from: jax.Array | None
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Guess i32[B] for column i i32[] of a draft, from a draft's logits float32[B, V] after the column before it.

    drawn_from float32[B, T, V]: the distributions of the guesses, of which column i - 1 is set; None if none is drawn.
    The third is bool[B]: whether the draft is as sure as `method.confidence` asks.
    """
    if drawn_from is None:
        token = likeliest_token(logits)
    else:
        probs = distribution(state.sampling, logits[:, None])[:, 0]
        keys = jax.vmap(lambda key: jax.random.fold_in(key, DRAFTING))(state.keys(i[None])[:, 0])
        drawn_from, token = drawn_from.at[:, i - 1].set(probs), draw(keys, probs)
    if not method.confidence:
        return token, drawn_from, jnp.ones(token.shape, bool)
    return token, drawn_from, jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1) >= method.confidence


def guess(
    method: Speculative, draft: Companion, cache: Cache, logits: jax.Array, state: DecodeState, reach: jax.Array
) -> Draft:
    """Guess token by token, as long as any row goes on. logits float32[B, V]: those after the newest token."""
    batch, vocab = logits.shape
    tokens = jnp.zeros((batch, method.width), jnp.int32).at[:, 0].set(state.pending)
    drawn_from = None if state.sampling is None else jnp.zeros((batch, method.width, vocab))
    at = None if state.constraint is None else state.constraint.at[:, None]

    def goes_on(i: jax.Array, size: jax.Array) -> jax.Array:
        return (i < method.width) & jnp.any((size == i) & (reach >= i))

    def one_more(carry):
        i, cache, logits, at, size, tokens, drawn_from = carry
        logits = mask(state.constraint, at, logits[:, None])[:, 0]
        token, drawn_from, sure = pick(method, state, logits, i, drawn_from)
        size = jnp.where((size == i) & (reach >= i) & sure, i + 1, size)

        def read_it(carry):
            _, cache, _ = carry
            return False, *read(draft, cache, token[:, None], (size == i + 1).astype(jnp.int32))

        # The last guess is read with the next step's text, if it is accepted. A loop, since a branch copies the cache.
        carry = (goes_on(i + 1, size), cache, logits)
        _, cache, logits = jax.lax.while_loop(lambda carry: carry[0], read_it, carry)
        at = advance(state.constraint, at, token[:, None])
        return i + 1, cache, logits, at, size, tokens.at[:, i].set(token), drawn_from

    carry = (jnp.int32(1), cache, logits, at, jnp.ones_like(state.n), tokens, drawn_from)
    carry = jax.lax.while_loop(lambda carry: goes_on(carry[0], carry[4]), one_more, carry)
    _, cache, _, _, size, tokens, drawn_from = carry
    return Draft(tokens, size, proposal=drawn_from, held=cache)


def read(model: Companion, cache: Cache, tokens: jax.Array, n: jax.Array) -> tuple[Cache, jax.Array]:
    """Commit the first n[B] of tokens i32[B, T], and give the logits float32[B, V] after the last of them."""
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    output = forward(model.model, model.params, tokens, positions, cache, n=n, decoding=True)
    last = jnp.take_along_axis(output.hidden, jnp.maximum(n - 1, 0)[:, None, None], axis=1)
    logits = logits_of(model.model, model.params, last)[:, 0]
    return cache.policy.commit(cache, output.fresh, None, n, output.stats), logits

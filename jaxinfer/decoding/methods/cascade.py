"""A draft model that drafts for itself (cascade speculative drafting, Chen et al. 2023, section 3.1)."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.cache import Dense
from jaxinfer.cache.store import Cache, rollback
from jaxinfer.decoding.checks import check_draft, room_to_guess
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict, key_of
from jaxinfer.decoding.loop import decode
from jaxinfer.decoding.methods.lookup import Lookup
from jaxinfer.decoding.methods.speculative import DRAFTING, allowed, catch_up
from jaxinfer.decoding.methods.wrapper import MethodWrapper
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.decoding.sampling.penalties import penalize
from jaxinfer.decoding.sampling.settings import distribution
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output


@struct.dataclass
class Drafting:
    """The state that the draft model keeps from step to step."""

    cache: Cache
    aux: Any  # of the method that it writes with
    held: Any


@dataclass(frozen=True)
class Cascade(DecodeMethod):
    """A draft model guesses a chain, which it writes with a decode method of its own. Lossless, sampled too.

    The vertical cascade: `inner` guesses for the draft model, whose forwards each give several tokens of the draft. The
    draft is what the draft model alone would have written, only sooner. To draft is to run the decode loop on the draft
    model, for width - 1 tokens. What `inner` needs is attached to the draft model: `Cascade(inner=Speculative())` takes
    `model.attach(draft=small.attach(draft=tiny))`, and inner may be a cascade again.
    """

    width: int = 8  # tokens scored per step: the pending one and width - 1 guesses
    inner: DecodeMethod = field(default_factory=Lookup)  # any that guesses without heads

    samples: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        room_to_guess(self)
        name = type(self.inner).__name__
        if any("heads" in need.split(".") for need in self.inner.needs):
            raise InputError(f"inner: {name} guesses from hidden states, which a draft model does not keep")
        if self.inner.width < 2:
            raise InputError(f"inner: {name} makes no guesses: Speculative is the method without an inner one")
        if not (self.inner.samples and self.inner.lossless):
            raise InputError(f"inner: {name} does not keep the draft model's distribution")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("draft", *(f"draft.{name}" for name in self.inner.needs))

    def check(self, model: Any, policy: Any) -> None:
        check_draft(model)
        self.inner.check(model.extras["draft"], Dense())

    def hold(self, ctx: Context, state: DecodeState) -> Drafting:
        drafter = ctx.extras["draft"]
        inner = _draft_state(self, state, drafter.cache, jnp.zeros_like(state.n))
        below = Context(drafter.params, drafter.extras, drafter.model)
        held = self.inner.hold(below, inner)
        aux = jax.tree.map(jnp.copy, self.inner.init(below, inner))
        return Drafting(drafter.cache, aux, held)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        drafter, held, reach = ctx.extras["draft"], state.held, allowed(state, self.width - 1)
        cache = rollback(held.cache, state.n - 1)
        cache, _ = catch_up(drafter, cache, state.tokens, state.n - 1, reach > 0)
        start = _draft_state(self, state, cache, reach)
        drawn_from = None
        if state.sampling is not None:
            drawn_from = jnp.zeros((len(state.n), self.width, drafter.model.cfg.vocab_size))
        start = dataclasses.replace(start, aux=Record(drawn_from, state.n, held.aux), held=held.held)
        method = Recorded(self.inner, self.width)
        end = decode(drafter.model, method, drafter.params, drafter.extras, start, jnp.int32(self.width - 1))
        columns = jnp.minimum(state.n[:, None] - 1 + jnp.arange(self.width), state.tokens.shape[1] - 1)
        return Draft(
            tokens=jnp.take_along_axis(end.tokens, columns, axis=1),
            size=1 + end.n - state.n,
            proposal=end.aux.drawn_from,
            held=Drafting(end.cache, end.aux.aux, end.held),
        )

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits))


def _draft_state(method: Cascade, state: DecodeState, cache: Cache, reach: jax.Array) -> DecodeState:
    """Make the state that goes on from the text by reach[B] tokens: the same sampling, random numbers of its own."""

    def apart(seed):
        low = jax.random.bits(jax.random.fold_in(key_of(seed), DRAFTING), dtype=jnp.uint32)
        return jnp.stack([jnp.zeros_like(low), low])

    zeros = jnp.zeros_like(state.n)
    return dataclasses.replace(
        state,
        limit=state.n + reach,
        done=reach == 0,
        cache=cache,
        seeds=jax.vmap(apart)(state.seeds),
        logprobs=None,
        likeliest=None,
        aux=None,
        held=None,
        steps=zeros,
        guessed=zeros,
        runs=jnp.zeros((len(zeros), method.inner.width + 1), jnp.int32),
        proposed=zeros,
        accepted=zeros,
    )


@struct.dataclass
class Record:
    """The distributions that the tokens of a draft were drawn from."""

    drawn_from: jax.Array | None  # float32[B, T, V]: the distribution after each column of the draft
    start: jax.Array  # i32[B]: where the draft's first guess stands
    aux: Any  # the method's own


@dataclass(frozen=True)
class Recorded(MethodWrapper):
    """A method that keeps the distribution of every token it emits. Its state is made by `Cascade.propose`."""

    method: DecodeMethod
    columns: int  # T of the record

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return self.method.propose(ctx, self.within(state))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        record = state.aux
        verdict = self.method.verify(ctx, self.within(state), draft, output, logits)
        record = dataclasses.replace(record, aux=verdict.aux)
        if record.drawn_from is None:
            return dataclasses.replace(verdict, aux=record)

        def put(drawn_from: jax.Array) -> jax.Array:
            probs = distribution(state.sampling, penalize(state, logits, draft.tokens, draft.tree))
            if verdict.take is not None:
                probs = jnp.take_along_axis(probs, verdict.take[:, :, None], axis=1)
            order = jnp.arange(probs.shape[1])
            column = (state.n - record.start)[:, None] + order
            column = jnp.where(order < verdict.n[:, None], column, self.columns)  # outside: dropped
            return drawn_from.at[jnp.arange(len(drawn_from))[:, None], column].set(probs, mode="drop")

        cold = jnp.all(state.sampling.temperature == 0)
        drawn_from = jax.lax.cond(cold, lambda drawn_from: drawn_from, put, record.drawn_from)
        return dataclasses.replace(verdict, aux=dataclasses.replace(record, drawn_from=drawn_from))

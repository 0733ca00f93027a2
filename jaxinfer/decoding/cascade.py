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
from jaxinfer.decoding.lookup import Lookup
from jaxinfer.decoding.method import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.penalties import penalize
from jaxinfer.decoding.sampling import distribution
from jaxinfer.decoding.speculative import DRAFTING, allowed, catch_up
from jaxinfer.decoding.verify import accept
from jaxinfer.errors import InputError
from jaxinfer.model import Output


@struct.dataclass
class Drafting:
    """What the draft model keeps from step to step."""

    cache: Cache
    aux: Any  # of the method that it writes with
    held: Any


@dataclass(frozen=True)
class Cascade:
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
        room_to_guess(self)
        name = type(self.inner).__name__
        if any("heads" in need.split(".") for need in self.inner.needs):
            raise InputError(f"inner: {name} guesses from hidden states, which a draft model does not keep")
        if self.inner.width < 2:
            raise InputError(f"inner: {name} makes no guesses: Speculative is the method without an inner one")
        if not (self.inner.samples and getattr(self.inner, "lossless", True)):
            raise InputError(f"inner: {name} does not keep the draft model's distribution")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("draft", *(f"draft.{name}" for name in self.inner.needs))

    def check(self, model: Any, policy: Any) -> None:
        check_draft(model)
        if hasattr(self.inner, "check"):
            self.inner.check(model.extras["draft"], Dense())

    def hold(self, ctx: Context, state: DecodeState) -> Drafting:
        drafter = ctx.extras["draft"]
        inner = _draft_state(self, state, drafter.cache, jnp.zeros_like(state.n))
        below = Context(drafter.params, drafter.extras, drafter.model)
        held = self.inner.hold(below, inner) if hasattr(self.inner, "hold") else None
        aux = jax.tree.map(jnp.copy, self.inner.init(below, inner))
        return Drafting(drafter.cache, aux, held)

    def init(self, ctx: Context, state: DecodeState) -> None:
        return None

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        from jaxinfer.engine import decode  # which imports the package that this is in

        drafter, held, reach = ctx.extras["draft"], state.held, allowed(state, self.width - 1)
        cache = rollback(held.cache, state.n - 1)
        cache, _ = catch_up(drafter, cache, state.tokens, state.n - 1, reach > 0)
        start = _draft_state(self, state, cache, reach)
        behind = None
        if state.sampling is not None:
            behind = jnp.zeros((len(state.n), self.width, drafter.model.cfg.vocab_size))
        start = dataclasses.replace(start, aux=Record(behind, state.n, held.aux), held=held.held)
        method = Recorded(self.inner, self.width)
        end = decode(drafter.model, method, drafter.params, drafter.extras, start, jnp.int32(self.width - 1))
        columns = jnp.minimum(state.n[:, None] - 1 + jnp.arange(self.width), state.tokens.shape[1] - 1)
        return Draft(
            tokens=jnp.take_along_axis(end.tokens, columns, axis=1),
            size=1 + end.n - state.n,
            proposal=end.aux.behind,
            held=Drafting(end.cache, end.aux.aux, end.held),
        )

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits))


def _draft_state(method: Cascade, state: DecodeState, cache: Cache, reach: jax.Array) -> DecodeState:
    """The text so far, to go on with by reach[B] tokens: with the same sampling, and random numbers of its own."""

    def apart(seed):
        return jax.random.bits(jax.random.fold_in(jax.random.key(seed), DRAFTING), dtype=jnp.uint32)

    zeros = jnp.zeros_like(state.n)
    return dataclasses.replace(
        state,
        limit=state.n + reach,
        done=reach == 0,
        cache=cache,
        seeds=jax.vmap(apart)(state.seeds),
        logprobs=None,
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
    """What the tokens of a draft were drawn from."""

    behind: jax.Array | None  # float32[B, T, V]: the distribution behind each column of the draft
    start: jax.Array  # i32[B]: where the draft's first guess stands
    aux: Any  # the method's own


@dataclass(frozen=True)
class Recorded:
    """A method that keeps the distribution of every token it emits."""

    inner: DecodeMethod
    columns: int  # T of the record

    samples: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def width(self) -> int:
        return self.inner.width

    def init(self, ctx: Context, state: DecodeState) -> Any:
        return self.inner.init(ctx, state)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return self.inner.propose(ctx, dataclasses.replace(state, aux=state.aux.aux))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        record = state.aux
        verdict = self.inner.verify(ctx, dataclasses.replace(state, aux=record.aux), draft, output, logits)
        record = dataclasses.replace(record, aux=verdict.aux)
        if record.behind is None:
            return dataclasses.replace(verdict, aux=record)

        def put(behind: jax.Array) -> jax.Array:
            probs = distribution(state.sampling, penalize(state, logits, draft.tokens, draft.tree))
            if verdict.take is not None:
                probs = jnp.take_along_axis(probs, verdict.take[:, :, None], axis=1)
            order = jnp.arange(probs.shape[1])
            column = (state.n - record.start)[:, None] + order
            column = jnp.where(order < verdict.n[:, None], column, self.columns)  # outside: dropped
            return behind.at[jnp.arange(len(behind))[:, None], column].set(probs, mode="drop")

        cold = jnp.all(state.sampling.temperature == 0)
        behind = jax.lax.cond(cold, lambda behind: behind, put, record.behind)
        return dataclasses.replace(verdict, aux=dataclasses.replace(record, behind=behind))

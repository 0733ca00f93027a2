"""Two methods in one: the second guesses where the first has nothing to say."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.methods.lookup import Lookup
from jaxinfer.decoding.methods.speculative import Speculative
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output


@dataclass(frozen=True)
class Fallback(DecodeMethod):
    """One method, and in rows and steps where it has no guess another. Lossless if both are.

    A row takes the guesses of one of them in a step, a chain or a tree; rows need not agree. While the first has
    guesses in every row the second is not run, if it stops for rows that are done, as `Speculative` does. Where the
    second draws its guesses, a sampled text keeps its distribution; else it is the text of `Sample`.
    """

    first: DecodeMethod = field(default_factory=Lookup)
    second: DecodeMethod = field(default_factory=Speculative)

    def __post_init__(self):
        typed(self)
        for name in ("first", "second"):
            method = getattr(self, name)
            if method.width < 2:
                raise InputError(f"{name}: {type(method).__name__} makes no guesses")
            if not method.lossless:
                raise InputError(f"{name}: {type(method).__name__} is lossy: both must accept by the same rule")

    @property
    def width(self) -> int:
        return max(self.first.width, self.second.width)

    @property
    def narrow(self) -> int:
        """Count the tokens in a step for which only the narrower of both has guesses."""
        return min(self.first.width, self.second.width)

    @property
    def samples(self) -> bool:
        return self.first.samples and self.second.samples

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.first.needs, *self.second.needs)))

    @property
    def reads_prompt(self) -> bool:
        return self.first.reads_prompt or self.second.reads_prompt

    def check(self, model: Any, policy: Any) -> None:
        for method in (self.first, self.second):
            method.check(model, policy)

    def hold(self, ctx: Context, state: DecodeState) -> Any:
        return self.first.hold(ctx, state), self.second.hold(ctx, state)

    def init(self, ctx: Context, state: DecodeState) -> Any:
        return self.first.init(ctx, state), self.second.init(ctx, state)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        one, two = (dataclasses.replace(state, aux=state.aux[i], held=state.held[i]) for i in (0, 1))
        first = self.first.propose(ctx, one)
        if first.always:
            name = type(self.first).__name__
            raise InputError(f"first: {name} guesses in every step, so the second method would never be asked")
        guessed = first.size > 1
        second = self.second.propose(ctx, dataclasses.replace(two, done=state.done | guessed))
        return choose(guessed, first, second)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        # One rule of acceptance, whoever made the guesses: both methods come to the same verdict.
        guessed, one, two = draft.note

        def judge(method: DecodeMethod, aux: Any, note: Any, idle: jax.Array) -> Verdict:
            seen = dataclasses.replace(state, aux=aux, done=state.done | idle)
            return method.verify(ctx, seen, dataclasses.replace(draft, note=note), output, logits)

        first = judge(self.first, state.aux[0], one, ~guessed)
        second = judge(self.second, state.aux[1], two, guessed)
        return dataclasses.replace(second, aux=(first.aux, second.aux))


def choose(guessed: jax.Array, first: Draft, second: Draft) -> Draft:
    """Take the rows guessed bool[B] of the first draft, the others of the second; as wide as the wider one.

    A step in which every row's guesses are those of the narrower one is as narrow as that.
    """
    width = max(first.tokens.shape[1], second.tokens.shape[1])

    def wide(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, width - x.shape[1]), *((0, 0),) * (x.ndim - 2)))

    def either(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(guessed.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    def parents(draft: Draft) -> jax.Array:
        chain = jnp.broadcast_to(jnp.arange(-1, width - 1, dtype=jnp.int32), (len(guessed), width))
        return chain if draft.parent is None else wide(draft.parent)

    def was_drawn(draft: Draft) -> jax.Array:
        everywhere = jnp.full(guessed.shape, draft.proposal is not None)
        return everywhere if draft.drawn is None else draft.drawn

    proposals = [x if x is None else wide(x) for x in (first.proposal, second.proposal)]
    given = [x for x in proposals if x is not None]
    return Draft(
        tokens=either(wide(first.tokens), wide(second.tokens)),
        size=either(first.size, second.size),
        parent=None if first.parent is None and second.parent is None else either(parents(first), parents(second)),
        proposal=either(*given) if len(given) == 2 else given[0] if given else None,
        drawn=either(was_drawn(first), was_drawn(second)) if given else None,
        note=(guessed, first.note, second.note),
        held=(first.held, second.held),
        always=second.always,
        narrower=tuple(sorted({*first.widths, *second.widths} - {width})),
    )

"""A switch around a method: guesses that do not pay are not made."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.methods.lookup import Lookup
from jaxinfer.decoding.methods.wrapper import MethodWrapper
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output

TRIES = 0.005  # what a step without guesses adds to the account, until another try can be paid
SAVED = 2.0  # so much more than a try costs can be saved up: a few poor steps do not end a good run


@struct.dataclass
class Switch:
    """The credit of each row, f32[B] in steps without guesses, and the method's own state."""

    credit: jax.Array
    aux: Any


@dataclass(frozen=True)
class Adaptive(MethodWrapper):
    """Another method, switched off in each row while its steps emit less than they cost, and tried now and then.

    Each row keeps an account in steps without guesses. A step with guesses adds the tokens that it emits and takes
    `break_even`, what it costs; it is taken while the account could pay for one that emits a single token. A step
    without guesses adds 0.005. An account begins with `credit`, so whatever the guesses are worth, they cost a text no
    more than that and half a percent of its time. A draft model has to read all that was written without it before it
    guesses again, which that does not pay: once off it stays off, unless `probe` says otherwise.
    """

    method: DecodeMethod = field(default_factory=Lookup)
    break_even: float = 1.5  # time of a step with guesses over that of one without: `experiments/when_it_pays.py`
    probe: int | None = None  # steps without guesses before the next try; None: so many that 0.5 % pays for it
    credit: float = 1.0  # what finding out may cost a text, in steps without guesses

    unbounded: ClassVar[tuple[str, ...]] = ("probe",)  # steps, which are not held at once

    def __post_init__(self):
        typed(self)
        if isinstance(self.method, Adaptive):
            raise InputError("method must not be adaptive itself")
        makes_none = self.method.forward is not None or self.method.reads_layers
        if makes_none or self.method.rows_per_prompt > 1:
            raise InputError(f"method: {type(self.method).__name__} makes no guesses that could be switched off")
        if not self.break_even >= 1:
            raise InputError(f"break_even={self.break_even} must be at least 1")
        if self.probe is not None and self.probe < 1:
            raise InputError(f"probe={self.probe} must be at least 1")
        if not self.credit >= 0:
            raise InputError(f"credit={self.credit} must be at least 0")

    @property
    def earned(self) -> float:
        """Tell what a step without guesses adds to the account."""
        if self.probe is not None:
            return (self.break_even - 1) / self.probe
        return 0.0 if "draft" in self.needs else TRIES

    def init(self, ctx: Context, state: DecodeState) -> Switch:
        return Switch(jnp.full(state.n.shape, self.credit, jnp.float32), self.method.init(ctx, state))

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        off = self.is_off(state.aux.credit)
        resting = self.within(state, done=state.done | off)

        def guess() -> Draft:
            draft = self.method.propose(ctx, resting)
            if draft.always and not self.method.can_rest:
                raise InputError(f"{type(self.method).__name__} guesses in every step: it cannot be switched off")
            return dataclasses.replace(draft, size=jnp.where(off, 1, draft.size), always=False)

        if jax.tree.leaves(state.held):  # which a branch would copy
            return guess()
        guess = jax.jit(guess, inline=True)  # is traced once for its shapes and for the branch
        shapes = jax.eval_shape(guess)

        def none() -> Draft:
            empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            size, tokens = jnp.ones_like(state.n), empty.tokens.at[:, 0].set(state.pending)
            return dataclasses.replace(empty, tokens=tokens, size=size)

        return jax.lax.cond(jnp.all(resting.done), none, guess)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        verdict = self.method.verify(ctx, self.within(state), draft, output, logits)
        credit = self.credited(state.aux.credit, draft.size, verdict.n)
        return dataclasses.replace(verdict, aux=Switch(credit, verdict.aux))

    def credited(self, credit: jax.Array, size: jax.Array, n: jax.Array) -> jax.Array:
        """Give the account f32[B] after a step that emitted n[B] tokens from drafts of size[B]; size 1: no guess."""
        most = self.break_even - 1 + SAVED
        spent = jnp.minimum(credit + n - self.break_even, jnp.maximum(credit, most))
        # A row that is on and has nothing to say neither spends nor earns.
        return jnp.where(self.is_off(credit), credit + self.earned, jnp.where(size > 1, spent, credit))

    def is_off(self, credit: jax.Array) -> jax.Array:
        """Give bool[B]: whether a step with guesses could not be paid for."""
        return credit < self.break_even - 1 - 1e-4  # sums of many small numbers

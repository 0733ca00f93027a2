"""A switch around a method: guesses that do not pay are not made."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.decoding.lookup import Lookup
from jaxinfer.decoding.method import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.errors import InputError
from jaxinfer.model import Output

START = 1.1  # so many times the break-even is what a row that is switched on is trusted to emit
FADING = 0.8  # weight of the past in the running mean: after a poor step or two a row is switched off
TRIES = 0.01  # what tries that fail may add to the time of the steps between them
AT_ONCE = 1.0  # and the first one of a text, which comes at once if it costs no more than so many steps without guesses


@struct.dataclass
class Switch:
    """Of each row: what steps with guesses emit, a running mean f32[B]; steps without one since, i32[B]."""

    gain: jax.Array
    quiet: jax.Array
    aux: Any  # the method's own


@dataclass(frozen=True)
class Adaptive:
    """Another method, switched off in each row while its steps emit less than they cost, and tried now and then.

    Tries that fail cost 1 % of the time. The first of a text comes at once if it costs no more than a step without
    guesses, and else behind as many of these as the later ones: a switch knows nothing of a text that has not begun.
    """

    method: DecodeMethod = field(default_factory=Lookup)
    break_even: float = 1.5  # time of a step with guesses over that of one without: `experiments/when_it_pays.py`
    probe: int | None = None  # steps without guesses before the next try; None: so many that tries cost 1 % at most

    def __post_init__(self):
        if isinstance(self.method, Adaptive):
            raise InputError("method must not be adaptive itself")
        makes_none = hasattr(self.method, "forward") or getattr(self.method, "reads_layers", False)
        if makes_none or getattr(self.method, "rows_per_prompt", 1) > 1:
            raise InputError(f"method: {type(self.method).__name__} makes no guesses that could be switched off")
        if not self.break_even >= 1:
            raise InputError(f"break_even={self.break_even} must be at least 1")
        if self.probe is not None and self.probe < 1:
            raise InputError(f"probe={self.probe} must be at least 1")

    @property
    def quiet_steps(self) -> int:
        """Steps without guesses before the next try."""
        return self.probe or max(1, math.ceil((self.break_even - 1) / TRIES))

    @property
    def width(self) -> int:
        return self.method.width

    @property
    def samples(self) -> bool:
        return self.method.samples

    @property
    def needs(self) -> tuple[str, ...]:
        return self.method.needs

    @property
    def reads_prompt(self) -> bool:
        return getattr(self.method, "reads_prompt", False)

    @property
    def lossless(self) -> bool:
        return getattr(self.method, "lossless", True)

    def check(self, model: Any, policy: Any) -> None:
        if hasattr(self.method, "check"):
            self.method.check(model, policy)

    def hold(self, ctx: Context, state: DecodeState) -> Any:
        return self.method.hold(ctx, state) if hasattr(self.method, "hold") else None

    def init(self, ctx: Context, state: DecodeState) -> Switch:
        trusted = START * self.break_even if self.break_even - 1 <= AT_ONCE else 0.0
        gain = jnp.full(state.n.shape, trusted, jnp.float32)
        return Switch(gain, jnp.zeros_like(state.n), self.method.init(ctx, state))

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        off = self._off(state.aux)
        draft = self.method.propose(ctx, dataclasses.replace(state, aux=state.aux.aux, done=state.done | off))
        if draft.always and not getattr(self.method, "can_rest", False):
            raise InputError(f"{type(self.method).__name__} guesses in every step: it cannot be switched off")
        return dataclasses.replace(draft, size=jnp.where(off, 1, draft.size), always=False)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        verdict = self.method.verify(ctx, dataclasses.replace(state, aux=state.aux.aux), draft, output, logits)
        switch, guessed, was_off = state.aux, (draft.size > 1) & ~state.done, state.aux.gain < self.break_even
        gain = FADING * switch.gain + (1 - FADING) * verdict.n
        # One good try switches a row on again.
        gain = jnp.where(was_off & (verdict.n > self.break_even), START * self.break_even, gain)
        new = Switch(
            jnp.where(guessed, gain, switch.gain), jnp.where(guessed | ~was_off, 0, switch.quiet + 1), verdict.aux
        )
        return dataclasses.replace(verdict, aux=new)

    def _off(self, switch: Switch) -> jax.Array:
        return (switch.gain < self.break_even) & (switch.quiet < self.quiet_steps)

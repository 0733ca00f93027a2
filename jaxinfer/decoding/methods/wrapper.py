"""A method around another one, which says of itself what that one says."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Hypotheses
from jaxinfer.network.transformer import Output


class MethodWrapper(DecodeMethod):
    """A method around another, its field `method`. It keeps that one's state as `aux.aux` in a state of its own.

    `init`, `propose` and `verify` are its own; they give the method within what `within` makes of the state. Of the
    members of the contract only those that speak of fields are not passed on: `unbounded`, `paths` and `dynamic`.
    """

    method: DecodeMethod

    @property
    def width(self) -> int:
        return self.method.width

    @property
    def narrow(self) -> int | None:
        return self.method.narrow

    @property
    def samples(self) -> bool:
        return self.method.samples

    @property
    def lossless(self) -> bool:
        return self.method.lossless

    @property
    def needs(self) -> tuple[str, ...]:
        return self.method.needs

    @property
    def reads_prompt(self) -> bool:
        return self.method.reads_prompt

    @property
    def reads_layers(self) -> bool:
        return self.method.reads_layers

    @property
    def holds_back(self) -> bool:
        return self.method.holds_back

    @property
    def can_rest(self) -> bool:
        return self.method.can_rest

    @property
    def rows_per_prompt(self) -> int:
        return self.method.rows_per_prompt

    @property
    def hypotheses(self) -> Callable[[DecodeState], Hypotheses] | None:
        inner = self.method.hypotheses
        return None if inner is None else lambda state: inner(self.within(state))

    @property
    def forward(self) -> Callable[[Context, DecodeState, Draft], Output] | None:
        inner = self.method.forward
        return None if inner is None else lambda ctx, state, draft: inner(ctx, self.within(state), draft)

    def check(self, model: Any, policy: Any) -> None:
        self.method.check(model, policy)

    def hold(self, ctx: Context, state: DecodeState) -> Any:
        return self.method.hold(ctx, state)

    def figures(self, aux: Any) -> dict[str, jax.Array]:
        return self.method.figures(aux.aux)

    def within(self, state: DecodeState, **changes: Any) -> DecodeState:
        """Make the state as the method within knows it."""
        return dataclasses.replace(state, aux=state.aux.aux, **changes)

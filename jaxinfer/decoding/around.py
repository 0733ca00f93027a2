"""What a method around another one says of itself: what that one says."""

import dataclasses
from typing import Any

from jaxinfer.decoding.method import Context, DecodeMethod, DecodeState


class Around:
    """A method around another, its field `method`. It keeps that one's state as `aux.aux` in a state of its own.

    `init`, `propose` and `verify` are its own; they give the method within what `within` makes of the state.
    """

    method: DecodeMethod

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

    def within(self, state: DecodeState, **changes: Any) -> DecodeState:
        """The state as the method within knows it."""
        return dataclasses.replace(state, aux=state.aux.aux, **changes)

"""Self-speculative decoding: some of the model's own layers draft (Draft & Verify, Zhang et al. 2023; LayerSkip)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxinfer.decoding.checks import check_confidence, fits, room_to_guess
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.methods.speculative import allowed, pick
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.layerwise import empty_drafted, forward_some, put_drafted
from jaxinfer.network.transformer import Output, logits_of


@dataclass(frozen=True)
class SelfSpeculative(DecodeMethod):
    """The model without some of its layers guesses a chain of tokens, on the model's own cache. Lossless, sampled too.

    The layers that draft read what the whole model has committed, so the draft has no cache of the prompt and nothing
    to catch up with: what it makes of its own guesses is forgotten with the step. `skip` as in Draft & Verify (Zhang et
    al. 2023, section 3), found by `compress.search_layers`; `exit` as in LayerSkip (Elhoushi et al. 2024, section
    4.3), though verification computes the first layers again. With neither, every second layer is skipped.
    """

    width: int = 5  # tokens scored per step: the pending one and width - 1 guesses
    skip: tuple[int, ...] = ()  # the layers that do not draft, counted from 0
    exit: int | None = None  # or how many layers draft, the first ones
    confidence: float = 0.0  # a row stops guessing where its likeliest token is less likely than this

    samples: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        object.__setattr__(self, "skip", tuple(self.skip))
        room_to_guess(self)
        check_confidence(self)
        if self.skip and self.exit is not None:
            raise InputError(f"skip={self.skip} and exit={self.exit}: give one of them")

    def check(self, model: Any, policy: Any) -> None:
        fits(self, model)
        depth = model.config.n_layers
        if self.exit is not None and not 1 <= self.exit < depth:
            raise InputError(f"exit={self.exit} must be between 1 and {depth - 1}: {model.name} has {depth} layers")
        wrong = [layer for layer in self.skip if not 0 <= layer < depth]
        if wrong:
            raise InputError(f"skip: layer {wrong[0]} is not there: those of {model.name} are 0 to {depth - 1}")
        layers = self.layers(depth)
        if not layers:
            raise InputError(f"skip={self.skip} leaves none of the {depth} layers of {model.name}")
        for layer in layers:
            if model.config.layers[layer].mixer:
                raise InputError(
                    f"layer {layer} of {model.name} is recurrent and carries a state, which it cannot draft on: skip it"
                )

    def layers(self, depth: int) -> tuple[int, ...]:
        """List the layers that draft, of so many."""
        if self.exit is not None:
            return tuple(range(self.exit))
        skip = set(self.skip or range(1, depth, 2))
        return tuple(layer for layer in range(depth) if layer not in skip)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        layers, start = self.layers(ctx.model.cfg.n_layers), state.cache.length
        reach = allowed(state, self.width - 1)

        def going(carry):
            i, _, size, *_ = carry
            return (i < self.width) & jnp.any((size == i) & (reach >= i))

        def one_more(carry):
            i, drafted, size, tokens, drawn_from = carry
            last = jax.lax.dynamic_slice_in_dim(tokens, i - 1, 1, axis=1)
            positions = (start + i - 1)[:, None]
            hidden, made = forward_some(ctx.model, ctx.params, layers, last, positions, state.cache, drafted)
            logits = logits_of(ctx.model, ctx.params, hidden)[:, 0]
            token, drawn_from, sure = pick(self, state, logits, i, drawn_from)
            size = jnp.where((size == i) & (reach >= i) & sure, i + 1, size)
            drafted = put_drafted(drafted, made, positions, i - 1)
            return i + 1, drafted, size, tokens.at[:, i].set(token), drawn_from

        batch, vocab = state.n.shape[0], ctx.model.cfg.vocab_size
        tokens = jnp.zeros((batch, self.width), jnp.int32).at[:, 0].set(state.pending)
        drawn_from = None if state.sampling is None else jnp.zeros((batch, self.width, vocab))
        drafted = empty_drafted(state.cache, self.width - 1)
        carry = (jnp.int32(1), drafted, jnp.ones_like(state.n), tokens, drawn_from)
        _, _, size, tokens, drawn_from = jax.lax.while_loop(going, one_more, carry)
        return Draft(tokens, size, proposal=drawn_from)

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        return Verdict(*accept(state, draft, logits))

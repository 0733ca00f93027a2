"""Early exit: a token leaves the network once a measure is confident enough (CALM, Schuster et al. 2022). Lossy."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxinfer.decoding.checks import classifier_of
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept_one
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.layerwise import final_norm, forward_until
from jaxinfer.network.transformer import Output, logits_of


@dataclass(frozen=True)
class EarlyExit(DecodeMethod):
    """CALM: each token leaves the network after the first layer where it is confident enough. Lossy.

    The measures of section 3.4: `softmax`, the margin between the two likeliest tokens, which costs the vocabulary at
    every exit; `saturation`, the cosine of the hidden states before and after a layer; `classifier`, a linear one on
    the hidden state (`model.attach(exit_classifier=analysis.exits.train_classifier(...))`). The keys and values of
    layers that a token skips come from the hidden state that it left with. A layer is skipped once all rows of a batch
    have left; prompts run through all layers. The threshold is found by `analysis.exits.calibrate`.
    """

    threshold: float = 0.9  # a token leaves where its confidence is above this; 1: never
    measure: Literal["softmax", "saturation", "classifier"] = "softmax"
    exits: tuple[int, ...] = ()  # after how many layers it may leave; (): after any

    samples: ClassVar[bool] = True
    lossless: ClassVar[bool] = False

    def __post_init__(self):
        typed(self)
        object.__setattr__(self, "exits", tuple(self.exits))
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold={self.threshold} must be between 0 and 1")
        if self.measure not in ("softmax", "saturation", "classifier"):
            raise InputError(f"measure={self.measure!r} must be softmax, saturation or classifier")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("exit_classifier",) if self.measure == "classifier" else ()

    def check(self, model: Any, policy: Any) -> None:
        depth = model.config.n_layers
        wrong = [count for count in self.exits if not 1 <= count < depth]
        if wrong:
            raise InputError(
                f"exits: {wrong[0]} must be between 1 and {depth - 1}, for {model.name} has {depth} layers"
            )
        if any(kind.mixer for kind in model.config.kinds):
            raise InputError(
                f"{model.name} has recurrent layers: the state of a layer that is skipped would be missing"
            )
        if self.measure == "classifier":
            classifier_of(model)

    def init(self, ctx: Context, state: DecodeState) -> jax.Array:
        """Count the layers that the new tokens went through, in all: i32[B]."""
        return jnp.zeros_like(state.n)

    def figures(self, aux: jax.Array) -> dict[str, jax.Array]:
        """Give a number for each row, for `Stats.figures`."""
        return {"layers": aux}

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return Draft(state.pending[:, None], size=jnp.ones_like(state.n))

    def forward(self, ctx: Context, state: DecodeState, draft: Draft) -> Output:
        def confidence(before: jax.Array, after: jax.Array) -> jax.Array:
            """Map the hidden states around a layer, before and after, [B, 1, D] -> float32[B]."""
            if self.measure == "softmax":
                return margin(logits_of(ctx.model, ctx.params, final_norm(ctx.model, ctx.params, after))[:, 0])
            if self.measure == "saturation":
                return cosine(before[:, 0].astype(jnp.float32), after[:, 0].astype(jnp.float32))
            hidden = final_norm(ctx.model, ctx.params, after)[:, 0].astype(jnp.float32)
            classifier = ctx.extras["exit_classifier"]
            return jax.nn.sigmoid(hidden @ classifier["weight"] + classifier["bias"])

        depth = ctx.model.cfg.n_layers
        may_exit = [not self.exits or count in self.exits for count in range(1, depth)] + [False]
        positions = state.cache.length[:, None]

        def leaves(before: jax.Array, after: jax.Array) -> jax.Array:
            return confidence(before, after) > self.threshold

        return forward_until(
            ctx.model, ctx.params, draft.tokens, positions, state.cache, leaves, may_exit, skip=state.done
        )

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        accepted, surprise = accept_one(state, draft, logits)
        assert output.depth is not None
        layers = state.aux + jnp.where(state.done, 0, output.depth)
        return Verdict(*accepted, aux=layers, surprise=surprise)


def margin(logits: jax.Array) -> jax.Array:
    """Map float32[..., V] -> [...]: by how much the likeliest token is more probable than the second."""
    best, _ = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), 2)
    return best[..., 0] - best[..., 1]


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Map [..., D] twice -> [...], at most 1."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.minimum(jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-30), 1.0)

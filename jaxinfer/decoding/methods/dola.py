"""DoLa: what the last layer knows and an earlier one did not yet (Chuang et al. 2024, section 2)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.config import ModelConfig
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept_one
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output, logits_of


@dataclass(frozen=True)
class Dola(DecodeMethod):
    """The last layer's logits less those of the layer below that differs most from it. Not greedy's.

    At each token that candidate layer is taken whose next-token distribution has the largest Jensen-Shannon divergence
    from the last layer's (equation 4). Tokens less than `alpha` times as likely as the likeliest drop out (equation 3).
    Layers are read through the head alone, without the final norm, as in the paper; numbers count from the embedding,
    0, and layer i is what i layers leave. Takes a Sampling: the authors add repetition_penalty=1.2.
    """

    layers: Literal["low", "high"] | tuple[int, ...] = "low"  # every second layer of the lower or upper half, or these
    alpha: float = 0.1

    samples: ClassVar[bool] = True
    reads_layers: ClassVar[bool] = True
    lossless: ClassVar[bool] = False

    def __post_init__(self):
        typed(self)
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or (isinstance(self.layers, str) and self.layers not in ("low", "high")):
            raise InputError(f"layers={self.layers!r} must be 'low', 'high' or at least one number")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha={self.alpha} must be between 0 and 1")

    def check(self, model: Any, policy: Any) -> None:
        last = model.config.n_layers - 1
        for layer in candidates(self.layers, model.config):
            if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or not 0 <= layer <= last:
                raise InputError(
                    f"layers={self.layers!r} names layer {layer!r}: what the last layer of {model.name} can be "
                    f"contrasted with goes from 0 (the embedding) to {last}"
                )

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return Draft(state.pending[:, None], size=jnp.ones_like(state.n))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        chosen = np.array(candidates(self.layers, ctx.model.cfg))
        early = logits_of(ctx.model, ctx.params, jnp.moveaxis(output.layers[chosen, :, 0], 0, 1))
        accepted, surprise = accept_one(state, draft, contrast(logits[:, 0], early, self.alpha)[:, None])
        return Verdict(*accepted, surprise=surprise)


def candidates(layers: str | tuple[int, ...], cfg: ModelConfig) -> tuple[int, ...]:
    """Give the numbers of the layers to choose from; of more than 40 layers, halves are the lowest and the highest 20.

    With tied embeddings the embedding itself is none (it says the token that it was given), and "low" begins at 2.
    """
    if not isinstance(layers, str):
        return layers
    last = cfg.n_layers
    middle = min(last // 2, 20) if layers == "low" else max(last // 2, last - 20)
    if layers == "high":
        return tuple(range(middle, last, 2))
    first = min(2, last - 1) if cfg.tie_embeddings else 0
    return tuple(range(first, middle, 2)) or (first,)


def contrast(final: jax.Array, early: jax.Array, alpha: float) -> jax.Array:
    """Compute float32[B, V] from the last layer's logits [B, V] and the candidates' [B, C, V]: equations 2 to 4."""
    mature, premature = jax.nn.log_softmax(final), jax.nn.log_softmax(early)
    layer = jnp.argmax(divergence(mature[:, None], premature), axis=1)
    base = jnp.take_along_axis(premature, layer[:, None, None], axis=1)[:, 0]
    # Not log(alpha) + max: alpha may be 0, which leaves all.
    plausible = jnp.exp(mature) >= alpha * jnp.exp(jnp.max(mature, axis=-1, keepdims=True))
    return jnp.where(plausible, mature - base, -jnp.inf)


def divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Compute the Jensen-Shannon divergence, in nats, over the last axis, of distributions given by logarithms."""
    log_mean = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)

    def term(log: jax.Array) -> jax.Array:
        return jnp.where(log > -jnp.inf, jnp.exp(log) * (log - log_mean), 0.0)

    return 0.5 * jnp.sum(term(log_p) + term(log_q), axis=-1)

"""Put a text through a mixture of experts: its routers' statistics, and the cross-entropy that is left."""

from typing import Any

import jax
import numpy as np

from jaxinfer.analysis.quality import cross_entropy
from jaxinfer.api import Model
from jaxinfer.layers.moe import RouterStats
from jaxinfer.network.transformer import Output, Transformer
from jaxinfer.runtime.compiled import program
from jaxinfer.runtime.prefill import prefill


def on_text(model: Model, ids: np.ndarray) -> tuple[dict[str, RouterStats], float]:
    """Map ids int32[1, W], routed as one batch, to arrays [L, ...] by layer kind, and nats of a token but the first."""
    placed, length = model.placed, ids.shape[1] - 1
    width = max(64, 1 << (length - 1).bit_length())
    pair = np.zeros((2, 1, width), np.int32)
    pair[0, :, :length], pair[1, :, :length] = ids[:, :-1], ids[:, 1:]
    cache = placed.empty_cache(model.default_policy(), np.array([length]), width)
    args = (placed.params, cache, *(placed.place(x, "batch", "tokens") for x in pair))
    n = placed.place(np.array([length], np.int32), "batch")
    args = (*args[:3], n, args[3], n)
    _, (stats, nll) = program(prefill, (placed.model, _routing_and_loss), args, carry=1, layout=placed.layout)[0].call(
        *args
    )
    return jax.tree.map(np.asarray, stats), float(np.asarray(nll, np.float64).sum() / length)


def _routing_and_loss(
    model: Transformer, params: Any, output: Output, labels: jax.Array, n: jax.Array
) -> tuple[dict[str, Any], jax.Array]:
    """Give, after `prefill`, what the routers did, and the cross-entropy of the labels."""
    return output.routing, cross_entropy(model, params, output, labels, n)

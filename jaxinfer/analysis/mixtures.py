"""What a mixture of experts makes of a text: its routers' statistics, and the cross-entropy that is left."""

from typing import Any

import jax
import numpy as np

from jaxinfer.analysis.quality import of_labels
from jaxinfer.api import Model
from jaxinfer.cache.store import Cache
from jaxinfer.engine import forward, positions_of
from jaxinfer.layers.moe import RouterStats
from jaxinfer.model import Transformer
from jaxinfer.programs import program


def on_text(model: Model, ids: np.ndarray) -> tuple[dict[str, RouterStats], float]:
    """ids int32[1, W], routed as one batch: by layer kind, arrays [L, ...]; nats of a token, the first one left out."""
    target, length = model.target, ids.shape[1] - 1
    width = max(64, 1 << (length - 1).bit_length())
    pair = np.zeros((2, 1, width), np.int32)
    pair[0, :, :length], pair[1, :, :length] = ids[:, :-1], ids[:, 1:]
    cache = target.empty_cache(model.default_policy(), np.array([length]), width)
    args = (target.params, cache, *(target.place(x, "batch", "tokens") for x in pair))
    args = (*args, target.place(np.array([length], np.int32), "batch"))
    _, (stats, nll) = program(_score, (target.model,), args, carry=1, layout=target.layout)[0].call(*args)
    return jax.tree.map(np.asarray, stats), float(np.asarray(nll, np.float64).sum() / length)


def _score(
    model: Transformer, params: Any, cache: Cache, tokens: jax.Array, labels: jax.Array, n: jax.Array
) -> tuple[Cache, tuple[dict[str, Any], jax.Array]]:
    """One forward over the whole text; the cache as it was."""
    output = forward(model, params, tokens, positions_of(cache, tokens), cache, n=n)
    return cache, (output.routing, of_labels(model, params, output.hidden, labels, n))

"""A model without some of its layers: a draft of itself (Draft & Verify, Zhang et al. 2023, section 3)."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.api import Model
from jaxinfer.config import Segment
from jaxinfer.errors import InputError
from jaxinfer.host.token_ids import batch_of
from jaxinfer.network.layerwise import most_likely


def keep_layers(model: Model, layers: Sequence[int]) -> Model:
    """Return the model with only these of its layers, counted from 0, in their order. Embeddings and norms are shared.

    The kept layers are copied. Raises InputError unless the numbers rise and the model has such layers.
    """
    cfg, wanted = model.config, list(layers)
    if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= cfg.n_layers:
        raise InputError(
            f"layers={wanted} must be rising numbers from 0 to {cfg.n_layers - 1}, the layers of {model.name}"
        )
    places = [
        (i, j, repeat) for i, s in enumerate(cfg.segments) for repeat in range(s.repeats) for j in range(len(s.pattern))
    ]
    runs = [list(run) for _, run in itertools.groupby(wanted, key=lambda layer: cfg.layers[layer])]
    segments = tuple(Segment((cfg.layers[run[0]],), len(run)) for run in runs)
    params = {name: leaf for name, leaf in model.params.items() if not name.startswith("segment_")}
    for number, run in enumerate(runs):
        parts = []
        for i, j, repeat in (places[layer] for layer in run):
            parts.append(jax.tree.map(lambda x, at=repeat: x[at], model.params[f"segment_{i}"][f"layer_{j}"]))
        params[f"segment_{number}"] = {"layer_0": jax.tree.map(lambda *xs: jnp.stack(xs), *parts)}
    config = cfg.replace(segments=segments)
    return dataclasses.replace(
        model, config=config, params=params, name=f"{model.name}-{len(wanted)}-layers", extras={}
    )


def search_layers(
    model: Model, tokens: Any, keep: int, progress: Callable[[int, float], None] | None = None
) -> tuple[list[int], float]:
    """Find the layers to keep, and how often the model that is left says the same as the whole one.

    Greedy search: of the layers that are left, the one goes whose loss costs the least agreement of the most likely
    tokens on a calibration text, int[B, T]. `progress(layers left, agreement)` is called after each. Raises InputError
    unless `keep` is between 1 and the number of layers.
    """
    n = model.config.n_layers
    if not 1 <= keep <= n:
        raise InputError(f"keep={keep} must be between 1 and {n}, the layers of {model.name}")
    text, places = batch_of(tokens, model.config.vocab_size), np.arange(n)

    def said(layers: list[int]) -> np.ndarray:
        return np.asarray(most_likely(model.network, model.placed.params, text, np.isin(places, layers)))

    whole = said(list(range(n)))

    def agreement(layers: list[int]) -> float:
        return float(np.mean(said(layers) == whole))

    left, best = list(range(n)), 1.0
    while len(left) > keep:
        found = {layer: agreement([other for other in left if other != layer]) for layer in left}
        gone = max(found, key=lambda layer: found[layer])
        left.remove(gone)
        best = found[gone]
        if progress:
            progress(len(left), best)
    return left, best

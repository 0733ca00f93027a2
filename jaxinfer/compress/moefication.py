"""An MLP's neurons, split into experts: MoEfication (Zhang et al. 2022, section 3).

Nothing is trained. Neurons whose input weights point the same way are put together, as many in every expert; a token
goes to the experts whose mean input weights it agrees with most. With all experts on, the sum over experts is the sum
over neurons that it was.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinfer.api import Model
from jaxinfer.config import LayerKind, MoE, Segment
from jaxinfer.errors import InputError

ROUNDS = 5  # of clustering


def moefy(model: Model, experts: int, top_k: int, seed: int = 0, **options: Any) -> Model:
    """Return the same model with every gated MLP split into `experts` experts, of which a token goes to `top_k`.

    `options` are further settings of `jaxinfer.config.MoE`. Raises InputError if the model has no gated MLPs, if their
    neurons cannot be split evenly, or if the mixture makes no sense.
    """
    cfg = model.config
    if not cfg.gated or cfg.mlp_bias or not cfg.d_ff or any(kind.moe for kind in cfg.kinds):
        raise InputError(f"{model.name} cannot be split into experts: its layers have no gated MLPs without biases")
    if experts < 1 or cfg.d_ff % experts:
        raise InputError(f"experts={experts} must divide d_ff={cfg.d_ff}, the neurons of an MLP")
    try:
        moe = MoE(experts, top_k, cfg.d_ff // experts, equal_gates=True, **options)
    except ValueError as error:
        raise InputError(str(error)) from None

    def sparse(kind: LayerKind) -> LayerKind:
        return dataclasses.replace(kind, moe=moe)

    segments = tuple(Segment(tuple(map(sparse, s.pattern)), s.repeats) for s in cfg.segments)
    params = dict(model.params)
    for i, segment in enumerate(cfg.segments):
        layers = {}
        for j in range(len(segment.pattern)):
            layer = dict(params[f"segment_{i}"][f"layer_{j}"])
            layer["moe"] = _split(layer.pop("mlp"), experts, np.random.default_rng((seed, i, j)))
            layers[f"layer_{j}"] = layer
        params[f"segment_{i}"] = layers
    config = cfg.replace(segments=segments)
    return dataclasses.replace(model, config=config, params=params, name=f"{model.name}-moe{experts}")


def _split(mlp: dict[str, Any], experts: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return stacks of an MLP, gate and up [L, F, D] and down [L, D, F], as those of experts and a router."""
    gate, up, down = (np.asarray(mlp[name]["kernel"], np.float32) for name in ("gate", "up", "down"))
    n_layers, n_neurons, d = gate.shape
    order = np.stack([_clusters(layer, experts, rng) for layer in gate])  # [L, F]

    def chosen(stack: np.ndarray, axis: int) -> np.ndarray:
        index = order[:, :, None] if axis == 1 else order[:, None, :]
        return np.take_along_axis(stack, index, axis=axis)

    shape = (n_layers, experts, n_neurons // experts, d)
    gates = chosen(gate, 1).reshape(shape)
    downs = np.moveaxis(chosen(down, 2).reshape(n_layers, d, experts, -1), 1, 2)
    router = gates.mean(axis=2)
    dtype = mlp["gate"]["kernel"].dtype
    return {
        "router": {"kernel": jnp.asarray(router / np.linalg.norm(router, axis=-1, keepdims=True), dtype)},
        "gate": jnp.asarray(gates, dtype),
        "up": jnp.asarray(chosen(up, 1).reshape(shape), dtype),
        "down": jnp.asarray(downs, dtype),
    }


def _clusters(weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Order the rows of weights [F, D] so that each cluster of F / n is together: balanced k-means by direction."""
    unit = weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-12)
    size = len(unit) // n
    centers = unit[rng.choice(len(unit), n, replace=False)]
    for _ in range(ROUNDS):
        likeness = unit @ centers.T
        label, room = np.full(len(unit), -1), np.full(n, size)
        # The neurons that lose most by their second choice choose first.
        second, first = np.sort(likeness, axis=1)[:, -2:].T if n > 1 else (likeness[:, 0], likeness[:, 0])
        wishes = np.argsort(-likeness, axis=1)
        for row in np.argsort(second - first, kind="stable"):
            label[row] = next(cluster for cluster in wishes[row] if room[cluster])
            room[label[row]] -= 1
        centers = np.stack([unit[label == cluster].mean(axis=0) for cluster in range(n)])
    return np.argsort(label, kind="stable")

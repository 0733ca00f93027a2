"""Random weights on a mesh: each device draws what it holds."""

from functools import partial
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxinfer.checkpoint.assemble import flatten, unflatten
from jaxinfer.config import ModelConfig
from jaxinfer.network.transformer import abstract_params, init_params, param_axes
from jaxinfer.sharding import Sharding
from jaxinfer.weights.quantize import Rounding, encoded, rounding_of


def random_params(config: ModelConfig, dtype: Any, weights: str | None, layout: Sharding, seed: int = 0) -> dict:
    """Return the weights that `Model.random` gives, laid out, and rounded to the format `weights` if any.

    A draw depends on its place in the parameter alone (`jax_threefry_partitionable`), so no device draws another's.
    """
    axes = flatten(param_axes(config))
    shapes = flatten(abstract_params(config, dtype))
    at_rest = {path: layout.of(axes[path], leaf.shape, at_rest=True) for path, leaf in shapes.items()}
    draw = jax.jit(partial(init_params, config, dtype), out_shardings=unflatten(at_rest))
    drawn = flatten(draw(jax.random.key(seed)))
    for path in shapes if weights is not None else ():
        rounding = rounding_of(path, weights or "")
        if rounding is not None:
            drawn[path] = jax.block_until_ready(_rounded(drawn.pop(path), rounding, axes[path], layout))
    return unflatten({path: drawn[path] for path in shapes})


def _rounded(leaf: jax.Array, rounding: Rounding, axes: Any, layout: Sharding) -> Any:
    shapes = jax.eval_shape(lambda leaf: encoded(leaf, *rounding), leaf)
    place = jax.tree.map(lambda x, own: layout.of(own, x.shape, at_rest=True), shapes, shapes.axes(axes))
    whole = NamedSharding(layout.mesh, PartitionSpec())

    def one(weight: jax.Array) -> Any:
        """Round a weight whose outputs share what is stored: every device does it, for the sums to be the same."""
        weight = jax.lax.with_sharding_constraint(weight, whole)
        return encoded(weight[None], rounding.format, rounding.n_in, rounding.stacked)

    def encode(leaf: jax.Array) -> Any:
        if rounding.format.by_rows or not rounding.stacked:
            leaf = leaf if rounding.format.by_rows else jax.lax.with_sharding_constraint(leaf, whole)
            return encoded(leaf, *rounding)
        return jax.tree.map(lambda x: x[:, 0], jax.lax.map(one, leaf))

    return jax.jit(encode, out_shardings=place)(leaf)

"""The number of a model's parameters."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxinfer.config import ModelConfig
from jaxinfer.network.transformer import abstract_params


@functools.lru_cache(maxsize=256)
def parameters(config: ModelConfig) -> int:
    """Count the numbers that a checkpoint of this model has to fill. Tied embeddings count once; nothing is computed.

    The shapes are those that initializing the network has, so what the network does not use is not counted: of OPT,
    the two rows of its position table that stand before the first position.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config, jnp.dtype("bfloat16"))))

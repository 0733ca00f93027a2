"""The number of a model's parameters."""

import jax
import jax.numpy as jnp
import pytest

from jaxinfer.network.counting import parameters
from jaxinfer.network.transformer import init_params

pytestmark = pytest.mark.quick


def test_parameters_are_those_that_initializing_makes(tiny_llama):
    config = tiny_llama.config
    made = init_params(config, jnp.dtype("float32"), jax.random.key(0))
    assert parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(made))


def test_a_head_of_its_own_counts_apart(tiny_llama):
    tied = tiny_llama.config.replace(tie_embeddings=True)
    table = tied.vocab_size * tied.d_model
    assert parameters(tied.replace(tie_embeddings=False)) - parameters(tied) == table
    assert parameters(tied) > table

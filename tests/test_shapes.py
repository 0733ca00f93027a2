"""Models by their shape alone."""

import math

import jax
import jax.numpy as jnp
import pytest

import jaxinfer
from jaxinfer import InputError, shapes
from jaxinfer.model import abstract_params


@pytest.mark.parametrize(
    ("name", "parameters"),  # as the published checkpoints have them
    [("llama2-7b", 6_738_415_616), ("llama3-8b", 8_030_261_248)],
)
def test_shapes_have_the_published_number_of_parameters(name, parameters):
    leaves = jax.tree.leaves(abstract_params(shapes.SHAPES[name], jnp.dtype("bfloat16")))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters


def test_a_shape_generates(tiny_llama, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny_llama.config)
    model = jaxinfer.load("random:tiny")
    assert (model.name, model.config, model.tokenizer) == ("random:tiny", tiny_llama.config, None)
    assert len(model.generate([[1, 2, 3]], max_new_tokens=2).tokens[0]) == 2
    with pytest.raises(InputError, match="a text prompt needs a tokenizer, and model random:tiny has none"):
        model.generate("text")


def test_an_unknown_shape_names_those_that_are():
    with pytest.raises(InputError, match=r"random:llama3: is no known shape: llama2-7b, llama3-8b; nearest: 'llama"):
        jaxinfer.load("random:llama3")

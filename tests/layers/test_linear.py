"""The product of activations and weights, in every formulation that its rows choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.layers.linear import matmul
from jaxinfer.weights.layer_stack import LayerViews

pytestmark = pytest.mark.quick

ROWS = (1, 2, 4, 5, 7, 8, 9, 15, 17, 31, 63, 64, 65)


@pytest.mark.parametrize("rows", ROWS)
def test_products_of_any_rows_are_the_products(rows):
    rng = np.random.default_rng(rows)
    x, w = rng.normal(size=(rows, 24)), rng.normal(size=(3, 10, 4, 6))
    expected = x @ w[1].reshape(10, 24).T
    single = jnp.asarray(w, jnp.float32)
    views = LayerViews(tuple(single))
    for kernel in (single, views):
        product = jax.jit(lambda x, kernel: matmul(x.reshape(-1, 4, 6), kernel, (10, 4, 6), 2, jnp.int32(1)))
        for _ in range(2):
            found = product(jnp.asarray(x, jnp.float32), kernel)
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("rows", "multiplied"), [(2, 2), (4, 4), (5, 8), (8, 8), (9, 16), (31, 32), (64, 64)])
def test_more_than_four_rows_are_multiplied_in_whole_eights(rows, multiplied):
    """What the library takes longest for is a number of rows between these."""
    equations = jax.make_jaxpr(lambda x, w: matmul(x, w, (10, 24)))(jnp.ones((rows, 24)), jnp.ones((10, 24))).eqns
    (dot,) = (eqn for eqn in equations if eqn.primitive.name == "dot_general")
    assert dot.outvars[0].aval.shape == (10, multiplied)

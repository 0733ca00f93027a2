"""Mixtures of experts inside a model: generation, under every dispatch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinfer import LayerKind, Lookup, Model, ModelConfig, Segment
from jaxinfer.config import MoE
from jaxinfer.errors import InputError
from jaxinfer.layers.moe import Experts

MIXTURE = MoE(experts=6, top_k=2, d_ff=40, normalize=True, shared_d_ff=24)


def config(**changes):
    sparse = LayerKind("sparse", moe=dataclasses.replace(MIXTURE, **changes))
    return ModelConfig("qwen2_moe", 97, 48, 80, 6, 2, 16, (Segment((LayerKind("dense"), sparse), 2),), 1024)


@pytest.fixture(scope="module")
def model():
    return Model.random(config())


@pytest.fixture(scope="module")
def alone(model, ragged):
    return model.generate(ragged((30, 1, 70)), max_new_tokens=40).tokens


def test_drafts_are_lossless_on_ragged_rows(model, ragged, alone):
    found = model.generate(ragged((30, 1, 70)), max_new_tokens=40, method=Lookup(width=6))
    assert found.tokens == alone
    assert found.stats.tokens_per_step > 1.1
    same = [ragged((30, 1, 70))[1]] * 3  # whatever the rows beside it
    assert model.generate(same, max_new_tokens=40).tokens == [alone[1]] * 3


@pytest.mark.parametrize("changes", [dict(dispatch="dense"), dict(dispatch="capacity", capacity_factor=3.0)])
def test_dispatches_agree_where_nothing_overflows(model, ragged, changes):
    """Capacity 3 for 2 choices of 6 experts: an expert has room for every token."""
    other = dataclasses.replace(model, config=config(**changes))
    rows = ragged((50, 50, 50))
    np.testing.assert_allclose(other.logits(rows), model.logits(rows), rtol=1e-4, atol=1e-4)


def test_neighbours_matter_to_capacity_in_prompts(model, ragged):
    tight = dataclasses.replace(model, config=config(dispatch="capacity", capacity_factor=0.5))
    rows = ragged((50, 50, 50))
    one, other = rows[:2], [rows[0], rows[2]]
    assert np.abs(tight.logits(one)[0] - tight.logits(other)[0]).max() > 1e-2
    np.testing.assert_allclose(model.logits(one)[0], model.logits(other)[0], rtol=1e-4, atol=1e-4)


LOOKING_AROUND = [
    dict(dispatch="capacity", capacity_factor=0.5),
    dict(dispatch="capacity", capacity_factor=0.5, priority="gate"),
    dict(router="expert_choice"),
    dict(router="sinkhorn"),
    dict(router="auction", top_k=1),
    dict(router="soft", slots=2, shared_d_ff=None),
]


@pytest.mark.parametrize("changes", [*LOOKING_AROUND, dict(router="hash", top_k=1), dict()], ids=str)
def test_decode_steps_route_each_token_alone(changes):
    """Four drafted tokens of three rows at a time, or one: each token gets the same, unless `in_decode` is "same"."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 4, 48)), jnp.float32)
    tokens, live = jnp.asarray(rng.integers(0, 97, (3, 4)), jnp.int32), jnp.ones((3, 4), bool)
    cfg, first = config(**changes), jnp.int32(0)
    layer = Experts(cfg, dataclasses.replace(MIXTURE, **changes), 1, jnp.float32)
    params = nn.meta.unbox(jax.jit(layer.init)(jax.random.key(0), x, first, tokens, live))

    def decode(moe):
        layer = Experts(cfg, moe, 1, jnp.float32)
        return jax.jit(lambda x, tokens, live: layer.apply(params, x, first, tokens, live, decoding=True)[0])

    step = decode(layer.moe)
    alone = [step(x[i : i + 1, j : j + 1], tokens[i : i + 1, j : j + 1], live[:1, :1]) for i, j in np.ndindex(3, 4)]
    np.testing.assert_allclose(step(x, tokens, live).reshape(12, 48), np.concatenate(alone)[:, 0], rtol=1e-4, atol=1e-5)
    if changes in LOOKING_AROUND:
        assert layer.moe.looks_around
        told = decode(dataclasses.replace(layer.moe, in_decode="same"))(x, tokens, live)
        assert np.abs(told.reshape(12, 48) - np.concatenate(alone)[:, 0]).max() > 1e-2


@pytest.mark.parametrize("changes", LOOKING_AROUND, ids=str)
def test_generation_says_that_neighbours_matter(model, changes):
    """Before anything is computed: here, what is asked for cannot be."""
    other = dataclasses.replace(model, config=config(**changes))
    with pytest.warns(UserWarning, match="depends on the tokens beside it"), pytest.raises(InputError):
        other.generate([[1, 2]], max_new_tokens=0)


def test_generation_routes_drafts_as_it_routes_tokens(model, ragged):
    tight = dataclasses.replace(model, config=config(dispatch="capacity", capacity_factor=0.01))
    rows = [row[:2] for row in ragged((2, 2, 2))]
    with pytest.warns(UserWarning, match="decode steps route each token alone"):
        drafted = tight.generate(rows, max_new_tokens=12, method=Lookup(width=4)).tokens
    with pytest.warns(UserWarning, match="decode steps route each token alone"):
        assert drafted == tight.generate(rows, max_new_tokens=12).tokens


def test_router_statistics_leave_padding_out(model, ragged):
    """37 tokens are padded to 64; a loop over the layers' loads says what is dropped."""
    rows = ragged((37, 37))
    tight = dataclasses.replace(model, config=config(dispatch="capacity", capacity_factor=0.75))
    free, bound = model.routing(rows)["sparse"], tight.routing(rows)["sparse"]
    assert free.load.shape == (2, 6)
    np.testing.assert_allclose(free.load.sum(axis=1), 2, rtol=1e-5)
    np.testing.assert_allclose(free.dropped, 0, atol=1e-6)
    room = np.ceil(0.75 * 2 * 64 * 2 / 6) / (2 * 37)  # of one expert, as a share of the tokens
    np.testing.assert_allclose(bound.load[0], np.minimum(free.load[0], room), rtol=1e-5)
    np.testing.assert_allclose(bound.dropped, 1 - bound.load.sum(axis=1) / 2, atol=1e-6)
    assert (free.balance_loss > 0.9).all()
    assert (free.z_loss > 0).all()
    with pytest.raises(InputError, match="has no mixture of experts"):
        Model.random(ModelConfig("llama", 97, 48, 80, 6, 2, 16, (Segment((LayerKind(),), 1),), 64)).routing(rows)

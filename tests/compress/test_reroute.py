"""Other routers and dispatches for the experts that a model has."""

import numpy as np
import pytest

from jaxinfer import LayerKind, Model, ModelConfig, Segment
from jaxinfer.compress import reroute
from jaxinfer.config import MoE
from jaxinfer.errors import InputError

pytestmark = pytest.mark.quick


def config(**settings):
    kinds = LayerKind("dense"), LayerKind("sparse", moe=MoE(6, 2, 40, shared_d_ff=24, **settings))
    return ModelConfig("qwen2_moe", 97, 48, 80, 6, 2, 16, (Segment(kinds, 2),), 256)


@pytest.fixture(scope="module")
def model():
    return Model.random(config())


def test_only_the_mixtures_change(model):
    found = reroute(model, dispatch="capacity", capacity_factor=0.5, router="sinkhorn")
    assert found.config == config(dispatch="capacity", capacity_factor=0.5, router="sinkhorn")
    assert found.params is model.params
    assert reroute(model, top_k=3).config.kinds[1].moe.top_k == 3


def test_what_a_capacity_drops_is_seen_in_the_statistics(model, ragged):
    stats = reroute(model, dispatch="capacity", capacity_factor=0.5).routing(ragged((64,)))["sparse"]
    assert (np.asarray(stats.dropped) >= 0.5 - 1 / 64).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(capacity_facter=2.0), "'capacity_facter' is not one of router, top_k, .*; nearest: 'capacity_factor'"),
        (dict(experts=8), "'experts' is not one of router"),
        (dict(capacity_factor=0.0), "capacity_factor=0.0 must be a finite number above zero"),
        (dict(top_k=7), "top_k=7 must be between 1 and the number of experts, 6"),
        (dict(router="sigmoid"), "router='sigmoid' needs other weights than router='softmax'"),
    ],
)
def test_settings_that_make_no_sense(model, settings, message):
    with pytest.raises(InputError, match=message):
        reroute(model, **settings)


def test_a_model_without_experts(tiny_llama):
    with pytest.raises(InputError, match="has no mixture of experts"):
        reroute(tiny_llama, top_k=1)

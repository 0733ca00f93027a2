"""Mixtures of experts inside a model: generation, under every dispatch."""

import dataclasses

import numpy as np
import pytest

from jaxinfer import Greedy, LayerKind, Lookup, Model, ModelConfig, Segment
from jaxinfer.config import MoE
from jaxinfer.errors import InputError

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
    assert model.generate(ragged((30, 1, 70))[1:2], max_new_tokens=40, method=Greedy()).tokens == alone[1:2]


@pytest.mark.parametrize("changes", [dict(dispatch="dense"), dict(dispatch="capacity", capacity_factor=3.0)])
def test_dispatches_agree_where_nothing_overflows(model, ragged, changes):
    """Capacity 3 for 2 choices of 6 experts: an expert has room for every token."""
    other = dataclasses.replace(model, config=config(**changes))
    rows = ragged((50, 50, 50))
    np.testing.assert_allclose(other.logits(rows), model.logits(rows), rtol=1e-4, atol=1e-4)


def test_neighbours_matter_to_capacity_in_prompts_and_not_in_decode_steps(model, ragged):
    tight = dataclasses.replace(model, config=config(dispatch="capacity", capacity_factor=0.5))
    rows = ragged((50, 50))
    assert np.abs(tight.logits(rows)[0] - tight.logits(rows[:1])[0]).max() > 1e-2
    np.testing.assert_allclose(model.logits(rows)[0], model.logits(rows[:1])[0], rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="depends on the tokens beside it"):
        tight.generate(rows, max_new_tokens=2)


@pytest.mark.parametrize(
    "changes",
    [
        dict(dispatch="capacity", capacity_factor=0.5),
        dict(router="expert_choice"),
        dict(router="sinkhorn"),
        dict(router="auction", top_k=1),
        dict(router="soft", slots=2, shared_d_ff=None),
        dict(router="hash", top_k=1),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:what this mixture")
def test_decode_steps_route_each_token_alone(ragged, changes):
    """Four drafted tokens of three rows at a time, or one: what a token gets is the same."""
    model = Model.random(config(**changes))
    rows = [row[:2] for row in ragged((2, 2, 2))]
    drafted = model.generate(rows, max_new_tokens=12, method=Lookup(width=4)).tokens
    assert drafted == model.generate(rows, max_new_tokens=12).tokens


@pytest.mark.filterwarnings("ignore:what this mixture")
def test_decode_can_be_told_to_route_as_prompts_are(ragged):
    alone = Model.random(config(dispatch="capacity", capacity_factor=0.01))
    same = dataclasses.replace(alone, config=config(dispatch="capacity", capacity_factor=0.01, in_decode="same"))
    rows = ragged((3, 3, 3, 3))
    assert alone.generate(rows, max_new_tokens=12).tokens != same.generate(rows, max_new_tokens=12).tokens


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

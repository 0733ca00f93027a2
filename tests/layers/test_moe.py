"""Mixtures of experts inside a model: generation, under every dispatch."""

import dataclasses

import numpy as np
import pytest

from jaxinfer import Greedy, LayerKind, Lookup, Model, ModelConfig, Segment
from jaxinfer.config import MoE

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


def test_capacity_says_that_neighbours_matter_and_they_do(model, ragged):
    tight = dataclasses.replace(model, config=config(dispatch="capacity", capacity_factor=0.5))
    rows = ragged((50, 50))
    assert np.abs(tight.logits(rows)[0] - tight.logits(rows[:1])[0]).max() > 1e-2
    np.testing.assert_allclose(model.logits(rows)[0], model.logits(rows[:1])[0], rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="capacity dispatch drops tokens"):
        tight.generate(rows, max_new_tokens=2)

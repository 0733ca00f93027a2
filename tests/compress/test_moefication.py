"""MLPs split into experts: the same sum over neurons, in another order."""

import numpy as np
import pytest

from jaxinfer import LayerKind, Model, ModelConfig, Segment
from jaxinfer.compress import moefy
from jaxinfer.config import MoE
from jaxinfer.errors import InputError

CONFIG = ModelConfig("llama", 97, 48, 80, 6, 2, 16, (Segment((LayerKind(), LayerKind("local", window=8)), 2),), 512)


@pytest.mark.parametrize("dispatch", ["dropless", "dense", "capacity"])
def test_all_experts_on_is_the_model_itself(ragged, dispatch):
    model, rows = Model.random(CONFIG), ragged((20, 20))
    split = moefy(model, 5, 5, dispatch=dispatch, capacity_factor=1.0)
    np.testing.assert_allclose(split.logits(rows), model.logits(rows), rtol=1e-4, atol=1e-4)
    fewer = np.asarray(moefy(model, 5, 2, dispatch=dispatch).logits(rows))
    assert np.abs(fewer - np.asarray(model.logits(rows))).max() > 1e-2


def test_smollm2_with_all_experts_on(smollm2, prose):
    rows = [smollm2.tokenizer.encode(prose)[:100]]
    split = moefy(smollm2, 8, 8)
    expected = np.asarray(smollm2.logits(rows))
    assert np.abs(np.asarray(split.logits(rows)) - expected).max() < 1e-4 * np.abs(expected).max()


def test_neurons_that_point_the_same_way_are_together():
    """Four directions, twenty noisy neurons of each, shuffled: an expert has one, and its tokens choose it."""
    rng = np.random.default_rng(0)
    model = Model.random(CONFIG)
    directions = np.linalg.qr(rng.standard_normal((48, 4)))[0].T
    kind = rng.permutation(np.repeat(np.arange(4), 20))
    layer = model.params["segment_0"]["layer_0"]["mlp"]
    gate = directions[kind] + 0.05 * rng.standard_normal((2, 80, 48))
    layer["gate"]["kernel"] = gate.astype(np.float32)
    experts = moefy(model, 4, 1).params["segment_0"]["layer_0"]["moe"]
    found = np.asarray(experts["gate"])  # [L, E, F, D]
    nearest = np.argmax(found @ directions.T, axis=-1)
    assert (nearest == nearest[:, :, :1]).all()
    assert all(len(set(row)) == 4 for row in nearest[:, :, 0].tolist())
    chosen = np.argmax(np.asarray(experts["router"]["kernel"])[0] @ directions.T, axis=0)
    assert [nearest[0, e, 0] for e in chosen] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("experts", "top_k", "message"),
    [(7, 1, "experts=7 must divide d_ff=80"), (4, 5, "top_k=5 must be between"), (0, 1, "experts=0 must divide")],
)
def test_a_split_that_makes_no_sense(experts, top_k, message):
    with pytest.raises(InputError, match=message):
        moefy(Model.random(CONFIG), experts, top_k)


def test_a_model_that_has_experts_already():
    cfg = CONFIG.replace(segments=(Segment((LayerKind(moe=MoE(4, 2, 16)),), 1),))
    with pytest.raises(InputError, match="cannot be split into experts"):
        moefy(Model.random(cfg), 4, 2)

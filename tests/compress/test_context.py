"""Positions scaled for a longer context."""

import math

import numpy as np
import pytest

from jaxinfer import LayerKind, Model, ModelConfig, Segment
from jaxinfer.analysis.quality import perplexity, token_nll
from jaxinfer.compress import extend_context
from jaxinfer.errors import InputError
from jaxinfer.layers.position import rope_frequencies

pytestmark = pytest.mark.quick

PATTERN = (LayerKind("local", window=8), LayerKind())
CONFIG = ModelConfig("llama", 97, 48, 80, 6, 2, 16, (Segment(PATTERN, 2),), 64)


def test_kinds_scale_the_layers_that_see_everything():
    model = Model.random(CONFIG)
    plain = rope_frequencies(PATTERN[1].rope, 16)
    for kind in ("none", "linear", "ntk", "yarn"):
        longer = extend_context(model, kind, 4.0).config
        local, everything = longer.kinds
        assert longer.max_positions == 256
        assert local == PATTERN[0]
        found = rope_frequencies(everything.rope, 16)
        assert found[0] == pytest.approx(plain[0] / (4 if kind == "linear" else 1))  # the fastest
        assert found[-1] == pytest.approx(plain[-1] / (1 if kind == "none" else 4), rel=1e-4)  # the slowest
    yarn = extend_context(model, "yarn", 4.0).config.kinds[1].rope.scaling
    assert yarn.magnitude == pytest.approx(0.1 * math.log(4) + 1)


def test_texts_beyond_the_context_are_scored(ragged):
    (row,) = ragged((100,))
    longer = extend_context(Model.random(CONFIG), "linear", 2.0)
    nll = token_nll(longer, np.array([row], np.int32))
    logits = np.asarray(longer.logits([row]), np.float64)[0]
    expected = np.log(np.exp(logits).sum(axis=1))[:-1] - logits[np.arange(99), row[1:]]
    np.testing.assert_allclose(nll[0], expected, rtol=1e-4, atol=1e-5)
    assert perplexity(longer, row, window=100).value == pytest.approx(math.exp(nll.mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "factor", "message"),
    [
        ("yran", 2.0, "kind='yran' must be one of .* yarn"),
        ("ntk", 0.5, "factor=0.5 must be a number, and at least 1"),
        ("yarn", float("inf"), "factor=inf must be a number, and at least 1"),
        ("linear", "2", "factor='2' must be a number"),
        ("none", 1e9, "factor=1000000000.0: a context of 64 can grow to 2147483646 at most"),
        (["yarn"], 2.0, r"kind=\['yarn'\] must be one of"),
    ],
)
def test_a_scaling_that_makes_no_sense(kind, factor, message):
    with pytest.raises(InputError, match=message):
        extend_context(Model.random(CONFIG), kind, factor)


def test_models_that_cannot_be_scaled():
    model = extend_context(Model.random(CONFIG), "ntk", 2.0)
    with pytest.raises(InputError, match="has scaled rotary positions already"):
        extend_context(model, "ntk", 2.0)
    still = CONFIG.replace(segments=(Segment((LayerKind(rope=None),), 1),))
    with pytest.raises(InputError, match="has no rotary positions to scale"):
        extend_context(Model.random(still), "ntk", 2.0)

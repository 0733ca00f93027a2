"""Layers that carry a state: what is committed, rolled back, and read off, beside attention in one model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import Dense, LayerKind, Lookup, Model, ModelConfig, Rope, Segment
from jaxinfer.config import SSM, LinearAttention
from jaxinfer.network.transformer import forward

MAMBA = LayerKind("mamba", rope=None, mixer=SSM(1, width=64, state=8, dt_rank=3))
MAMBA2 = LayerKind("mamba2", rope=None, mixer=SSM(2, width=64, state=8, heads=4, groups=2))
LINEAR = LayerKind("linear", rope=Rope(), mixer=LinearAttention())
LOCAL = LayerKind("local", window=8)
MODELS = {"states": ((MAMBA2, MAMBA), 0), "hybrid": ((MAMBA2, LOCAL, LINEAR), 64)}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    pattern, d_ff = MODELS[request.param]
    cfg = ModelConfig("test", 97, 48, d_ff, 4, 2, 16, (Segment(pattern, 2),), 1024)
    model = Model.random(cfg)
    # At the initial decay of one and step of log 2 nothing reaches beyond a few tokens.
    return dataclasses.replace(model, params=jax.tree_util.tree_map_with_path(_slower, model.params))


def _slower(path, x):
    return x - 3.0 if path[-1].key in ("a_log", "dt_bias") else x


@pytest.fixture(scope="module")
def greedy(model, ragged):
    """Prompts, how many new tokens each gets, and these."""
    rows, new = ragged((30, 1, 90)), [40, 12, 33]
    return rows, new, model.generate(rows, max_new_tokens=new).tokens


def test_drafts_are_lossless_on_ragged_rows(model, greedy):
    """Rejected drafts, and rows that are done, leave no trace in the states; prompts cross a chunk's edge."""
    rows, new, expected = greedy
    found = model.generate(rows, max_new_tokens=new, method=Lookup(width=6))
    assert found.tokens == expected
    assert sum(found.stats.accepted) > 0
    others = model.generate([rows[2], rows[0], rows[0]], max_new_tokens=[33, 40, 1]).tokens
    assert others[:2] == [expected[2], expected[0]]  # whatever the rows beside them


def test_steps_agree_with_the_whole_text(model, greedy):
    """Under the tokens so far, each new one is the likeliest: chunks of a prompt and steps are one recurrence."""
    row, new = greedy[0][0], greedy[2][0]
    logits = np.asarray(model.logits([row + new]))[0, len(row) - 1 : -1]
    gap = logits.max(axis=1) - logits[np.arange(len(new)), new]
    assert gap.max() < 1e-4 * np.abs(logits).max()
    early = np.asarray(model.logits([[(row[0] + 1) % 97, *row[1:], *new]]))[0, -1]
    assert np.abs(early - np.asarray(model.logits([row + new]))[0, -1]).max() > 1e-5  # the first token still counts


def test_a_tree_of_drafts_is_refused(model):
    cache = Dense().init(model.config, 1, 128, jnp.float32)
    tokens = jnp.zeros((1, 3), jnp.int32)
    with pytest.raises(ValueError, match="drafts must be chains, not trees"):
        forward(model.network, model.params, tokens, tokens, cache, tree=jnp.ones((1, 3, 3), bool), decoding=True)


def test_linear_attention_is_its_definition():
    """One layer's outputs against all pairs of tokens (Katharopoulos et al. 2020, equation 8)."""
    from jaxinfer.layers.recurrent import recurrence

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 80, 2, 4)).astype(np.float32) for _ in range(3))

    def phi(x):
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    weights = np.einsum("bthd,bshd->bhts", phi(q), phi(k)) * np.tril(np.ones((80, 80)))
    expected = np.einsum("bhts,bshd->bthd", weights / weights.sum(axis=-1, keepdims=True), v)
    ones = np.concatenate([v, np.ones((1, 80, 2, 1), np.float32)], axis=-1)
    state = jnp.zeros((1, 2, 5, 4))
    for keep_all in (False, True):
        y, _ = recurrence(
            jnp.zeros((1, 80, 2)), jnp.asarray(phi(k)), jnp.asarray(ones), jnp.asarray(phi(q)), state, keep_all
        )
        np.testing.assert_allclose(y[..., :4] / y[..., 4:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(version=2, width=60, state=8, heads=8), r"heads=8 must divide width=60"),
        (dict(version=2, width=64, state=8, heads=8, groups=3), r"groups=3 the heads"),
        (dict(version=1, width=64, state=8, conv=1), r"conv=1 must be at least 2"),
    ],
)
def test_a_state_space_that_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        SSM(**options)

"""The definition itself, against loops over single scores in float64; 8-bit codes; and the merge of parts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LAYERS, Case, tree

from jaxinfer.cache.codes import Codes, dequantize, quantize
from jaxinfer.cache.store import Store, extent
from jaxinfer.kernels import reference
from jaxinfer.kernels.contract import PLAIN, Scoring, merged, with_sinks

pytestmark = pytest.mark.quick

SLOPES = np.array([0.5, 0.25, 0.125, 0.0625, 0.03, 0.01], np.float32)
SINKS = np.array([0.3, -1.0, 2.0, 0.0, 5.0, -3.0], np.float32)


def by_hand(q, keys, values, shown, distances, head, scoring, sink):
    """One query over the keys that it sees, a score at a time: (out, log-sum-exp)."""
    scores = []
    for key, seen, distance in zip(keys, shown, distances, strict=True):
        score = float(np.dot(q, key))
        if scoring.softcap:
            score = scoring.softcap * math.tanh(score / scoring.softcap)
        if scoring.slopes is not None:
            score -= float(scoring.slopes[head]) * float(distance)
        scores.append(score if seen else -math.inf)
    weights = [math.exp(score) for score in scores]
    total = sum(weights) + (math.exp(float(scoring.sinks[head])) if sink else 0.0)
    out = sum((w * value for w, value in zip(weights, values, strict=True)), np.zeros(values.shape[-1]))
    return (out / total if total else out), (math.log(total) if total else -math.inf)


CASES = [
    PLAIN,
    Scoring(softcap=1.5),
    Scoring(slopes=SLOPES),
    Scoring(softcap=2.0, slopes=SLOPES, sinks=SINKS),
    Scoring(value_width=5),
]


@pytest.mark.parametrize("scoring", CASES, ids=["plain", "softcap", "alibi", "all", "latent"])
def test_a_part_is_what_a_loop_over_scores_says(scoring):
    case = Case((6, 3), 8, tokens=3, lengths=(0, 5, 11), slots=16, window=9, first=2, scattered=True)
    (k, v), mask = case.read(), np.asarray(case.mask())
    found = reference.partial(case.q, k, v, case.mask(), case.q_pos, case.kv_pos, scoring)
    for b in range(3):
        for head in range(6):
            for t in range(3):
                row, kv = t * 2 + head % 2, head // 2
                distances = np.asarray(case.q_pos)[b, t] - np.asarray(case.kv_pos)[b]
                values = np.asarray(k if scoring.value_width else v, np.float64)[b, kv][:, : scoring.value_width]
                given = np.asarray(case.q, np.float64)[b, kv, row], np.asarray(k, np.float64)[b, kv], values
                out, lse = by_hand(*given, mask[b, t], distances, head, scoring, sink=False)
                np.testing.assert_allclose(found.out[b, kv, row], out, rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(found.lse[b, kv, row], lse, rtol=1e-5, atol=1e-5)
                if scoring.sinks is not None:
                    with_sink = with_sinks(found, jnp.asarray(scoring.sinks), 3)[b, kv, row]
                    out, _ = by_hand(*given, mask[b, t], distances, head, scoring, sink=True)
                    np.testing.assert_allclose(with_sink, out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["chain", "tree"])
@pytest.mark.parametrize("scoring", [CASES[0], CASES[3]], ids=["plain", "all"])
def test_plain_xla_is_the_reference(scoring, shape):
    from jaxinfer.kernels import xla

    case = Case((6, 3), 16, tokens=5, lengths=(0, 5, 130), slots=256, window=100, scattered=True)
    rng = np.random.default_rng(0)
    k, v = (jnp.asarray(rng.normal(size=(3, 3, 5, 16)), jnp.float32) for _ in "kv")
    mask = jnp.asarray(tree(rng, 3, 5)) if shape == "tree" else None
    store = Store(case.k, case.v, case.kv_pos)
    args = (case.q, k, v, mask, store, jnp.int32(1), case.q_pos, extent(store), case.visible, lambda x, t: x.astype(t))
    found, expected = (module.attend(*args, scoring=_arrays(scoring)) for module in (xla, reference))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def _arrays(scoring):
    return scoring._replace(sinks=None if scoring.sinks is None else jnp.asarray(scoring.sinks))


def test_the_merge_of_two_parts_is_the_whole():
    case = Case((6, 3), 8, tokens=3, lengths=(0, 9, 16), slots=16)
    k, v = case.read()
    mask = case.mask()
    parts = []
    for half in (slice(0, 7), slice(7, 16)):
        shown = jnp.zeros_like(mask).at[..., half].set(mask[..., half])
        parts.append(reference.partial(case.q, k, v, shown, case.q_pos, case.kv_pos))
    whole = reference.partial(case.q, k, v, mask, case.q_pos, case.kv_pos)
    found = merged(*parts)
    np.testing.assert_allclose(found.out, whole.out, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.lse, whole.lse, rtol=1e-5, atol=1e-6)
    assert np.isneginf(found.lse[0]).all()
    assert not np.asarray(with_sinks(found, jnp.zeros(6), 3)[0]).any()


@pytest.mark.parametrize(("dtype", "worst"), [("int8", 0.51 / 127), ("float8_e4m3fn", 0.07)])
def test_codes_are_within_half_a_step_of_what_they_stand_for(dtype, worst):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 7, 32)) * 10, jnp.float32).at[0, 0, 0].set(0)
    stored = quantize(x, dtype)
    assert stored.codes.dtype == dtype
    assert stored.scale.shape == (2, 3, 7)
    top = np.abs(np.asarray(x)).max(-1, keepdims=True)
    error = np.abs(np.asarray(dequantize(stored, jnp.float32)) - x)
    assert (error <= worst * top + 1e-9).all()
    assert (error > 0).any()
    assert not np.asarray(dequantize(stored, jnp.float32))[0, 0, 0].any()


def test_codes_are_a_tree_that_a_store_can_hold():
    stored = quantize(jnp.ones((LAYERS, 1, 2, 4, 8)), "int8")
    assert isinstance(jax.tree.map(lambda x: x[0], stored), Codes)

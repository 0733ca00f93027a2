"""Truncation, temperature and penalties against slow references that sort, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer import InputError, Sampling
from jaxinfer.decoding.sampling import SamplingState, distribution, keep_top_k, keep_top_p, observe, penalize

top_k, top_p = jax.jit(keep_top_k), jax.jit(keep_top_p)
distribute, punish, count = jax.jit(distribution), jax.jit(penalize), jax.jit(observe)
PROPERTY = settings(max_examples=60, deadline=None)
VOCAB = 12


def softmax(x):
    with np.errstate(invalid="ignore"):
        weights = np.exp(x - np.max(x))
    return weights / weights.sum()


def slow_top_k(logits, k):
    """bool[V]: not below the k-th of the sorted logits."""
    k = len(logits) if k == 0 else min(k, len(logits))
    return logits >= np.sort(logits)[::-1][k - 1]


def slow_top_p(probs, p):
    """bool[V]: whole groups of equally likely tokens, likeliest first, until their mass is p."""
    kept = np.zeros(len(probs), bool)
    for value in sorted(set(probs.tolist()), reverse=True):
        kept |= probs == value
        if p < 1 and probs[kept].sum() >= p:
            break
    return kept


def slow_distribution(logits, temperature=1.0, k=0, p=1.0, min_p=0.0):
    logits = np.asarray(logits, np.float64)
    if temperature == 0:
        return np.eye(len(logits))[np.argmax(logits)]
    probs = softmax(np.where(slow_top_k(logits, k), logits / temperature, -np.inf))
    probs = np.where(slow_top_p(probs, p), probs, 0.0)
    probs = np.where(probs >= min_p * probs.max(), probs, 0.0)
    return probs / probs.sum()


def state_of(prompts=None, batch=1, vocab=VOCAB, **fields):
    state = SamplingState.of(Sampling(**fields), prompts or [[0]] * batch, vocab)
    return jax.tree.map(jnp.asarray, state)


SETTINGS = [
    dict(temperature=1.0),
    dict(temperature=0.7, top_k=3),
    dict(temperature=0.0, top_k=5, top_p=0.3, min_p=0.5),
    dict(temperature=1.3, top_p=0.6),
    dict(temperature=2.0, top_k=8, top_p=0.8),
    dict(temperature=1.0, min_p=0.2),
    dict(temperature=1e-3),
    dict(temperature=5.0, top_k=1000, top_p=1e-6),
    dict(temperature=1.0, top_k=6, top_p=0.95, min_p=0.05),
    dict(temperature=1.0, min_p=1.0),
]


@pytest.mark.parametrize("seed", range(4))
def test_distribution_of_a_mixed_batch(seed):
    """Every row has settings of its own, and three positions."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (len(SETTINGS), 3, VOCAB)).astype(np.float32)
    logits[:, 1, 3:7] = logits[:, 1, 2:3]  # ties
    logits[:, 2, 5:] = -np.inf
    defaults = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    fields = {name: [s.get(name, default) for s in SETTINGS] for name, default in defaults.items()}
    probs = np.asarray(distribute(state_of(batch=len(SETTINGS), **fields), logits))
    for row, s in enumerate(SETTINGS):
        for t in range(3):
            slow = (s["temperature"], s.get("top_k", 0), s.get("top_p", 1.0), s.get("min_p", 0.0))
            expected = slow_distribution(logits[row, t], *slow)
            np.testing.assert_allclose(probs[row, t], expected, rtol=2e-5, atol=1e-7, err_msg=f"{s} at {t}")


@pytest.mark.parametrize("fields", [{}, dict(top_k=2), dict(top_p=0.9), dict(min_p=0.1), dict(top_k=1, top_p=0.1)])
def test_huge_logits(fields):
    logits = np.array([[[1e38, -1e38, 3e38, 0.0, -np.inf, 3e38]]], np.float32)
    expected = [0, 0, 0.5, 0, 0, 0.5]
    np.testing.assert_allclose(distribute(state_of(vocab=6, **fields), logits)[0, 0], expected)


@pytest.mark.parametrize("temperature", [1e-4, 1e-10, 1e-30])
@pytest.mark.parametrize("fields", [{}, dict(top_k=3), dict(top_p=0.5)])
def test_a_tiny_temperature_is_nearly_greedy(temperature, fields):
    logits = np.array([[[1.0, 9.0, -4.0, 8.5, 0.0]]], np.float32)
    probs = distribute(state_of(vocab=5, temperature=temperature, **fields), logits)
    np.testing.assert_allclose(probs[0, 0], [0, 1, 0, 0, 0], atol=1e-6)


def test_min_p_is_relative_to_the_likeliest():
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    for min_p, expected in [(0.2, [0.5, 0.3, 0.15, 0]), (0.4, [0.5, 0.3, 0, 0]), (0.7, [1, 0, 0, 0])]:
        got = distribute(state_of(vocab=4, min_p=min_p), np.log(probs)[None, None].astype(np.float32))[0, 0]
        np.testing.assert_allclose(got, np.array(expected) / sum(expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", [1.0, -0.1]),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_p", [0.5, 0.0]),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_k", [3, -2]),
        ("min_p", 2),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", float("nan")),
        ("frequency_penalty", None),
    ],
)
def test_bad_values_name_their_field(field, value):
    with pytest.raises(InputError, match=f"^{field}="):
        Sampling(**{field: value})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Sampling)])
def test_a_list_of_another_length_names_its_field(field):
    with pytest.raises(InputError, match=f"{field} has 2 values for 3 prompts"):
        SamplingState.of(Sampling(**{field: [1, 1]}), [[1], [2], [3]], VOCAB)


def test_no_temperature_overflows():
    logits = np.array([[[1.0, 9.0, -4.0]], [[1.0, 3e38, -4.0]]], np.float32)
    probs = np.asarray(distribute(state_of(batch=2, temperature=[2e-38, 0.5]), logits))
    np.testing.assert_array_equal(probs[:, 0], [[0, 1, 0], [0, 1, 0]])



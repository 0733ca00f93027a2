"""Truncations: against references that sort, and against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import slow_top_k, slow_top_p, softmax, state_of

from jaxinfer.decoding.sampling.settings import distribution
from jaxinfer.decoding.sampling.truncation import (
    entropy,
    eta_cutoff,
    keep_likely,
    keep_top_k,
    keep_top_n_sigma,
    keep_top_p,
    keep_typical,
)

top_k, top_p, typical, n_sigma = map(jax.jit, (keep_top_k, keep_top_p, keep_typical, keep_top_n_sigma))
distribute = jax.jit(distribution)
PROPERTY = settings(max_examples=60, deadline=None)


@PROPERTY
@given(
    # Few values, so that ties are the rule; infinities and the largest floats among them. Adding 0.0 drops -0.0's sign.
    st.lists(st.sampled_from([-np.inf, -3.4e38, -2.0, -1e-30, 0.0, 1e-30, 1.5, 2.0, 3.4e38]), min_size=9, max_size=9),
    st.integers(0, 2**31 - 1) | st.integers(0, 10),
)
def test_top_k_keeps_what_sorting_keeps(logits, k):
    logits = np.array(logits, np.float32)
    expected = np.where(slow_top_k(logits, k), logits, -np.inf)
    np.testing.assert_array_equal(top_k(logits[None], jnp.array([k]))[0], expected)


@PROPERTY
@given(st.lists(st.integers(0, 63), min_size=63, max_size=63), st.integers(1, 64))
def test_top_p_keeps_what_sorting_keeps(throws, p64):
    # 63 throws of 1/64 and one sure one: sums of dyadic numbers are exact, so a set that just reaches p counts.
    # Throws at t land on cell t % 9 and t % 4: tied cells and empty cells both occur.
    probs = np.bincount([t % 9 if t % 2 else t % 4 for t in [*throws, 0]], minlength=9).astype(np.float32) / 64
    p = np.float32(p64 / 64)
    expected = np.where(slow_top_p(probs, p), probs, 0)
    np.testing.assert_array_equal(top_p(probs[None], p[None])[0], expected)


def test_top_p_just_above_and_below_a_sum():
    probs = np.array([[0.125, 0.5, 0.25, 0.125]] * 5, np.float32)
    p = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.75, 0.7500001, 1e-30], np.float32)
    kept = np.asarray(top_p(probs, p)) > 0
    assert kept.sum(-1).tolist() == [1, 2, 2, 4, 1]  # the two of 0.125 are tied: both or none
    assert kept[:, 1].all()


def test_top_p_of_one_keeps_tokens_too_rare_to_change_a_float32_sum():
    probs = np.array([[1.0, 1e-12, 1e-20, 0.0]], np.float32)
    np.testing.assert_array_equal(top_p(probs, jnp.ones(1)), probs)
    np.testing.assert_array_equal(top_p(probs, jnp.array([0.9999])) > 0, [[True, False, False, False]])


def test_zeros_of_both_signs_are_a_tie():
    np.testing.assert_array_equal(keep_top_k(np.float32([[0.0, -0.0, -1.0]]), np.int32([1])), [[0.0, -0.0, -np.inf]])


def slow_typical(probs, mass):
    """bool[V]: whole groups of equally typical tokens, the most typical first, until they have the mass."""
    surprise = -np.log(probs, where=probs > 0, out=np.full(len(probs), -np.inf))
    away = np.abs(surprise - (probs * np.where(probs > 0, surprise, 0)).sum())
    kept = np.zeros(len(probs), bool)
    for value in sorted(set(away.tolist())):
        kept |= away == value
        if mass < 1 and probs[kept].sum() >= mass:
            break
    return kept


def test_typical_at_the_boundaries():
    """Two tokens at the entropy exactly, in dyadic numbers; ties stay together; what just reaches the mass counts."""
    probs = np.array([[0.5, 0.125, 0.125, 0.0625, 0.0625, 0.0625, 0.0625, 0.0]] * 5, np.float32)
    above = np.nextafter(np.float32(0.25), np.float32(1))
    mass = np.array([1e-6, 0.25, above, 0.9999, 1.0], np.float32)
    got = np.asarray(typical(probs, mass))
    for row in range(5):
        np.testing.assert_array_equal(
            got[row] > 0, slow_typical(probs[row].astype(np.float64), mass[row]) & (probs[row] > 0)
        )
    assert (got > 0).sum(-1).tolist() == [2, 2, 3, 7, 7]
    sure = np.eye(4, dtype=np.float32)[:1]
    np.testing.assert_array_equal(typical(sure, np.float32([0.2])), sure)


def random_logits(vocab, seed=0):
    """Eight rows of float32[2, vocab]: from nearly uniform to nearly sure, in each some tokens at -inf."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(8, 2, vocab)) * np.array([0.1, 0.5, 1, 2, 3, 5, 8, 20])[:, None, None]
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    return logits.astype(np.float32)


ONE = {  # of each row another value; the neutral one among them
    "typical_p": ("TypicalLogitsWarper", [0.05, 0.2, 0.5, 0.9, 0.95, 0.999, 1.0, 0.7]),
    "epsilon": ("EpsilonLogitsWarper", [0.0, 3e-4, 9e-4, 0.01, 0.03, 0.2, 0.6, 0.999]),
    "eta": ("EtaLogitsWarper", [3e-4, 0.0, 6e-4, 4e-3, 0.02, 0.1, 0.5, 0.9]),
}


def as_transformers(warpers, logits):
    """float32[V] -> the probabilities that transformers would sample from."""
    torch = pytest.importorskip("torch")
    scores = torch.tensor(logits[None])
    for warp in warpers:
        scores = warp(None, scores)
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("vocab", [8, 67, 300])
@pytest.mark.parametrize("name", ONE)
def test_one_truncation_as_transformers(name, vocab):
    processors = pytest.importorskip("transformers").generation.logits_process
    warper, values = ONE[name]
    for seed in range(2):  # the second call is another batch through the same program
        logits = random_logits(vocab, seed)
        probs = np.asarray(distribute(state_of(batch=8, vocab=vocab, **{name: values}), logits))
        for row, value in enumerate(values):
            warpers = [getattr(processors, warper)(value)] if 0 < value < 1 else []
            for t in range(2):
                expected = as_transformers(warpers, logits[row, t])
                np.testing.assert_array_equal(probs[row, t] > 0, expected > 0, err_msg=f"{name}={value}, row {row}")
                np.testing.assert_allclose(probs[row, t], expected, rtol=3e-5, atol=1e-8)


def test_all_truncations_together_in_the_order_of_transformers():
    processors = pytest.importorskip("transformers").generation.logits_process
    rng, vocab = np.random.default_rng(3), 67
    kinds = {
        "temperature": ("Temperature", [0.5, 1.5, 0.9, 1.0, 2.0, 3.0, 4.0, 9.0]),
        "top_k": ("TopK", [50, 9, 20, 30, 40, 12, 25, 60]),
        "top_p": ("TopP", [0.99, 0.9, 0.8, 0.95, 0.7, 0.97, 0.9, 0.99]),
        "min_p": ("MinP", [0.01, 0.1, 0.3, 0.1, 0.2, 0.3, 0.2, 0.1]),
        "typical_p": ("Typical", [0.9, 0.95, 0.8, 0.99, 0.7, 0.9, 0.5, 0.97]),
        "epsilon": ("Epsilon", [0.01, 0.05, 0.02, 0.03, 0.02, 0.1, 0.04, 0.01]),
        "eta": ("Eta", [0.03, 0.3, 0.2, 0.3, 0.5, 0.1, 0.2, 0.2]),
    }
    fields = {name: values for name, (_, values) in kinds.items()}
    dropped = dict.fromkeys(kinds, 0)
    for _ in range(3):
        logits = rng.normal(0, 3, (8, 2, vocab)).astype(np.float32)
        probs = np.asarray(distribute(state_of(batch=8, vocab=vocab, **fields), logits))
        for row in range(8):
            warpers = [getattr(processors, f"{kind}LogitsWarper")(values[row]) for kind, values in kinds.values()]
            expected = as_transformers(warpers, logits[row, 0])
            np.testing.assert_allclose(probs[row, 0], expected, rtol=3e-5, atol=1e-8, err_msg=f"row {row}")
            for name, without in zip(kinds, range(len(warpers)), strict=True):
                others = as_transformers([w for i, w in enumerate(warpers) if i != without], logits[row, 0])
                dropped[name] += not np.allclose(others, expected, rtol=1e-3)
    assert min(dropped.values()) > 0  # each of them matters somewhere


def test_least_likely_at_the_boundary():
    probs = np.float32([[0.5, 0.25, 0.25, 0.0]] * 4)
    least = np.array([0.25, np.nextafter(np.float32(0.25), np.float32(1)), 0.9, 0.0], np.float32)
    kept = np.asarray(keep_likely(probs, least)) > 0
    assert kept.sum(-1).tolist() == [3, 1, 1, 3]  # the largest stays whatever the threshold
    tied = np.asarray(keep_likely(np.float32([[0.5, 0.5, 0.0]]), np.float32([0.9]))) > 0
    assert tied.tolist() == [[True, True, False]]


def test_eta_of_the_paper():
    """The uniform distribution over 8 tokens: its entropy is log 8, so that sqrt(eta) is divided by 8."""
    uniform = np.full((3, 8), 0.125, np.float32)
    np.testing.assert_allclose(entropy(uniform), np.log(8), rtol=1e-6)
    eta = np.float32([0.25, 0.01, 0.0])
    np.testing.assert_allclose(eta_cutoff(uniform, eta), [0.0625, 0.01, 0], rtol=1e-6)
    np.testing.assert_array_equal(entropy(np.float32([[1, 0, 0]])), [0])


def slow_top_n_sigma(logits, n):
    """bool[V], as llama.cpp's loop: tokens at -inf do not count."""
    valid = [x for x in logits.tolist() if x != -np.inf]
    mean = sum(valid) / len(valid)
    deviation = (sum((x - mean) ** 2 for x in valid) / len(valid)) ** 0.5
    return logits >= max(valid) - n * deviation if n > 0 else np.ones(len(logits), bool)


@pytest.mark.parametrize("vocab", [8, 67, 300])
def test_top_n_sigma_as_a_slow_loop(vocab):
    n = np.float32([0.0, 0.3, 1.0, 1.5, 2.0, 3.0, 5.0, 1e30])
    for seed in range(2):
        logits = random_logits(vocab, seed)
        got = np.asarray(n_sigma(logits, n[:, None]))
        probs = np.asarray(distribute(state_of(batch=8, vocab=vocab, top_n_sigma=n.tolist(), temperature=1.7), logits))
        for row in range(8):
            for t in range(2):
                kept = slow_top_n_sigma(logits[row, t].astype(np.float64), n[row])
                np.testing.assert_array_equal(got[row, t], np.where(kept, logits[row, t], -np.inf))
                expected = softmax(np.where(kept, logits[row, t].astype(np.float64) / 1.7, -np.inf))
                np.testing.assert_allclose(probs[row, t], expected, rtol=3e-5, atol=1e-8)


def test_top_n_sigma_of_extreme_logits():
    """Where the deviation overflows all stay, as do equal logits, and one token alone."""
    logits = np.float32([[1e38, 0.0, 9e37, -1e38], [2.0, 2.0, 2.0, 2.0], [-np.inf, 3.0, -np.inf, -np.inf]])
    kept = np.asarray(n_sigma(logits, np.float32([0.5, 1.0, 1.0]))) > -np.inf
    assert kept.tolist() == [[True] * 4, [True] * 4, [False, True, False, False]]

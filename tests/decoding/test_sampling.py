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
from jaxinfer.decoding.trees import ancestors

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


def slow_penalize(logits, prompt, generated, repetition=1.0, presence=0.0, frequency=0.0):
    out = np.array(logits, np.float64)
    for token in set(prompt) | set(generated):
        out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
    for token in set(generated):
        out[token] -= presence + frequency * generated.count(token)
    return out


PROMPTS = [[1, 1, 2], [3], [4, 5, 6, 7, 4]]
GENERATED = [[2, 8, 8, 8], [0, 9], [4]]


def after_generation(**fields):
    """The state of three rows behind their prompts and what they generated, told in two uneven steps."""
    state = state_of(PROMPTS, **fields)
    first = np.array([[2, 8, 11], [11, 11, 11], [4, 11, 11]])
    state = count(state, first, jnp.array([2, 0, 1]))
    second = np.array([[8, 8, 11], [0, 9, 11], [11, 11, 11]])
    return count(state, second, jnp.array([2, 2, 0]))


def test_observe_counts_the_first_n_of_each_row():
    counts = np.asarray(after_generation().counts)
    np.testing.assert_array_equal(counts, [np.bincount(tokens, minlength=VOCAB) for tokens in GENERATED])


@pytest.mark.parametrize("penalty", [1.3, 0.5])
def test_repetition_penalty_as_transformers(penalty):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers").generation.logits_process
    logits = np.random.default_rng(0).normal(0, 4, (3, 1, VOCAB)).astype(np.float32)
    got = punish(after_generation(repetition_penalty=penalty), logits, jnp.array([[g[-1]] for g in GENERATED]))
    reference = processors.RepetitionPenaltyLogitsProcessor(penalty)
    for row in range(3):
        ids = torch.tensor([PROMPTS[row] + GENERATED[row]])
        expected = reference(ids, torch.tensor(logits[row])).numpy()
        np.testing.assert_allclose(got[row], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        dict(repetition_penalty=1.5),
        dict(presence_penalty=0.7),
        dict(frequency_penalty=0.4),
        dict(presence_penalty=-0.7, frequency_penalty=-0.2),
        dict(repetition_penalty=[1.0, 2.0, 0.8], presence_penalty=[0.5, 0.0, 1.0], frequency_penalty=[0.3, 0.1, 0.0]),
    ],
)
def test_penalties_count_the_draft_up_to_each_position(fields):
    logits = np.random.default_rng(1).normal(0, 2, (3, 4, VOCAB)).astype(np.float32)
    draft = np.array([[8, 10, 10, 2], [9, 3, 0, 9], [4, 4, 5, 11]])
    got = np.asarray(punish(after_generation(**fields), logits, draft))
    each = {name: np.broadcast_to(value, 3) for name, value in fields.items()}
    for row in range(3):
        penalties = {name.removesuffix("_penalty"): value[row] for name, value in each.items()}
        for t in range(4):
            generated = GENERATED[row] + draft[row, 1 : t + 1].tolist()  # column 0 has been observed
            expected = slow_penalize(logits[row, t], PROMPTS[row], generated, **penalties)
            np.testing.assert_allclose(got[row, t], expected, rtol=1e-5, atol=1e-6, err_msg=f"row {row}, column {t}")


def test_penalties_count_the_path_to_each_column_of_a_tree():
    fields = dict(repetition_penalty=1.5, presence_penalty=0.7, frequency_penalty=0.4)
    logits = np.random.default_rng(1).normal(0, 2, (3, 5, VOCAB)).astype(np.float32)
    draft = np.array([[8, 10, 10, 2, 8], [9, 3, 0, 9, 3], [4, 4, 5, 11, 4]])
    parent = np.array([[-1, 0, 0, 1, 3], [-1, 0, 1, 1, 0], [-1, 0, 1, 2, 3]])
    got = np.asarray(punish(after_generation(**fields), logits, draft, ancestors(parent)))
    for row in range(3):
        for t in range(5):
            path, at = [], t
            while at > 0:  # column 0 has been observed
                path.append(draft[row, at])
                at = parent[row, at]
            expected = slow_penalize(logits[row, t], PROMPTS[row], GENERATED[row] + path, 1.5, 0.7, 0.4)
            np.testing.assert_allclose(got[row, t], expected, rtol=1e-5, atol=1e-6, err_msg=f"row {row}, column {t}")


def test_without_penalties_logits_pass_unchanged():
    logits = np.random.default_rng(2).normal(size=(3, 2, VOCAB)).astype(np.float32)
    np.testing.assert_array_equal(punish(after_generation(), logits, np.zeros((3, 2), np.int32)), logits)


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


def test_zeros_of_both_signs_are_a_tie():
    np.testing.assert_array_equal(keep_top_k(np.float32([[0.0, -0.0, -1.0]]), np.int32([1])), [[0.0, -0.0, -np.inf]])

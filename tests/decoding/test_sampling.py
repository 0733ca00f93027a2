"""Settings, and the distribution that they make of logits, against slow references in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import VOCAB, slow_mirostat, slow_top_k, slow_top_p, softmax, state_of

from jaxinfer import InputError, Lookup, Sampling
from jaxinfer.decoding.sampling.settings import RANGES, SamplingState, distribution, observe

pytestmark = pytest.mark.quick

distribute, count = jax.jit(distribution), jax.jit(observe)


def slow_distribution(logits, temperature=1.0, k=0, p=1.0, min_p=0.0):
    logits = np.asarray(logits, np.float64)
    if temperature == 0:
        return np.eye(len(logits))[np.argmax(logits)]
    probs = softmax(np.where(slow_top_k(logits, k), logits / temperature, -np.inf))
    probs = np.where(slow_top_p(probs, p), probs, 0.0)
    probs = np.where(probs >= min_p * probs.max(), probs, 0.0)
    return probs / probs.sum()


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
    logits = np.array([[[1.0, 9.0, -4.0, 8.5, 0.0, -np.inf]]], np.float32)
    probs = distribute(state_of(vocab=6, temperature=temperature, **fields), logits)
    np.testing.assert_allclose(probs[0, 0], [0, 1, 0, 0, 0, 0], atol=1e-6)


def test_min_p_is_relative_to_the_likeliest():
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    for min_p, expected in [(0.2, [0.5, 0.3, 0.15, 0]), (0.4, [0.5, 0.3, 0, 0]), (0.7, [1, 0, 0, 0])]:
        logits = np.array([[[*np.log(probs), -np.inf, -np.inf]]], np.float32)
        got = distribute(state_of(vocab=6, min_p=min_p), logits)[0, 0, :4]
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
        ("typical_p", 0),
        ("epsilon", -0.1),
        ("eta", [0.1, 1.5]),
        ("top_n_sigma", -1.0),
        ("mirostat_tau", float("inf")),
        ("mirostat_eta", -0.1),
        ("no_repeat_ngram", 2.5),
        ("no_repeat_ngram", [2, -1]),
        ("logit_bias", 3),
        ("logit_bias", {3: "much"}),
        ("bad_words", 5),
        ("bad_words", [3, 4]),
    ],
)
def test_bad_values_name_their_field(field, value):
    with pytest.raises(InputError, match=f"^{field}="):
        Sampling(**{field: value})


@pytest.mark.parametrize("field", RANGES)
def test_a_list_of_another_length_names_its_field(field):
    with pytest.raises(InputError, match=f"{field} has 2 values for 3 prompts"):
        SamplingState.of(Sampling(**{field: [1, 1]}), [[1], [2], [3]], VOCAB)


def test_no_temperature_overflows():
    logits = np.array([[[1.0, 9.0, -4.0]], [[1.0, 3e38, -4.0]]], np.float32)
    probs = np.asarray(distribute(state_of(batch=2, temperature=[2e-38, 0.5]), logits))
    np.testing.assert_array_equal(probs[:, 0], [[0, 1, 0], [0, 1, 0]])


def test_mirostat_as_a_slow_loop():
    """Rows with targets of their own, one without, one that is done for a while."""
    tau, eta, temperature = [3.0, 1.0, 0.0, 5.0, 2.0], [0.1, 0.5, 0.1, 1.0, 0.3], [1.0, 0.7, 1.0, 1.5, 1.0]
    state = state_of(batch=5, vocab=40, mirostat_tau=tau, mirostat_eta=eta, temperature=temperature)
    np.testing.assert_array_equal(state.mirostat_mu, [6, 2, 0, 10, 4])
    rng, mu, cut = np.random.default_rng(0), [2 * x for x in tau], 0
    for step in range(30):
        logits = rng.normal(0, 2.5, (5, 1, 40)).astype(np.float32)
        probs = np.asarray(distribute(state, logits))[:, 0]
        emit, surprise = np.zeros((5, 1), np.int32), np.zeros(5, np.float32)
        n = np.array([1, 1, 1, 1, 0 if 10 < step < 20 else 1])
        for row in range(5):
            expected = slow_mirostat(logits[row, 0] / temperature[row], mu[row] if tau[row] else np.inf)
            np.testing.assert_allclose(probs[row], expected, rtol=1e-4, atol=1e-7, err_msg=f"step {step}, row {row}")
            cut += (expected == 0).any()
            emit[row] = rng.choice(40, p=expected)
            surprise[row] = -np.log2(probs[row, emit[row, 0]])
            if n[row] and tau[row]:
                mu[row] -= eta[row] * (-np.log2(expected[emit[row, 0]]) - tau[row])
        state = count(state, emit, n, surprise)
    np.testing.assert_allclose(np.where(np.array(tau) > 0, state.mirostat_mu, 0), mu, rtol=1e-4, atol=1e-4)
    assert cut > 60
    assert min(mu) < 1


def test_mirostat_asks_for_a_method_of_one_token_a_step(tiny_llama):
    with pytest.raises(InputError, match=r"mirostat_tau=\(0.0, 3.0\) needs a method that scores one token a step"):
        tiny_llama.generate([[1], [2]], method=Lookup(width=4), sampling=Sampling(mirostat_tau=[0.0, 3.0]))


WRONG = (float("nan"), float("inf"), -float("inf"), "1", b"1", None, True, np.True_, 1j, [[1.0]], {"a": 1}, 10**400)


@pytest.mark.parametrize("field", RANGES)
def test_values_of_other_types_name_their_field(field):
    for value in (*WRONG, *([1.0, x] for x in WRONG), (1.0, "x"), np.array([True]), np.array(["1"]), np.ones((1, 1))):
        with pytest.raises(InputError, match=f"^{field}=") as error:
            Sampling(**{field: value})
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


def test_numbers_of_numpy_and_jax_are_numbers():
    arrays = {"temperature": np.array([0.5, 1.0]), "top_k": jnp.array([3, 4])}
    given = Sampling(**arrays, top_p=np.float32(0.5), min_p=jnp.float32(0))
    state = SamplingState.of(given, [[1], [2]], VOCAB)
    np.testing.assert_array_equal(state.temperature, np.array([0.5, 1.0], np.float32))
    np.testing.assert_array_equal(state.top_k, [3, 4])
    np.testing.assert_array_equal(state.top_p, [0.5, 0.5])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("logit_bias", x) for x in (3, None, "x", {1: "2"}, {1: True}, {1: None}, {1.5: 1}, {"1": 1.0}, {-1: 1.0})),
        *(("logit_bias", x) for x in ({1: float("nan")}, {1: float("inf")}, {1: 10**400}, [(1,)], [1, 2], {True: 1.0})),
        *(("bad_words", x) for x in (3, None, "x", [3], [[]], [["x"]], [[1.5]], [[-1]], [None], [[True]])),
    ],
)
def test_lists_of_other_things_name_their_field(field, value):
    with pytest.raises(InputError, match=field) as error:
        Sampling(**{field: value})
    assert "\n" not in str(error.value)


def test_a_temperature_that_a_device_reads_as_none_is_refused():
    with pytest.raises(InputError, match="temperature=1e-40"):
        Sampling(temperature=1e-40)


def test_something_has_to_be_left_of_the_vocabulary(tiny_llama):
    ban = -float("inf")
    everything = [
        Sampling(temperature=0.0, logit_bias=dict.fromkeys(range(97), ban)),
        Sampling(bad_words=[[token] for token in range(97)]),
        Sampling(logit_bias=dict.fromkeys(range(50), ban), bad_words=[[token] for token in range(50, 97)]),
    ]
    for sampling in everything:
        with pytest.raises(InputError, match="ban every token"):
            tiny_llama.generate([[1, 2]], max_new_tokens=3, sampling=sampling)
    one = Sampling(logit_bias=dict.fromkeys(range(96), ban), bad_words=[[96, 96, 96]])
    assert tiny_llama.generate([[1, 2]], max_new_tokens=2, sampling=one).tokens == [[96, 96]]
    for field, value in (("logit_bias", {97: 1.0}), ("bad_words", [[97]]), ("bad_words", [[1, 10**30]])):
        with pytest.raises(InputError, match=f"{field} holds token id"):
            tiny_llama.generate([[1, 2]], max_new_tokens=3, sampling=Sampling(**{field: value}))

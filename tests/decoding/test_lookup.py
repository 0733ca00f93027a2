"""Prompt lookup: the match against a loop, and what is generated against the model's exact distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from small_methods import Watched

from jaxinfer import InputError, LayerKind, Lookup, Model, ModelConfig, Sample, Sampling, Segment
from jaxinfer.decoding.methods.lookup import continue_match

match = jax.jit(continue_match, static_argnums=(2, 3, 4))


def slow_match(tokens, count, longest, shortest):
    """The continuation, token by token, or None, and the length of the match, 0 if it is too short."""
    n, best, place = len(tokens), 0, None
    for i in range(n - 1):  # the match ends here
        length = 0
        while length < longest and length <= i and tokens[i - length] == tokens[n - 1 - length]:
            length += 1
        if length and length >= best:
            best, place = length, i
    if best < shortest:
        return None, 0
    text = list(tokens)
    for _ in range(count):
        place += 1
        text.append(text[place])
    return text[n:], best


@pytest.mark.parametrize(("vocab", "seed"), [(2, 0), (3, 1), (5, 2), (30, 3)])
@pytest.mark.parametrize(("count", "longest", "shortest"), [(1, 1, 1), (7, 3, 1), (5, 4, 3), (12, 2, 2)])
def test_match_against_a_loop(vocab, seed, count, longest, shortest):
    rng = np.random.default_rng(seed)
    batch, width = 200, 20
    n = rng.integers(1, width + 1, batch)
    n[:3] = 1, 2, width
    tokens = rng.integers(0, vocab, (batch, width))
    guesses, length = (np.asarray(x) for x in match(tokens, n, count, longest, shortest))
    pairs = [slow_match(row[:m].tolist(), count, longest, shortest) for row, m in zip(tokens, n, strict=True)]
    expected, lengths = zip(*pairs, strict=True)
    assert length.tolist() == list(lengths)
    found = length > 0
    assert [g.tolist() for g, f in zip(guesses, found, strict=True) if f] == [e for e in expected if e is not None]
    assert found.any()

    # What lies beyond n is not text: other numbers there change nothing.
    beyond = np.arange(width) >= n[:, None]
    for filler in (tokens[np.arange(batch), n - 1][:, None], rng.integers(0, vocab, (batch, width))):
        again, length_again = match(np.where(beyond, filler, tokens), n, count, longest, shortest)
        np.testing.assert_array_equal(length_again, length)
        np.testing.assert_array_equal(np.asarray(again)[found], guesses[found])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 9, 1, 2, 3], [9, 1, 2, 3, 9]),
        ([1, 2, 5, 7, 2, 6, 1, 2], [5, 7, 2, 6, 1]),  # the longer match is earlier than the latest
        ([1, 2, 5, 7, 1, 2, 6, 1, 2], [6, 1, 2, 6, 1]),  # of equals the latest
        ([4, 4, 4], [4, 4, 4, 4, 4]),  # overlaps its own ending
        ([8, 1, 2, 1, 2], [1, 2, 1, 2, 1]),
        ([1, 2, 3], None),
        ([1], None),
    ],
)
def test_match_examples(text, expected):
    padded = np.array([text + [0] * (9 - len(text))])
    guesses, length = match(padded, jnp.array([len(text)]), 5, 3, 1)
    assert (guesses[0].tolist() if length[0] else None) == expected


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (dict(width=1), "width=1"),
        (dict(width=-3), "width=-3"),
        (dict(ngram=0), "min_ngram=1"),
        (dict(min_ngram=0), "min_ngram=0"),
        (dict(ngram=2, min_ngram=3), "min_ngram=3"),
        (dict(width=4, narrow=1), "narrow=1 must be between 2 and width=4"),
        (dict(width=4, narrow=5), "narrow=5 must be between 2 and width=4"),
    ],
)
def test_bad_sizes(fields, name):
    with pytest.raises(InputError, match=f"^{name}"):
        Lookup(**fields)


VOCAB = 16
CFG = ModelConfig(
    family="llama",
    vocab_size=VOCAB,
    d_model=32,
    d_ff=48,
    n_heads=2,
    n_kv_heads=1,
    head_dim=16,
    segments=(Segment((LayerKind(),), 2),),
    max_positions=256,
)
ROWS, CALLS = 1024, 8
FIELDS = {"temperature": 1.5, "top_k": 9}
# Every token occurs, so whatever comes last there is a match.
PROMPT = [*range(VOCAB), 3, 5, 3, 5, 7, 3, 5]


@pytest.fixture(scope="module")
def model():
    return Model.random(CFG, seed=4)


@pytest.fixture(scope="module")
def exact(model):
    """The joint distribution of the three next tokens, [V, V, V], under the settings of the test."""

    def probs(prompts):
        logits = np.asarray(model.logits(np.array(prompts)))[:, -1].astype(np.float64) / FIELDS["temperature"]
        logits[logits < np.sort(logits)[:, -FIELDS["top_k"]][:, None]] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    one = probs([PROMPT])[0]
    two = probs([[*PROMPT, a] for a in range(VOCAB)])
    three = probs([[*PROMPT, a, b] for a in range(VOCAB) for b in range(VOCAB)])
    return one[:, None, None] * two[:, :, None] * three.reshape(VOCAB, VOCAB, VOCAB)


def excess(counts, probs):
    """Pearson's chi-square over its threshold (one seed in 100,000); rare cells are pooled."""
    expected = counts.sum() * probs
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    if expected[-1] < 5:
        assert observed[-1] < 25
        observed, expected = observed[:-1], expected[:-1]
    return np.sum((observed - expected) ** 2 / expected) / chi2.isf(1e-5, len(expected) - 1)


class WatchedLookup(Watched, Lookup):
    pass


def test_short_matches_are_scored_narrow(tiny_llama):
    """Greedy text of a random model runs in circles: matches of every length."""
    prompt, new = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], 120
    method = WatchedLookup(width=6, ngram=4, min_ngram=2, narrow=3)
    Watched.seen.clear()
    result = tiny_llama.generate([prompt], max_new_tokens=new, method=method)
    jax.effects_barrier()
    assert result.tokens == tiny_llama.generate([prompt], max_new_tokens=new).tokens
    assert len(Watched.seen) == result.stats.steps[0]
    assert {width for width, _ in Watched.seen} == {1, 3, 6}
    assert all(size == width for width, size in Watched.seen)
    assert result.stats.proposed[0] == sum(size - 1 for _, size in Watched.seen)


@pytest.mark.parametrize("method", [Sample(), Lookup(width=4, ngram=3)], ids=["sample", "lookup"])
def test_tokens_follow_the_models_distribution(model, exact, method):
    """One token comes from the prompt's logits; those behind it from steps whose drafts are accepted or rejected."""
    counts = np.zeros((VOCAB,) * 3)
    steps = proposed = accepted = 0
    for call in range(CALLS):
        seeds = list(range(call * ROWS, (call + 1) * ROWS))
        result = model.generate(
            [PROMPT] * ROWS, max_new_tokens=3, method=method, sampling=Sampling(**FIELDS), seed=seeds
        )
        np.add.at(counts, tuple(np.array(result.tokens).T), 1)
        steps += sum(result.stats.steps)
        proposed += sum(result.stats.proposed)
        accepted += sum(result.stats.accepted)
    if isinstance(method, Lookup):
        assert proposed == 3 * steps  # every step had a draft
        assert 0.02 * steps < accepted < 0.5 * proposed  # and both outcomes are common
    assert counts.sum() == ROWS * CALLS
    assert excess(counts.sum(2), exact.sum(2)) < 1
    assert excess(counts.sum(0), exact.sum(0)) < 1  # the second and third: one step may emit both
    assert excess(counts, exact) < 1


def test_the_statistic_notices_a_redraw_from_the_target_instead_of_the_residual(exact):
    """What `excess` would be, on average, if rejected guesses were replaced without taking their mass away."""
    joint, first = exact.sum(2), exact.sum((1, 2))
    places = np.arange(VOCAB)
    guess = np.array([slow_match([*PROMPT, a], count=1, longest=3, shortest=1)[0][0] for a in range(VOCAB)])
    accepted = joint[places, guess] / np.maximum(first, 1e-30)
    wrong = (1 - accepted)[:, None] * joint
    wrong[places, guess] += accepted * first
    assert excess(ROWS * CALLS * wrong, joint) > 2

"""What changes logits by the text so far: against slow references, and against transformers."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import VOCAB, state_of

from jaxinfer import InputError, Sampling
from jaxinfer.decoding.sampling.penalties import penalize
from jaxinfer.decoding.sampling.settings import SamplingState, observe

count = jax.jit(observe)


@jax.jit
def punish(sampling, tokens, n, logits, draft, tree=None):
    return penalize(SimpleNamespace(sampling=sampling, tokens=tokens, n=n), logits, draft, tree)


def padded(texts, width, fill=0):
    """Rows of a buffer i32[B, width], and how many tokens of each are valid."""
    tokens = np.full((len(texts), width), fill, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return tokens, np.array([len(text) for text in texts], np.int32)


def slow_penalize(logits, prompt, generated, repetition=1.0, presence=0.0, frequency=0.0):
    out = np.array(logits, np.float64)
    for token in set(prompt) | set(generated):
        out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
    for token in set(generated):
        out[token] -= presence + frequency * generated.count(token)
    return out


PROMPTS = [[1, 1, 2], [3], [4, 5, 6, 7, 4]]
GENERATED = [[2, 8, 8, 8], [0, 9], [4]]
TEXTS = padded([a + b for a, b in zip(PROMPTS, GENERATED, strict=True)], 8)


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
    got = punish(after_generation(repetition_penalty=penalty), *TEXTS, logits, jnp.array([[g[-1]] for g in GENERATED]))
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
    got = np.asarray(punish(after_generation(**fields), *TEXTS, logits, draft))
    each = {name: np.broadcast_to(value, 3) for name, value in fields.items()}
    for row in range(3):
        penalties = {name.removesuffix("_penalty"): value[row] for name, value in each.items()}
        for t in range(4):
            generated = GENERATED[row] + draft[row, 1 : t + 1].tolist()  # column 0 has been observed
            expected = slow_penalize(logits[row, t], PROMPTS[row], generated, **penalties)
            np.testing.assert_allclose(got[row, t], expected, rtol=1e-5, atol=1e-6, err_msg=f"row {row}, column {t}")


def test_without_penalties_logits_pass_unchanged():
    logits = np.random.default_rng(2).normal(size=(3, 2, VOCAB)).astype(np.float32)
    np.testing.assert_array_equal(punish(after_generation(), *TEXTS, logits, np.zeros((3, 2), np.int32)), logits)


def random_texts(vocab, lengths, seed):
    """Texts of few tokens, in a buffer whose rest would repeat too, a draft behind each of them, and logits."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, vocab, length).tolist() for length in lengths]
    drafts = rng.integers(0, vocab, (len(lengths), 5))
    drafts[:, 0] = [text[-1] for text in texts]
    tokens, n = padded(texts, max(lengths) + 1, fill=1)
    return texts, drafts, (tokens, n), rng.normal(size=(len(lengths), 5, VOCAB)).astype(np.float32)


def as_transformers(processors, text, logits):
    """float32[V] behind the text -> what the processors make of it."""
    torch = pytest.importorskip("torch")
    ids, scores = torch.tensor([text]), torch.tensor(logits[None].copy())
    for process in processors:
        scores = process(ids, scores)
    return scores[0].numpy()


LENGTHS = (1, 2, 3, 5, 9, 14, 20, 30)


@pytest.mark.parametrize("seed", range(3))
def test_no_repeat_ngram_as_transformers(seed):
    """Every row has a size of its own, some longer than its text; in a draft each column has its own text."""
    reference = pytest.importorskip("transformers").generation.logits_process.NoRepeatNGramLogitsProcessor
    sizes = np.random.default_rng(seed).permutation([0, 1, 2, 2, 3, 4, 9, 2**31 - 1])
    texts, drafts, buffer, logits = random_texts(4 if seed else VOCAB, LENGTHS, seed)
    state = state_of([[0]] * 8, no_repeat_ngram=sizes.tolist())
    got, banned = np.asarray(punish(state, *buffer, logits, drafts)), 0
    for row, size in enumerate(sizes):
        for t in range(5):
            text = texts[row] + drafts[row, 1 : t + 1].tolist()
            expected = as_transformers([reference(int(size))] if size else [], text, logits[row, t])
            if not np.isfinite(expected).any():
                expected = logits[row, t]  # where nothing is left, nothing is banned
            np.testing.assert_array_equal(got[row, t], expected, err_msg=f"size {size} behind {text}")
            banned += np.isinf(expected).sum()
    assert banned > 5


@pytest.mark.parametrize("seed", range(2))
def test_bad_words_as_transformers(seed):
    reference = pytest.importorskip("transformers").generation.logits_process.NoBadWordsLogitsProcessor
    texts, drafts, buffer, logits = random_texts(5, LENGTHS, seed)
    pieces = [[*text[-k - 1 :], (text[0] + k) % 5] for k, text in enumerate(texts[3:])]  # that the texts do end like
    words = [[4], [0, 2], [1, 1], [2, 3, 0], [0, 1, 2, 3, 4, 0, 1, 2, 3], [3, 3], *pieces]
    state = state_of([[0]] * 8, bad_words=words)
    assert state.bad_words.shape == (8, 16, 16)
    got, multiple = np.asarray(punish(state, *buffer, logits, drafts)), 0
    for row in range(8):
        for t in range(5):
            text = texts[row] + drafts[row, 1 : t + 1].tolist()
            expected = as_transformers([reference(words)], text, logits[row, t])
            np.testing.assert_array_equal(got[row, t], expected, err_msg=f"behind {text}")
            multiple += np.isinf(expected).sum() - 1
    assert multiple > 5


ALL = dict(
    logit_bias={3: -2.5, 0: 4.0, 11: float("-inf")},
    repetition_penalty=1.4,
    no_repeat_ngram=2,
    bad_words=[[5], [1, 2], [7, 7, 7]],
)


def all_of_transformers():
    """The processors of ALL in the order that transformers applies them in."""
    processors = pytest.importorskip("transformers").generation.logits_process
    return [
        processors.SequenceBiasLogitsProcessor({(token,): value for token, value in ALL["logit_bias"].items()}),
        processors.RepetitionPenaltyLogitsProcessor(ALL["repetition_penalty"]),
        processors.NoRepeatNGramLogitsProcessor(ALL["no_repeat_ngram"]),
        processors.NoBadWordsLogitsProcessor(ALL["bad_words"]),
    ]


@pytest.mark.parametrize("seed", range(2))
def test_biases_and_penalties_together_as_transformers(seed):
    texts, drafts, buffer, logits = random_texts(VOCAB, LENGTHS, seed)
    got = np.asarray(punish(state_of(texts, **ALL), *buffer, logits, drafts))
    for row in range(8):
        for t in range(5):
            text = texts[row] + drafts[row, 1 : t + 1].tolist()
            expected = as_transformers(all_of_transformers(), text, logits[row, t])
            np.testing.assert_allclose(got[row, t], expected, rtol=1e-6, err_msg=f"behind {text}")


def test_a_tree_sees_what_a_chain_along_its_path_sees():
    """Branches of unequal length, columns in no order, and padding columns that see nothing."""
    parents = np.array([[-1, 0, 0, 1, 1, 3, 2], [-1, 5, 1, 0, 3, 0, 2], [-1, 0, 1, 2, 3, -2, -2]])
    texts, drafts, buffer, _ = random_texts(4, (3, 12, 25), 7)
    rng = np.random.default_rng(1)
    draft = rng.integers(0, 4, parents.shape).astype(np.int32)
    draft[:, 0] = drafts[:, 0]
    logits = rng.normal(size=(*draft.shape, 4)).astype(np.float32)
    paths, tree = {}, np.zeros((3, 7, 7), bool)
    for row, column in np.ndindex(3, 7):
        path, at = [], column
        while at >= 0:
            path, at = [at, *path], parents[row, at]
        if at == -1:
            paths[row, column] = path
            tree[row, column, path] = True
    fields = dict(no_repeat_ngram=[2, 3, 2], bad_words=[[1, 2], [3, 0, 1]], frequency_penalty=0.5, logit_bias={1: 2.0})
    state = state_of(texts, vocab=4, **fields)
    got = np.asarray(punish(state, *buffer, logits, draft, tree))
    assert np.isinf(got).sum() > 5
    for (row, column), path in paths.items():
        chain = np.zeros((3, 7), np.int32)
        chain[row, : len(path)] = draft[row, path]
        given = np.broadcast_to(logits[row, column], (3, 7, 4))
        expected = punish(state, *buffer, given, chain)
        np.testing.assert_array_equal(got[row, column], expected[row, len(path) - 1], err_msg=f"{row}, {path}")
    straight = np.broadcast_to(np.tril(np.ones((7, 7), bool)), (3, 7, 7))
    np.testing.assert_array_equal(
        punish(state, *buffer, logits, draft, straight), punish(state, *buffer, logits, draft)
    )


def test_where_every_token_would_be_banned_none_is():
    logits = np.float32([[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]])
    state = state_of([[0], [0]], vocab=3, no_repeat_ngram=1)
    got = punish(state, *padded([[0, 1, 2], [0, 1]], 4), logits, np.int32([[2], [1]]))
    np.testing.assert_array_equal(got[:, 0], [[1, 2, 3], [-np.inf, -np.inf, 3]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(logit_bias={12: 1.0}), "logit_bias holds token id 12: ids go from 0 to 11"),
        (dict(bad_words=[[3, 99]]), "bad_words holds token id 99: ids go from 0 to 11"),
        (dict(logit_bias={-1: 1.0}), "logit_bias names token -1: a token id is a whole number from 0"),
        (dict(logit_bias=[(1, 1.0), (1, 2.0)]), "logit_bias names token 1 twice"),
        (dict(logit_bias={1: float("inf")}), "logit_bias of token 1 is inf: it must be a finite number"),
        (dict(bad_words=[[1], []]), r"bad_words holds \[\]: it must hold lists of at least one token id"),
        (dict(bad_words=[[1.5]]), r"bad_words holds \[1.5\]"),
    ],
)
def test_a_bad_token_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        SamplingState.of(Sampling(**fields), [[1]], VOCAB)

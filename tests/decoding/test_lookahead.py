"""Lookahead decoding: its pool and its window against slow loops, and whole generations against one in Python."""

import jax
import numpy as np
import pytest

from jaxinfer import Dense, InputError, LayerKind, Lookahead, Model, ModelConfig, Sampling, Segment
from jaxinfer.config import SSM
from jaxinfer.decoding.drafts import trees
from jaxinfer.decoding.methods.lookahead import _parents, recall, remember, seed_pool, slide
from jaxinfer.runtime.generation import Generation

COLD = Sampling(temperature=0.0)


def slow_remember(pool, ngrams, buckets, slots):
    """pool: for each bucket a list of n-grams, the oldest first."""
    for ngram in ngrams:
        held = pool.setdefault(ngram[0] % buckets, [])
        if ngram in held:
            held.remove(ngram)
        held.append(ngram)
        del held[:-slots]


def as_lists(pool):
    return {b: [tuple(g) for g in held.tolist() if g[0] >= 0] for b, held in enumerate(pool) if (held[:, 0] >= 0).any()}


@pytest.mark.parametrize(("vocab", "size", "buckets", "slots"), [(4, 3, 3, 2), (6, 2, 4, 3), (3, 4, 1, 1)])
def test_the_pool_against_lists(vocab, size, buckets, slots):
    rng = np.random.default_rng(vocab)
    batch, many = 3, 9
    pool, slow = np.full((batch, buckets, slots, size), -1, np.int32), [{} for _ in range(batch)]
    insert = jax.jit(remember)
    for counts in ((9, 0, 4), (2, 7, 9), (0, 0, 1)):
        ngrams = rng.integers(0, vocab, (batch, many, size))
        pool = np.asarray(insert(pool, ngrams, np.array(counts)))
        for row, count in enumerate(counts):
            slow_remember(slow[row], [tuple(g) for g in ngrams[row, :count].tolist()], buckets, slots)
            assert as_lists(pool[row]) == slow[row]
    for token in range(vocab):
        follow, found = (np.asarray(x) for x in recall(pool, np.full(batch, token)))
        for row in range(batch):
            held = [g[1:] for g in reversed(slow[row].get(token % buckets, [])) if g[0] == token]
            assert found[row].tolist() == [True] * len(held) + [False] * (slots - len(held))
            assert [tuple(g) for g in follow[row, : len(held)].tolist()] == held


def test_the_prompts_seed_the_pool():
    rng = np.random.default_rng(0)
    tokens, n = rng.integers(0, 5, (4, 20)), np.array([20, 2, 3, 11])
    pool = np.asarray(seed_pool(np.full((4, 5, 3, 3), -1, np.int32), tokens, n))
    for row in range(4):
        slow = {}
        text = tokens[row, : n[row]].tolist()
        slow_remember(slow, [tuple(text[i : i + 3]) for i in range(len(text) - 2)], 5, 3)
        assert as_lists(pool[row]) == slow


def test_where_the_tokens_of_both_branches_stand():
    window, ngram, guesses = 4, 4, 2
    depth = np.asarray(trees.depths(_parents(window, ngram, guesses)[None]))[0]
    branch = depth[: 3 * window].reshape(3, window)
    np.testing.assert_array_equal(branch, np.arange(3)[:, None] + np.arange(window))
    np.testing.assert_array_equal(depth[3 * window :].reshape(guesses, 3), [[1, 2, 3]] * 2)
    # A token of the window sees the pending one, level 0 up to its own place, and its own place on the levels above.
    sees = np.asarray(trees.ancestors(_parents(window, ngram, guesses)[None]))[0]
    assert np.nonzero(sees[2 * window + 2])[0].tolist() == [0, 1, 2, window + 2, 2 * window + 2]


def test_a_window_slides_with_what_is_accepted():
    window = np.arange(12).reshape(1, 2, 6).repeat(3, axis=0)
    moved = np.asarray(slide(window, np.array([1, 3, 6])))
    np.testing.assert_array_equal(moved[0], window[0])
    np.testing.assert_array_equal(moved[1], [[2, 3, 4, 5, 5, 5], [8, 9, 10, 11, 11, 11]])
    np.testing.assert_array_equal(moved[2], [[5] * 6, [11] * 6])


WIDEST = 64


def slow_step(model, method, text, window, pool):
    """One step in Python: every token of both branches is scored alone, behind the path that leads to it.

    Changes text and pool, and gives the new window. `pool` as in `slow_remember`.
    """
    levels, places = method.ngram - 1, method.window
    before = len(text)
    window[0][0] = text[-1]
    branch = [
        text[:-1] + window[0][: i + 1] + [window[k][i] for k in range(1, j + 1)]
        for j in range(levels)
        for i in range(places)
    ]
    guesses = [g for g in reversed(pool.get(text[-1] % method.buckets, [])) if g[0] == text[-1]]
    chains = [text + list(g[1 : k + 1]) for g in guesses for k in range(1, method.ngram)]
    paths = branch + chains
    padded = np.zeros((method.width, WIDEST), np.int32)
    for row, path in zip(padded, paths, strict=False):
        row[: len(path)] = path
    logits = np.asarray(model.logits(padded))
    says = [int(logits[i, len(path) - 1].argmax()) for i, path in enumerate(paths)]
    behind = dict(zip(map(tuple, paths), says, strict=True))
    while tuple(text) in behind:  # as far as the drafts go along with the model
        text.append(behind[tuple(text)])
    diagonals = [(*(window[j][i] for j in range(levels)), says[(levels - 1) * places + i]) for i in range(places)]
    slow_remember(pool, diagonals, method.buckets, method.guesses)
    if method.from_text:
        new = [tuple(text[i - method.ngram : i]) for i in range(before + 1, len(text) + 1) if i >= method.ngram]
        slow_remember(pool, new, method.buckets, method.guesses)
    n = len(text) - before
    levels_now = [*window[1:], [d[-1] for d in diagonals]]
    return [[level[min(i + n - 1, places - 1)] for i in range(places)] for level in levels_now]


@pytest.mark.parametrize("from_text", [True, False])
def test_a_generation_against_one_in_python(tiny_llama, ragged, from_text):
    method = Lookahead(window=3, ngram=3, guesses=2, buckets=16, from_text=from_text)
    prompts = ragged((1, 6))
    generation = Generation.begin(tiny_llama.placed, prompts, [40] * 2, method, Dense(), COLD, [0, 1], (), False)
    aux = jax.tree.map(np.asarray, generation.state.aux)
    texts, windows = [list(p) for p in prompts], aux.window.tolist()
    pools = [as_lists(pool) for pool in aux.pool]
    assert any(pools) == from_text
    several = 0
    for _ in range(14):
        generation.advance(1)
        aux = jax.tree.map(np.asarray, generation.state.aux)
        for row in range(2):
            before = len(texts[row])
            windows[row] = slow_step(tiny_llama, method, texts[row], windows[row], pools[row])
            several += len(texts[row]) > before + 1
            assert [*prompts[row], *generation.rows()[row]] == texts[row]
            # Level 0, place 0 is the pending token, whatever stood there.
            assert aux.window[row, :, 1:].tolist() == [level[1:] for level in windows[row]]
            assert as_lists(aux.pool[row]) == pools[row]
    assert several >= 4  # else it shows nothing
    assert not generation.done.any()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"window": 0}, "window=0"),
        ({"ngram": 1}, "ngram=1"),
        ({"guesses": 0}, "guesses=0"),
        ({"buckets": 0}, "buckets=0"),
    ],
)
def test_bad_sizes(fields, name):
    with pytest.raises(InputError, match=f"^{name} must be at least"):
        Lookahead(**fields)


def test_what_it_cannot_run_on():
    shape = dict(family="x", vocab_size=16, d_model=16, d_ff=16, n_heads=2, n_kv_heads=1, head_dim=8)
    recurrent = LayerKind("mamba", rope=None, mixer=SSM(1, width=16, state=4, dt_rank=2))
    model = Model.random(ModelConfig(**shape, segments=(Segment((recurrent,), 1),), max_positions=256))
    with pytest.raises(InputError, match="Lookahead drafts trees, and layers of kind 'mamba' carry a state"):
        model.generate([[1, 2]], method=Lookahead())
    short = Model.random(ModelConfig(**shape, segments=(Segment((LayerKind(),), 1),), max_positions=16))
    with pytest.raises(InputError, match="Lookahead scores 80 tokens a step, and the context of random is 16 tokens"):
        short.generate([[1, 2]], method=Lookahead())

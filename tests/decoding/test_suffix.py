"""Trees of what followed before: the trie against a slow one, and the drafts that suffix decoding makes of a text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import InputError, Suffix
from jaxinfer.decoding.contract import DecodeState
from jaxinfer.decoding.drafts import trees

pytestmark = pytest.mark.quick

trie = jax.jit(trees.from_continuations, static_argnums=(3, 4))


def slow_trie(tokens, weight, decay):
    """The weight of every path that some continuation begins with."""
    heft = {}
    for path, w in zip(tokens, weight, strict=True):
        for depth in range(1, len(path) + 1):
            if path[depth - 1] < 0 or w == 0:
                break
            heft[tuple(path[:depth])] = heft.get(tuple(path[:depth]), 0.0) + w * decay ** (depth - 1)
    return heft


def paths_of(tokens, parent, size):
    """The path of every column behind the root."""
    paths = {0: ()}
    for t in range(1, size):
        assert 0 <= parent[t] < t
        paths[t] = (*paths[parent[t]], int(tokens[t]))
    return [paths[t] for t in range(1, size)]


@pytest.mark.parametrize(("vocab", "width", "decay"), [(2, 8, 0.9), (3, 30, 0.5), (4, 2, 0.9), (9, 49, 0.7)])
def test_the_trie_against_a_slow_one(vocab, width, decay):
    rng = np.random.default_rng(vocab)
    batch, many, deep = 40, 8, 6
    tokens = rng.integers(0, vocab, (batch, many, deep))
    tokens[rng.random((batch, many, deep)) < 0.1] = -1
    weight = (rng.integers(0, 4, (batch, many)) * 1.25).astype(np.float32)
    weight[0] = 0
    root = rng.integers(0, vocab, batch)
    drafted, size, parent = (np.asarray(x) for x in trie(root, tokens, weight, width, decay))
    assert drafted.shape == parent.shape == (batch, width)
    assert size[0] == 1
    for row in range(batch):
        heft = slow_trie(tokens[row].tolist(), weight[row], decay)
        assert size[row] == 1 + min(len(heft), width - 1)
        assert drafted[row, 0] == root[row]
        assert parent[row, 0] == -1
        assert (parent[row, 1:] < np.arange(1, width)).all()
        paths = paths_of(drafted[row], parent[row], size[row])
        assert len(set(paths)) == len(paths)
        best = sorted(heft.values(), reverse=True)[: width - 1]
        np.testing.assert_allclose(sorted((heft[path] for path in paths), reverse=True), best, rtol=1e-5)


def drafts(method, texts):
    n = np.array([len(text) for text in texts])
    tokens = np.zeros((len(texts), 24), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    blank = dict.fromkeys(DecodeState.__dataclass_fields__)
    state = DecodeState(**{**blank, "tokens": jnp.asarray(tokens), "n": jnp.asarray(n)})
    draft = jax.jit(lambda state: method.propose(None, state))(state)
    rows = zip(*(np.asarray(x) for x in (draft.tokens, draft.parent, draft.size)), strict=True)
    return [paths_of(*row) for row in rows]


def test_the_draft_of_a_text():
    method = Suffix(width=5, ngram=3, depth=2, matches=4)
    texts = [
        [7, 1, 2, 7, 1, 3, 7, 1, 2, 9, 7],  # 1 followed 7 three times, then 2 twice, 3 once
        [5, 1, 9, 5, 1, 8, 1],  # a longer match counts more than a later one: here both are of one token
        [4, 4, 4],  # overlaps its own ending
        [6],
    ]
    first, second, third, fourth = drafts(method, texts)
    assert first == [(1,), (1, 2), (1, 3)]
    assert set(second) == {(9,), (9, 5), (8,), (8, 1)}
    assert third == [(4,), (4, 4)]
    assert fourth == []
    # 2 1 stands once, 1 twice: what follows the longer match comes first.
    (paths,) = drafts(Suffix(width=4, ngram=2, depth=1, matches=4), [[2, 1, 5, 3, 1, 6, 4, 1, 6, 2, 1]])
    assert paths == [(5,), (6,)]
    (paths,) = drafts(Suffix(width=4, ngram=2, min_ngram=2, depth=1, matches=4), [[2, 1, 5, 3, 1, 6, 4, 1, 6, 2, 1]])
    assert paths == [(5,)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 1}, "width=1 must be at least 2"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"matches": 0}, "matches=0 must be at least 1"),
        (
            {"width": 8, "depth": 2, "matches": 3},
            "width=8 is more than matches=3 continuations of depth=2 tokens can fill",
        ),
        ({"ngram": 2, "min_ngram": 3}, "min_ngram=3 must be between 1 and ngram=2"),
    ],
)
def test_bad_sizes(fields, message):
    with pytest.raises(InputError, match=f"^{message}"):
        Suffix(**fields)

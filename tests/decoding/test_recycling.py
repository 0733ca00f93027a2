"""Token recycling: its matrix and its tree against slow loops."""

import itertools

import jax
import numpy as np
import pytest

from jaxinfer import Dense, InputError, Recycling, Sampling
from jaxinfer.decoding.drafts import trees
from jaxinfer.decoding.methods.recycling import RATES, recycle, walk
from jaxinfer.runtime.generation import Generation

pytestmark = pytest.mark.quick


def test_the_matrix_keeps_the_newest_scores_of_every_token():
    rng = np.random.default_rng(0)
    batch, width, vocab, keep = 3, 7, 11, 4
    matrix = rng.integers(0, vocab, (batch, vocab, keep)).astype(np.int32)
    update = jax.jit(recycle)
    for _ in range(3):
        tokens = rng.integers(0, 5, (batch, width))  # the same token in several columns
        logits = rng.normal(size=(batch, width, vocab)).astype(np.float32)
        slow = matrix.copy()
        for row, t in itertools.product(range(batch), reversed(range(width))):
            slow[row, tokens[row, t]] = np.argsort(-logits[row, t])[:keep]
        matrix = np.asarray(update(matrix, tokens, logits))
        np.testing.assert_array_equal(matrix, slow)


def test_the_walk_against_a_loop():
    rng = np.random.default_rng(1)
    batch, vocab = 4, 9
    matrix = rng.integers(-1, vocab, (batch, vocab, 3)).astype(np.int32)
    parent, rank = trees.likeliest((0.5, 0.3, 0.1), 20)
    root = rng.integers(0, vocab, batch)
    tokens = np.asarray(walk(matrix, root, parent, rank))
    for row in range(batch):
        slow = [int(root[row])]
        for t in range(1, 20):
            above = slow[parent[t]]
            slow.append(int(matrix[row, above, rank[t]]) if above >= 0 else -1)
        assert tokens[row].tolist() == slow
    assert (tokens < 0).any()


@pytest.mark.parametrize("width", [2, 3, 9, 40])
def test_the_likeliest_tree_against_all_paths(width):
    rates = (0.5, 0.24, 0.11)
    parent, rank = trees.likeliest(rates, width)
    assert len(parent) == width
    assert (parent[1:] < np.arange(1, width)).all()
    value = np.ones(width)
    for t in range(1, width):
        value[t] = value[parent[t]] * rates[rank[t]]
    paths = (path for depth in range(1, 8) for path in itertools.product(rates, repeat=depth))
    best = sorted((float(np.prod(path)) for path in paths), reverse=True)[: width - 1]
    np.testing.assert_allclose(sorted(value[1:], reverse=True), best)
    assert len({(p, r) for p, r in zip(parent, rank, strict=True)}) == width


def test_the_prompt_seeds_the_matrix_and_each_step_changes_its_own_row(tiny_llama, ragged):
    prompts = [*ragged((1, 30)), [3, 3, 5, 3, 7]]
    method = Recycling(width=6, successors=3)
    sampling = Sampling(temperature=0.0)
    generation = Generation.begin(tiny_llama.placed, prompts, [9] * 3, method, Dense(), sampling, [0] * 3, (), False)
    matrix = np.asarray(generation.state.aux)
    for row, prompt in enumerate(prompts):
        slow = np.full((97, 3), -1)
        for token, follower in itertools.pairwise(prompt):
            slow[token, 0] = follower
        np.testing.assert_array_equal(matrix[row], slow)
    generation.advance(1)
    after = np.asarray(generation.state.aux)
    for row, prompt in enumerate(prompts):
        best = np.argsort(-np.asarray(tiny_llama.logits([prompt]))[0, -1])[:3]
        np.testing.assert_array_equal(after[row, prompt[-1]], best)
        changed = np.nonzero((after[row] != matrix[row]).any(axis=1))[0]
        assert len(changed) <= 6


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"width": 1}, "width=1"), ({"successors": 0}, "successors=0"), ({"successors": 9}, "successors=9")],
)
def test_bad_sizes(fields, name):
    with pytest.raises(InputError, match=f"^{name} must be"):
        Recycling(**fields)


def test_rates_fall():
    assert list(RATES) == sorted(RATES, reverse=True)

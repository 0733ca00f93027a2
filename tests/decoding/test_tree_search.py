"""Trees for measured rates, against all small trees; and the rates that are measured, against what is known of them."""

import itertools

import numpy as np
import pytest
from small_methods import blurred

from jaxinfer import InputError, Lookup, SpeculativeTree
from jaxinfer.analysis.acceptance import acceptance_rates, rates_of
from jaxinfer.decoding.drafts.trees import expected_tokens, fastest_paths, from_paths, likeliest, likeliest_paths

pytestmark = pytest.mark.quick


def all_trees(count, ranks, depth):
    """Every set of `count` nodes that holds, with each node, the one above it and the sibling before it."""
    nodes = [path for n in range(1, depth + 1) for path in itertools.product(range(ranks), repeat=n)]
    for chosen in itertools.combinations(nodes, count):
        held = {(), *chosen}
        if all(p[:-1] in held and (p[-1] == 0 or (*p[:-1], p[-1] - 1) in held) for p in chosen):
            yield chosen


def slow_expected(rates, nodes):
    """Tokens a step by drawing: of the guesses below an accepted node at most one is right."""
    right = {(): 1.0}
    for node in sorted(nodes, key=len):
        right[node] = right[node[:-1]] * rates[len(node) - 1][node[-1]]
    return sum(right.values())


def test_no_small_tree_is_better():
    rng = np.random.default_rng(0)
    for trial in range(6):
        rates = np.sort(rng.dirichlet(np.ones(4), 3)[:, :3], axis=1)[:, ::-1]
        rates = rates[:1].repeat(3, axis=0) if trial % 2 else rates
        for width in (2, 3, 5):
            best = max(slow_expected(rates, nodes) for nodes in all_trees(width - 1, 3, 3))
            found = likeliest_paths(rates, width)
            assert len(found) == width - 1
            assert expected_tokens(rates, found) == pytest.approx(best, abs=1e-12)
            assert slow_expected(rates, found) == pytest.approx(best, abs=1e-12)
            assert len(from_paths(found)[0]) == width  # it is a tree: nothing had to be added
            if trial % 2:  # rates that are the same at every depth need not be repeated
                np.testing.assert_array_equal(likeliest(rates[0], width)[0], from_paths(found)[0])


def test_what_there_is_no_more_of():
    assert likeliest_paths([[0.5, 0.2]], 9) == ((0,), (1,))
    assert likeliest_paths([[0.5, 0.0], [0.4]], 5) == ((0,), (0, 0), (1,), (1, 0))


def test_the_fastest_tree_weighs_tokens_against_seconds():
    rates, flat = [[0.6, 0.2], [0.5, 0.1], [0.4, 0.1]], dict.fromkeys((1, 2, 4, 8), 1.0)
    paths, speed = fastest_paths(rates, flat)  # a wide step costs nothing more
    assert len(paths) == 7
    assert speed == pytest.approx(expected_tokens(rates, paths))
    paths, speed = fastest_paths(rates, {width: width * 1.0 for width in flat})
    assert paths == ((0,),)
    assert speed == pytest.approx(1.6 / 2)
    # A slow draft model makes a tree shallow: two guesses for one token, rather than one for each of two.
    assert fastest_paths(rates, {3: 1.0}, level_seconds=1.0)[0] == ((0,), (1,))
    assert fastest_paths([0.9, 0.01], {3: 1.0}, deepest=2)[0] == ((0,), (0, 0))


def test_rates_of_a_tally():
    paths = ((0,), (1,), (2,), (0, 0), (0, 1), (0, 2))
    parent, _ = from_paths(paths)
    assert parent.tolist() == [-1, 0, 0, 0, 1, 1, 1]
    rates = rates_of(paths, np.array([100, 40, 10, 20, 10, 5, 2]), 100, (2, 3))
    np.testing.assert_allclose(rates, [[0.4, 0.1, 0.1], [0.25, 0.125, 0.05]])  # rank 2 did better than rank 1
    np.testing.assert_allclose(rates_of(paths, np.array([9, 0, 3, 1, 0, 0, 0]), 9, (2, 3))[1], [0, 0, 0])


def test_measured_rates_are_how_often_the_text_has_that_rank(tiny_llama, ragged):
    """At temperature 0: the rank of each token of greedy's text among what the draft model says of the text so far."""
    guesser, prompts = blurred(tiny_llama), ragged((5, 20, 9, 31))
    rates = acceptance_rates(tiny_llama.attach(draft=guesser), SpeculativeTree(), prompts, 1, 3, new_tokens=60)
    texts = tiny_llama.generate(prompts, max_new_tokens=60).tokens
    counts, steps = np.zeros(97), 0
    for prompt, new in zip(prompts, texts, strict=True):
        logits = np.asarray(guesser.logits([prompt + new]))[0]
        at = 0
        while at < len(new):  # a step guesses one token; where it is right, the target adds another
            rank = int((logits[len(prompt) + at - 1] > logits[len(prompt) + at - 1, new[at]]).sum())
            counts[rank], steps, at = counts[rank] + 1, steps + 1, at + (2 if rank < 3 else 1)
    np.testing.assert_allclose(rates[0], np.minimum.accumulate(counts[:3] / steps), atol=2 / steps)
    assert 0.1 < rates[0, 0] < 0.95
    with pytest.raises(InputError, match="Lookup has no paths"):
        acceptance_rates(tiny_llama, Lookup(), prompts)
    with pytest.raises(InputError, match="ranks=0"):
        acceptance_rates(tiny_llama.attach(draft=guesser), SpeculativeTree(), prompts, ranks=0)

"""Trees that a draft model guesses: against a slow loop, against greedy's text, and by the distribution sampled."""

import dataclasses

import jax
import numpy as np
import pytest
from distributions import VOCAB, disagreeing_pair, exact, excess, texts_of
from small_methods import blurred

from jaxinfer import (
    Adaptive,
    Dense,
    Dynamic,
    InputError,
    LayerKind,
    Model,
    Sampling,
    Segment,
    Speculative,
    SpeculativeTree,
)
from jaxinfer.compress import keep_layers
from jaxinfer.config import SSM
from jaxinfer.decoding.contract import Context
from jaxinfer.decoding.drafts.growth import expansion
from jaxinfer.decoding.drafts.trees import from_paths
from jaxinfer.decoding.methods import speculative_tree
from jaxinfer.experiment import registry
from jaxinfer.experiment.merge import Origin
from jaxinfer.runtime import compiled
from jaxinfer.runtime.generation import Generation

LENGTHS = (1, 4, 30, 17, 64)
NEW = 40
RAGGED = ((0, 0, 0), (0, 0, 1), (0, 1), (1, 0), (2,))
STATIC, DYNAMIC = SpeculativeTree(paths=RAGGED), SpeculativeTree(dynamic=Dynamic(width=8, depth=3, beam=3))


@pytest.fixture(scope="module")
def disagreeing(tiny_llama):
    return disagreeing_pair(tiny_llama)


def drafting(model, method, prompts, steps):
    """The texts of a greedy generation some steps on, and the draft that it makes next."""
    limits, seeds = [60] * len(prompts), [0] * len(prompts)
    generation = Generation.begin(
        model.placed, prompts, limits, method, Dense(), Sampling(temperature=0.0), seeds, (), logprobs=False
    )
    generation.advance(steps)
    texts = [prompt + new for prompt, new in zip(prompts, generation.rows(), strict=True)]
    context = Context(model.placed.params, generation.extras, model.network)
    return texts, jax.jit(lambda state: method.propose(context, state))(generation.state)


def slow_logprobs(model, text):
    """log-probabilities of what follows a text: one forward over all of it, without a cache."""
    logits = np.asarray(model.logits([text + [0] * (80 - len(text))]), np.float64)[0, len(text) - 1]
    return logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()


def way(draft, row, column):
    """The tokens from below the root down to a column."""
    tokens = []
    while column > 0:
        tokens, column = [int(draft.tokens[row, column]), *tokens], int(draft.parent[row, column])
    return tuple(tokens)


def slow_static(model, text, paths):
    parent, rank = from_paths(paths)
    found = [()]
    for column in range(1, len(parent)):
        above = found[parent[column]]
        order = np.argsort(-slow_logprobs(model, [*text, *above]), kind="stable")
        found.append((*above, int(order[rank[column]])))
    return found


def slow_dynamic(model, text, dynamic):
    """EAGLE-2's expansion and reranking, one node at a time."""
    layer, every = [((), 0.0)], []
    for _ in range(dynamic.depth):
        guesses = []
        for tokens, worth in layer:
            logprobs = slow_logprobs(model, [*text, *tokens])
            for token in np.argsort(-logprobs, kind="stable")[: dynamic.beam]:
                guesses.append(((*tokens, int(token)), worth + logprobs[token]))
        every += guesses
        layer = sorted(guesses, key=lambda one: -one[1])[: dynamic.beam]
    best = sorted(every, key=lambda one: -one[1])[: dynamic.width - 1]
    return [(), *(tokens for tokens, _ in best)]


@pytest.mark.parametrize("method", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_the_tree_is_that_of_a_loop_without_a_cache(tiny_segments, ragged, method):
    """Behind the prompt, and behind steps that accepted something: local layers, rows of other lengths."""
    guesser = blurred(tiny_segments)
    for steps in (0, 3):
        texts, draft = drafting(tiny_segments.attach(draft=guesser), method, ragged((2, 9, 30)), steps)
        assert max(len(text) for text in texts) > 30 + steps - (steps == 0)
        for row, text in enumerate(texts):
            found = [way(draft, row, column) for column in range(method.width)]
            if method.dynamic:
                assert found == slow_dynamic(guesser, text, method.dynamic)
            else:
                assert found == slow_static(guesser, text, RAGGED)


@pytest.fixture(scope="module")
def greedy(tiny_llama, ragged):
    return tiny_llama.generate(ragged(LENGTHS), max_new_tokens=NEW).tokens


def test_a_draft_that_is_the_target_gives_the_whole_depth_at_every_step(tiny_llama, ragged, greedy):
    method = SpeculativeTree(paths=expansion(2, 1, 1))
    result = tiny_llama.attach(draft=tiny_llama).generate(ragged(LENGTHS), max_new_tokens=NEW, method=method)
    assert result.tokens == greedy
    assert result.stats.steps == [NEW // 4] * len(LENGTHS)
    sampled = tiny_llama.attach(draft=tiny_llama).generate(
        ragged(LENGTHS), max_new_tokens=NEW, method=method, sampling=Sampling(temperature=0.8)
    )
    assert sampled.stats.steps == [NEW // 4] * len(LENGTHS)  # the first draw is the target's own: always accepted


def test_a_draft_that_knows_nothing_changes_nothing_and_nothing_is_traced_twice(tiny_llama, ragged, greedy):
    stranger = tiny_llama.attach(draft=Model.random(tiny_llama.config, seed=99))
    first = stranger.generate(ragged(LENGTHS), max_new_tokens=NEW, method=DYNAMIC)
    before = compiled.TRACES["decode"]
    limits = [NEW, 3, 20, 1, 7]
    again = stranger.generate(ragged(LENGTHS), max_new_tokens=limits, method=DYNAMIC)
    assert compiled.TRACES["decode"] == before
    assert first.tokens == greedy
    assert again.tokens == [row[:limit] for row, limit in zip(greedy, limits, strict=True)]
    assert sum(first.stats.accepted) < 0.1 * sum(first.stats.proposed)
    hot = Sampling(temperature=[0.0, 0.3, 0.7, 1.0, 2.0], top_p=0.9)
    one = tiny_llama.generate(ragged(LENGTHS), max_new_tokens=NEW, sampling=hot, seed=3)
    drafted = tiny_llama.attach(draft=blurred(tiny_llama)).generate(
        ragged(LENGTHS), max_new_tokens=NEW, sampling=hot, seed=3, method=DYNAMIC
    )
    assert drafted.tokens == one.tokens  # its guesses are not drawn
    assert sum(drafted.stats.accepted) > 0


BUSH = expansion(3, 2)


@pytest.mark.parametrize(
    ("temperature", "top_k", "replace"), [(1.0, VOCAB, False), (0.6, 2, False), (1.0, VOCAB, True)]
)
def test_sampled_texts_are_distributed_as_the_target_says(disagreeing, temperature, top_k, replace):
    """top_k=2 leaves the draft model fewer tokens than it has to guess below the root."""
    target, draft = disagreeing
    sampling, method = Sampling(temperature=temperature, top_k=top_k), SpeculativeTree(BUSH, replace=replace)
    counts = texts_of(target.attach(draft=draft), method, sampling, rows=16384, calls=2)
    assert excess(counts, exact(target, temperature, top_k)) < 1


def test_the_statistic_notices_siblings_drawn_as_the_rule_does_not_say(disagreeing, monkeypatch):
    target, draft = disagreeing
    drawn = speculative_tree.draw_siblings
    monkeypatch.setattr(speculative_tree, "draw_siblings", lambda *args: drawn(*args[:-1], True))
    method = SpeculativeTree(((0, 0), (0, 1), (1, 0), (1, 1), (2,)))  # a program of its own
    counts = texts_of(target.attach(draft=draft), method, Sampling(temperature=1.0), rows=16384, calls=2)
    assert excess(counts, exact(target, 1.0, VOCAB)) > 1.2


@pytest.mark.parametrize("method", [STATIC, DYNAMIC], ids=str)
def test_a_tree_is_switched_off_where_it_does_not_pay(tiny_llama, ragged, greedy, method):
    """A draft that knows nothing is soon given up; one that is always right is not; both by one program."""
    switched, counts = Adaptive(method, break_even=1.5, probe=16), []
    for draft in (Model.random(tiny_llama.config, seed=99), tiny_llama):
        result = tiny_llama.attach(draft=draft).generate(ragged(LENGTHS), max_new_tokens=NEW, method=switched)
        assert result.tokens == greedy
        counts.append((sum(result.stats.guessed), sum(result.stats.steps)))
    (tries, steps), (guesses, few) = counts
    assert tries < 0.25 * steps
    assert guesses >= few - len(LENGTHS)  # a last token needs no guess
    assert few < 0.4 * steps


def test_a_row_at_temperature_zero_among_others_is_greedy(tiny_llama, ragged, greedy):
    hot = Sampling(temperature=[0.0, 1.0, 0.0, 2.0, 0.0])
    for method in (STATIC, dataclasses.replace(STATIC, replace=True)):
        result = tiny_llama.attach(draft=blurred(tiny_llama)).generate(
            ragged(LENGTHS), max_new_tokens=NEW, method=method, sampling=hot
        )
        assert [result.tokens[row] for row in (0, 2, 4)] == [greedy[row] for row in (0, 2, 4)]


def test_what_it_refuses(tiny_llama, tiny_gemma):
    prompts = [[1, 2]]
    for make, line in (
        (lambda: SpeculativeTree(()), "paths="),
        (lambda: SpeculativeTree(((0,), (2,))), "skip a rank"),
        (lambda: Dynamic(width=4, depth=4), "depth=4 must be from 1 to 3"),
        (lambda: Dynamic(width=8, depth=2, beam=2), "width=8 is more than"),
        (lambda: Dynamic(beam=0), "beam=0"),
        (
            lambda: registry.method({"name": "speculative_tree", "dynamic": {"depht": 2}}, ("m",), Origin("f")),
            "dynamic.depht: Dynamic has no such parameter; nearest: 'depth'",
        ),
    ):
        with pytest.raises(InputError, match=line):
            make()
    other = dataclasses.replace(tiny_gemma, config=tiny_gemma.config.replace(vocab_size=50), name="other")
    mixer = tiny_llama.config.replace(segments=(Segment((LayerKind("state", mixer=SSM(1, 32, 4)),), 1),))
    recurrent = Model.random(mixer)
    small = Model.random(tiny_llama.config.replace(vocab_size=3))
    for target, draft, method, line in (
        (tiny_llama, other, STATIC, "other has a vocabulary of 50 tokens and random one of 97"),
        (tiny_llama, recurrent, STATIC, "recurrent layers"),
        (recurrent, tiny_llama, DYNAMIC, "drafts trees, and layers of kind 'state'"),
        (small, small, SpeculativeTree(expansion(4)), "4 guesses below one token are more than the 3"),
    ):
        with pytest.raises(InputError, match=line):
            target.attach(draft=draft).generate(prompts, method=method)
    spec = registry.as_mapping(DYNAMIC, "speculative_tree")
    assert registry.method(spec, ("method",), Origin("f")) == DYNAMIC


def test_a_real_model_drafts_for_itself(smollm2):
    prompts = [smollm2.encode(text) for text in ("Monday Tuesday Wednesday", "def add(a, b):\n    return a + b\n\ndef")]
    expected = smollm2.generate(prompts, max_new_tokens=24).tokens
    draft = keep_layers(smollm2, [layer for layer in range(30) if layer % 3 != 1 or layer in (1, 28)])
    result = smollm2.attach(draft=draft).generate(prompts, max_new_tokens=24, method=SpeculativeTree(RAGGED))
    assert result.tokens == expected
    assert result.stats.tokens_per_step > 1.1


@pytest.mark.parametrize("method", [Speculative(5, lenience=0.2), dataclasses.replace(DYNAMIC, lenience=0.2)], ids=str)
def test_lenience_is_lossy_and_says_so(tiny_llama, ragged, greedy, method):
    model, exact = tiny_llama.attach(draft=blurred(tiny_llama)), dataclasses.replace(method, lenience=1.0)
    found, plain = (model.generate(ragged(LENGTHS), max_new_tokens=NEW, method=one) for one in (method, exact))
    assert plain.tokens == greedy != found.tokens
    assert found.stats.tokens_per_step > 1.2 * plain.stats.tokens_per_step
    assert exact.lossless
    assert not method.lossless
    assert not Adaptive(method).lossless
    with pytest.raises(InputError, match="lenience=0"):
        dataclasses.replace(method, lenience=0.0)

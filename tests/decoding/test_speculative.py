"""Speculative decoding with a draft model: what it saves, what it keeps, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from distributions import VOCAB, disagreeing_pair, exact, excess, pairs_of, texts_of, truncated
from small_methods import blurred, silenced

from jaxinfer import (
    Cascade,
    Dense,
    Fallback,
    Greedy,
    InputError,
    Lookup,
    Model,
    Sample,
    Sampling,
    SelfSpeculative,
    Speculative,
)
from jaxinfer.config import SSM, LayerKind, Segment
from jaxinfer.decoding.drafts import draft_length
from jaxinfer.decoding.methods import cascade, speculative
from jaxinfer.decoding.sampling.settings import distribution
from jaxinfer.runtime.generation import Generation

LENGTHS = (1, 4, 30, 17, 64)
NEW = 40


@pytest.fixture(scope="module")
def greedy(tiny_llama, ragged):
    return tiny_llama.generate(ragged(LENGTHS), max_new_tokens=NEW).tokens


def test_a_draft_that_is_the_target_is_always_right(tiny_llama, ragged, greedy):
    result = tiny_llama.attach(draft=tiny_llama).generate(ragged(LENGTHS), max_new_tokens=NEW, method=Speculative(5))
    assert result.tokens == greedy
    assert result.stats.accepted == result.stats.proposed
    assert result.stats.steps == [NEW // 5] * len(LENGTHS)  # exactly width tokens a step


@pytest.mark.parametrize(("width", "read"), [(2, 0), (4, 2)])
def test_a_draft_model_does_not_read_its_last_guess(tiny_llama, width, read):
    """What is not read costs nothing if it is wrong, and comes with the next step's text if it is right."""
    twin, sampling = tiny_llama.attach(draft=tiny_llama), Sampling(temperature=0.0)
    method, policy = Speculative(width), Dense()
    generation = Generation.begin(twin.placed, [[5, 6, 7]], [20], method, policy, sampling, [0], (), logprobs=False)
    for step in range(3):
        generation.advance(1)
        assert generation.state.held.length.tolist() == [3 + step * width + read]
        assert generation.state.n.tolist() == [3 + (step + 1) * width]


@pytest.mark.parametrize("schedule", ["constant", "heuristic"])
def test_a_draft_that_knows_nothing_changes_nothing(tiny_llama, ragged, greedy, schedule):
    stranger = Model.random(tiny_llama.config, seed=99)
    method = Speculative(5, schedule=schedule)
    result = tiny_llama.attach(draft=stranger).generate(ragged(LENGTHS), max_new_tokens=NEW, method=method)
    assert result.tokens == greedy
    assert sum(result.stats.accepted) < 0.1 * sum(result.stats.proposed)
    guesses = sum(result.stats.proposed) / sum(result.stats.steps)
    assert (guesses < 1.5) == (schedule == "heuristic")  # one guess a step is soon all that it tries


def test_an_unsure_draft_keeps_quiet(tiny_llama, ragged, greedy):
    model, prompts = tiny_llama.attach(draft=blurred(tiny_llama)), ragged(LENGTHS)
    likely = jax.nn.softmax(tiny_llama.logits([greedy[2]])).max(axis=-1)
    results = [
        model.generate(prompts, max_new_tokens=NEW, method=Speculative(5, confidence=c)).stats
        for c in (0.0, round(float(np.median(likely)), 4), 1.0)
    ]
    proposed = [sum(stats.proposed) for stats in results]
    rates = [sum(stats.accepted) / max(sum(stats.proposed), 1) for stats in results]
    assert proposed[0] > proposed[1] > proposed[2] == 0
    assert rates[1] > rates[0]
    assert results[2].steps == [NEW] * len(LENGTHS)


def says(model, logits):
    """The model with one distribution behind every text: the same hidden state, and these logits."""
    params = jax.tree.map(np.zeros_like, model.params)
    params["embed"]["embedding"] = np.ones_like(params["embed"]["embedding"])
    params["final_norm"]["scale"] = np.ones_like(params["final_norm"]["scale"])
    width = params["head"]["kernel"].shape[1]
    params["head"]["kernel"] = np.repeat(np.array(logits, np.float32)[:, None] / width, width, axis=1)
    return dataclasses.replace(model, params=params)


def test_the_draft_length_that_is_fastest_is_found(tiny_llama):
    """Against (1 - a^(g+1)) / (1 - a) / (g c + 1), in rows whose temperatures make four acceptances a."""
    one = Model.random(tiny_llama.config.replace(segments=(Segment((LayerKind(),), 1),), vocab_size=VOCAB))
    logits = np.random.default_rng(0).normal(size=(2, VOCAB)) * 2
    model, cost, most, rows = says(one, logits[0]).attach(draft=says(one, logits[1])), 0.3, 8, 12
    temperatures = (0.1, 1.3, 3.0, 40.0)
    method = Speculative(most + 1, schedule="acceptance", draft_cost=cost)
    sampling = Sampling(temperature=[t for t in temperatures for _ in range(rows)])
    prompts = [[1, 2]] * (rows * len(temperatures))
    stats = model.generate(prompts, max_new_tokens=250, method=method, sampling=sampling).stats
    best = []
    for i, temperature in enumerate(temperatures):
        p, q = np.exp(logits / temperature) / np.exp(logits / temperature).sum(axis=1, keepdims=True)
        a, g = np.minimum(p, q).sum(), np.arange(most + 1)
        rate = (1 - a ** (g + 1)) / (1 - a) / (g * cost + 1)
        best.append(int(rate.argmax()))
        emitted, steps, proposed = (
            sum(x[i * rows : (i + 1) * rows]) for x in (stats.emitted, stats.steps, stats.proposed)
        )
        assert abs(proposed / steps - best[-1]) < 0.8, a
        assert emitted / (steps + cost * proposed) > 0.96 * rate.max(), a
    assert best[0] == 0  # and so no guesses but now and then
    assert best == sorted(set(best))


def test_a_width_that_costs_more_than_it_gives_is_left_alone():
    rates = np.array([0.0, 0.5, 0.9, 1.0], np.float32)
    assert draft_length.best_length(rates, 4, 0.1).tolist() == [0, 2, 4, 4]
    assert draft_length.best_length(rates, 4, 0.1, wide_cost=1.4).tolist() == [0, 3, 4, 4]
    assert draft_length.best_length(rates, 4, 0.1, wide_cost=2.0).tolist() == [0, 0, 4, 4]


def test_no_guess_goes_beyond_the_limit_or_the_context(tiny_llama):
    end = tiny_llama.config.max_positions
    prompt = np.random.default_rng(0).integers(0, 97, end - 2).tolist()
    plain = tiny_llama.generate([prompt], max_new_tokens=50).tokens
    result = tiny_llama.attach(draft=tiny_llama).generate([prompt], max_new_tokens=50, method=Speculative(8))
    assert result.tokens == plain
    assert result.stats.proposed == [2]
    assert len(plain[0]) == 3


@pytest.fixture(scope="module")
def disagreeing(tiny_llama):
    return disagreeing_pair(tiny_llama)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, VOCAB), (0.6, 5)])
def test_sampled_texts_are_distributed_as_the_target_says(disagreeing, temperature, top_k):
    target, draft = disagreeing
    sampling = Sampling(temperature=temperature, top_k=top_k)
    probs = exact(target, temperature, top_k)
    assert excess(texts_of(target.attach(draft=draft), Speculative(3), sampling), probs) < 1
    assert excess(texts_of(target, Sample(), sampling, calls=1), probs) < 1


@pytest.mark.parametrize(
    "method",
    [SelfSpeculative(3, exit=1), Fallback(Lookup(3, 1), Speculative(2)), Cascade(3, inner=Lookup(2, 1))],
    ids=lambda method: type(method).__name__,
)
def test_other_drafts_keep_the_distribution_too(disagreeing, method):
    target, draft = disagreeing
    if isinstance(method, SelfSpeculative):
        target = Model.random(target.config.replace(segments=(Segment((LayerKind(),), 2),)), seed=3)
    sampling = Sampling(temperature=0.8)
    counts = texts_of(target.attach(draft=draft), method, sampling)
    assert excess(counts, exact(target, 0.8, VOCAB)) < 1


def excess_of_three(disagreeing, method, rows=2048):
    """`excess` of 104,448 tokens that a target wrote with a draft and a draft of that, all three of them different.

    The layers of the three add nothing, so that each token goes by the one before it alone, and of every three tokens
    the last two are a draw of their own, given the first.
    """
    target, draft = disagreeing
    target, draft, third = (silenced(one, [0]) for one in (target, draft, Model.random(target.config, seed=5)))
    model = target.attach(draft=draft.attach(draft=third))
    counts = pairs_of(model, method, Sampling(temperature=0.8, top_k=6, top_p=0.9), rows)
    logits = np.asarray(target.logits(np.arange(VOCAB)[:, None]), np.float64)[:, 0]
    probs = truncated(logits, 0.8, 6, 0.9)
    first = counts.sum(axis=(1, 2)) / counts.sum()
    return excess(counts, first[:, None, None] * probs[:, :, None] * probs)


def test_three_models_keep_the_distribution_too(disagreeing):
    """The draft draws again where it refuses the third's guess, and the target where it refuses what came of that."""
    assert excess_of_three(disagreeing, Cascade(3, inner=Speculative(3))) < 1


def test_the_statistic_notices_a_draft_that_records_another_distribution(disagreeing, monkeypatch):
    """The tokens of a draft are drawn at another temperature than the target is told."""
    monkeypatch.setattr(cascade, "distribution", lambda sampling, logits: distribution(sampling, 1.5 * logits))
    method = Cascade(3, inner=Speculative(3, confidence=1e-6))  # a program of its own
    assert excess_of_three(disagreeing, method, rows=512) > 1.5


def test_the_statistic_notices_a_proposal_that_is_not_what_was_drawn_from(disagreeing, monkeypatch):
    """Guesses drawn at another temperature than the proposal says."""
    target, draft = disagreeing
    drawn = speculative.draw
    monkeypatch.setattr(speculative, "draw", lambda keys, probs: drawn(keys, probs**0.5))
    sampling, method = Sampling(temperature=0.6), Speculative(3, confidence=1e-6)  # a program of its own
    assert excess(texts_of(target.attach(draft=draft), method, sampling), exact(target, 0.6, VOCAB)) > 1.5


def test_what_it_refuses(tiny_llama, tiny_gemma):
    prompts = [[1, 2, 3]]
    with pytest.raises(InputError, match=r"needs draft: model\.attach\(draft=\.\.\.\)"):
        tiny_llama.generate(prompts, method=Speculative())
    other = dataclasses.replace(tiny_gemma, config=tiny_gemma.config.replace(vocab_size=50), name="other")
    with pytest.raises(InputError, match="other has a vocabulary of 50 tokens and random one of 97"):
        tiny_llama.attach(draft=other).generate(prompts, method=Speculative())
    mixer = tiny_llama.config.replace(segments=(Segment((LayerKind("state", mixer=SSM(1, 32, 4)),), 1),))
    with pytest.raises(InputError, match="recurrent layers"):
        tiny_llama.attach(draft=Model.random(mixer)).generate(prompts, method=Speculative())
    with pytest.raises(InputError, match="width=1 must be at least 2"):
        Speculative(1)
    with pytest.raises(InputError, match="draft_cost=0 must be above 0"):
        Speculative(draft_cost=0)
    with pytest.raises(InputError, match=r"confidence=1\.5 must be between 0 and 1"):
        Speculative(confidence=1.5)


def test_greedy_needs_nothing_of_what_is_attached(tiny_llama, ragged, greedy):
    result = tiny_llama.attach(draft=tiny_llama).generate(ragged(LENGTHS), max_new_tokens=NEW, method=Greedy())
    assert result.tokens == greedy
    assert result.stats.weight_bytes == sum(x.nbytes for x in jax.tree.leaves(tiny_llama.params))

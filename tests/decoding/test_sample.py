"""Sampling end to end: seeds, and settings for each row."""

import numpy as np
import pytest
from slow import slow_mirostat

from jaxinfer import Dense, Greedy, Lookup, Sample, Sampling
from jaxinfer.runtime import compiled
from jaxinfer.runtime.generation import Generation

HOT = Sampling(temperature=1.2)


@pytest.mark.parametrize("method", [Sample(), Lookup(width=4)], ids=["sample", "lookup"])
def test_row_i_draws_from_seed_plus_i(tiny_llama, ragged, method):
    prompts = ragged([5, 1, 12])
    options = {"max_new_tokens": 12, "method": method, "sampling": HOT}
    batch = tiny_llama.generate(prompts, seed=7, **options).tokens
    for row, prompt in enumerate(prompts):
        assert tiny_llama.generate([prompt], seed=7 + row, **options).tokens == [batch[row]]
    assert tiny_llama.generate(prompts, seed=[7, 8, 9], **options).tokens == batch
    assert tiny_llama.generate(prompts, seed=[9, 8, 7], **options).tokens[1] == batch[1]
    assert tiny_llama.generate(prompts, seed=7, **options).tokens == batch


def test_equal_prompts_with_other_seeds_differ_and_with_equal_seeds_do_not(tiny_llama):
    options = {"max_new_tokens": 12, "sampling": HOT}
    tokens = tiny_llama.generate([[3, 4]] * 4, **options).tokens
    assert len(set(map(tuple, tokens))) == 4
    assert len(set(map(tuple, tiny_llama.generate([[3, 4]] * 4, seed=[5] * 4, **options).tokens))) == 1


@pytest.mark.parametrize("method", [Sample(), Lookup()], ids=["sample", "lookup"])
def test_temperature_0_is_greedy_row_by_row(tiny_gemma, ragged, method):
    prompts = ragged([9, 30, 4])
    greedy = tiny_gemma.generate(prompts, max_new_tokens=20, method=Greedy()).tokens
    mixed = Sampling(temperature=[0.0, 1.5, 0.0], top_p=[0.3, 1.0, 1.0])
    found = tiny_gemma.generate(prompts, max_new_tokens=20, method=method, sampling=mixed).tokens
    assert (found[0], found[2]) == (greedy[0], greedy[2])
    assert found[1] != greedy[1]
    top_1 = Sampling(temperature=1.5, top_k=1)
    assert tiny_gemma.generate(prompts, max_new_tokens=20, method=method, sampling=top_1).tokens == greedy


@pytest.mark.parametrize("method", [Sample(), Lookup(width=5)], ids=["sample", "lookup"])
def test_a_strong_presence_penalty_never_repeats_a_generated_token(tiny_llama, method):
    """Prompt tokens may come again; what was generated may not, in a draft that is accepted neither."""
    prompts = [[7, 8, 9, 7, 8, 9, 7], [1]]
    options = {"max_new_tokens": 60, "method": method}
    for row in tiny_llama.generate(prompts, sampling=Sampling(temperature=0.0, presence_penalty=1e4), **options).tokens:
        assert len(set(row)) == 60
    free = tiny_llama.generate(prompts, sampling=Sampling(temperature=0.0), **options).tokens
    assert any(len(set(row)) < 60 for row in free)


def test_penalties_are_lossless_under_lookup(tiny_segments, ragged):
    prompts = ragged([6, 40, 15], seed=4)
    penalized = Sampling(
        temperature=0.0, repetition_penalty=[1.2, 1.0, 0.7], frequency_penalty=[0.0, 0.3, 0.0], presence_penalty=0.01
    )
    one = tiny_segments.generate(prompts, max_new_tokens=60, method=Sample(), sampling=penalized)
    several = tiny_segments.generate(prompts, max_new_tokens=60, method=Lookup(width=6), sampling=penalized)
    assert several.tokens == one.tokens
    assert several.stats.tokens_per_step > 1.05
    assert one.tokens != tiny_segments.generate(prompts, max_new_tokens=60).tokens


def test_sampled_tokens_stay_within_top_k(tiny_llama):
    prompts = [[11, 12, 13]] * 200
    logits = np.asarray(tiny_llama.logits([prompts[0]]))[0, -1]
    options = {"max_new_tokens": 1, "sampling": Sampling(temperature=5.0, top_k=4)}
    first = {row[0] for row in tiny_llama.generate(prompts, **options).tokens}
    assert first == set(np.argsort(-logits)[:4].tolist())


def seen_by_slow_loops(logits, text, repetition, size, bias, words):
    """float64[V] behind the text: biased, penalized for what was seen, -inf where something may not end."""
    out = np.array(logits, np.float64)
    for token, value in bias.items():
        out[token] += value
    for token in set(text):
        out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
    for i in range(size - 1, len(text) if size else 0):
        if len(text) >= size and text[i - size + 1 : i] == text[len(text) - size + 1 :]:
            out[text[i]] = -np.inf
    for *start, last in words:
        if len(text) >= len(start) and text[len(text) - len(start) :] == start:
            out[last] = -np.inf
    return out


def test_bans_and_biases_are_lossless_and_never_retrace(tiny_llama, ragged):
    """Sample and Lookup at temperature 0 emit what a loop over whole texts gives, which knows neither cache nor draft.

    Rows differ in the n-grams that they may repeat; what is banned is what the model would have said.
    """
    prompts, options = ragged([5, 1, 12]), {"max_new_tokens": 60}
    free = tiny_llama.generate(prompts, sampling=Sampling(temperature=0.0), **options).tokens
    size, repetition = [2, 0, 4], [1.1, 0.8, 1.0]
    words = [[free[1][3]], free[2][1:3], free[0][2:5], [1, 2, 3, 4]]
    bias = {free[0][0]: -3.0, free[1][0]: -float("inf"), 5: 0.7}
    settings = {"no_repeat_ngram": size, "repetition_penalty": repetition, "logit_bias": bias, "bad_words": words}
    texts = [list(prompt) for prompt in prompts]
    for _ in range(60):
        padded = np.zeros((3, 80), np.int32)
        for row, text in enumerate(texts):
            padded[row, : len(text)] = text
        logits = np.asarray(tiny_llama.logits(padded))
        for row, text in enumerate(texts):
            scores = seen_by_slow_loops(logits[row, len(text) - 1], text, repetition[row], size[row], bias, words)
            text.append(int(np.argmax(scores)))
    expected = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    assert all(one != other for one, other in zip(expected, free, strict=True))

    for method in (Sample(), Lookup(width=4)):
        before = None
        for given in (settings, {}, {"top_n_sigma": 1.0, "bad_words": [[1]] * 8}, settings):
            sampling = Sampling(temperature=0.0, **given)
            found = tiny_llama.generate(prompts, method=method, sampling=sampling, **options)
            before = before or compiled.TRACES["decode"]
            if given is settings:
                assert found.tokens == expected
        assert compiled.TRACES["decode"] == before  # whatever is set
        assert (sum(found.stats.accepted) > 3) == isinstance(method, Lookup)  # else it shows nothing


def test_mirostat_keeps_to_its_bound_token_by_token(tiny_llama, ragged):
    """Every token is one that the bound left by those before it allows; at the end it is where a slow loop has it."""
    prompts, tau, eta, temperature = ragged([5, 1, 12]), [1.0, 3.0, 2.0], 0.4, [2.0, 1.0, 3.0]
    sampling = Sampling(temperature=temperature, mirostat_tau=tau, mirostat_eta=eta, repetition_penalty=1.1)
    generation = Generation.begin(
        tiny_llama.placed, prompts, [60, 60, 10], Sample(), Dense(), sampling, [1, 2, 3], (), False
    )
    generation.run(steps_per_call=7)
    texts = np.zeros((3, 80), np.int32)
    for row, new in enumerate(generation.rows()):
        texts[row, : len(prompts[row]) + len(new)] = prompts[row] + new
    logits, bounds, cut = np.asarray(tiny_llama.logits(texts)), [], 0
    for row, new in enumerate(generation.rows()):
        mu = 2 * tau[row]
        for at, token in enumerate(new, start=len(prompts[row])):
            scores = seen_by_slow_loops(logits[row, at - 1], texts[row, :at].tolist(), 1.1, 0, {}, [])
            probs = slow_mirostat(scores / temperature[row], mu)
            assert probs[token] > 0, (row, at)
            cut += (probs == 0).any()
            mu -= eta * (-np.log2(probs[token]) - tau[row])
        bounds.append(mu)
    np.testing.assert_allclose(generation.state.sampling.mirostat_mu, bounds, rtol=1e-3, atol=1e-3)
    assert cut > 50

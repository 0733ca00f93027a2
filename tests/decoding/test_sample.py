"""Sampling end to end: seeds, and settings for each row."""

import numpy as np
import pytest

from jaxinfer import Greedy, Lookup, Sample, Sampling

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

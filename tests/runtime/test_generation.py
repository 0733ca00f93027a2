"""A generation is data that `begin` makes; what reads prompts is one function, a program for each thing it gives."""

import dataclasses

import numpy as np
import pytest

from jaxinfer import Dense, Lookup, Sampling
from jaxinfer.runtime import compiled, prefill, scoring
from jaxinfer.runtime.generation import Generation
from jaxinfer.runtime.placed import PlacedModel

pytestmark = pytest.mark.quick


def test_only_begin_reads_the_prompts(tiny_llama, monkeypatch):
    prompts, read, real = [[5, 6, 7, 5, 6], [8]], [], PlacedModel.prefill
    monkeypatch.setattr(PlacedModel, "prefill", lambda *given: read.append(given[2].shape) or real(*given))
    args = (prompts, [9, 7], Lookup(4), Dense(), Sampling(temperature=0.0), [0, 0], (), False)
    begun = Generation.begin(tiny_llama.placed, *args)
    assert len(read) == 1
    made = Generation(begun.placed, begun.method, begun.state, begun.extras, begun.lengths, begun.ends)
    again = dataclasses.replace(begun, seconds=dict(begun.seconds))
    assert (made.rows(), made.seconds["prefill"]) == ([[], []], 0.0)
    assert again.seconds["prefill"] == begun.seconds["prefill"] > 0
    made.run()
    assert len(read) == 1
    assert made.rows() == tiny_llama.generate(prompts, max_new_tokens=[9, 7]).tokens


def test_what_reading_gives_is_a_program_of_its_own_and_of_the_same_forward(tiny_llama):
    compiled.clear()
    compiled.TRACES.clear()
    tokens = np.array([[5, 6, 7, 8], [1, 2, 3, 4]])
    n, placed = np.full(2, 4), tiny_llama.placed
    for _ in range(2):
        found = {}
        for give in (prefill.nothing, prefill.hidden, prefill.logits, prefill.LogProbs(2)):
            more = (np.roll(tokens, -1, axis=1),) if isinstance(give, prefill.LogProbs) else ()
            cache = placed.empty_cache(Dense(), n, 4)
            cache, found[give], _ = placed.read_chunk(cache, tokens.astype(np.int32), n, give, *more)
            assert cache.length.tolist() == [4, 4]
    assert compiled.TRACES["prefill"] == 4
    nothing, hidden, logits, (own, (ids, _)) = found.values()
    assert nothing is None
    assert hidden.shape == (2, 4, tiny_llama.config.d_model)
    np.testing.assert_allclose(logits, scoring.logits(placed, Dense(), tokens), atol=1e-5)
    assert ids[..., 0].tolist() == np.argmax(logits, axis=-1).tolist()
    expected = np.take_along_axis(np.asarray(logits), np.roll(tokens, -1, axis=1)[:, :, None], axis=2)[..., 0]
    np.testing.assert_allclose(own, expected - np.log(np.exp(np.asarray(logits)).sum(axis=2)), atol=1e-5)

"""Perplexity against what follows from the logits, at windows on both sides of every chunk border."""

import numpy as np
import pytest

from jaxinfer import InputError, Model
from jaxinfer.analysis.quality import cross_entropy, perplexity
from jaxinfer.cache import Window
from jaxinfer.programs import TRACES, clear, program


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(0).integers(0, 97, 1300).tolist()


def direct(model, tokens, window):
    """exp of the mean of -log softmax(logits)[label] over all windows, in float64."""
    count = len(tokens) // window
    windows = np.array(tokens[: count * window]).reshape(count, window)
    logits = np.asarray(model.logits(windows), np.float64)[:, :-1]
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return np.exp(-np.take_along_axis(logprobs, windows[:, 1:, None], axis=2).mean())


@pytest.mark.parametrize("window", [2, 18, 65, 514, 643])
def test_perplexity_follows_from_the_logits(tiny_gemma, text, window):
    found = perplexity(tiny_gemma, text, window)
    assert found.value == pytest.approx(direct(tiny_gemma, text, window), rel=1e-5)
    assert found.windows == len(text) // window
    assert found.tokens == found.windows * (window - 1)
    assert found.value == pytest.approx(np.exp(found.nll), rel=1e-12)


def test_perplexity_of_other_models(tiny_llama, tiny_segments, text):
    for model in (tiny_llama, tiny_segments):
        assert perplexity(model, text, 100).value == pytest.approx(direct(model, text, 100), rel=1e-5)


def test_the_tail_is_dropped_and_max_windows_counts_from_the_front(tiny_llama, text):
    whole = perplexity(tiny_llama, text[:300], 100)
    assert perplexity(tiny_llama, text[:399], 100) == whole
    assert perplexity(tiny_llama, text, 100, max_windows=3) == whole
    assert perplexity(tiny_llama, text[:300], 100, max_windows=99) == whole
    assert perplexity(tiny_llama, text[100:], 100, max_windows=3) != whole


def test_windows_do_not_see_each_other(tiny_llama, text):
    alone = [perplexity(tiny_llama, part, 100).nll for part in (text[:100], text[100:200])]
    assert perplexity(tiny_llama, text[:200], 100).nll == pytest.approx(np.mean(alone), rel=1e-6)


def test_progress_gives_the_running_value(tiny_llama, text):
    calls = []
    found = perplexity(tiny_llama, text, 100, max_windows=3, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert calls[0][2] == perplexity(tiny_llama, text, 100, max_windows=1).value
    assert calls[-1][2] == found.value
    assert calls[0][2] != calls[1][2]


def test_one_trace_for_each_width_of_a_chunk(tiny_llama, text):
    clear()
    before = TRACES["cross_entropy"]
    perplexity(tiny_llama, text, 613)
    perplexity(tiny_llama, text[1:], 613)
    assert TRACES["cross_entropy"] - before == 2  # 512, and 100 in 128


def test_logits_of_a_whole_chunk_are_never_held(tiny_llama):
    vocab = 40_000
    model = Model.random(tiny_llama.config.replace(vocab_size=vocab))
    target = model.target
    tokens = np.zeros((1, 512), np.int32)
    args = (
        target.params,
        target.empty_cache(Window(), np.array([512]), 512),
        tokens,
        tokens,
        np.array([512], np.int32),
    )
    args = (*args[:2], *(target.place(x, "batch") for x in args[2:]))
    compiled, _ = program(cross_entropy, (target.model,), args, carry=1)
    one_block = 64 * vocab * 4
    assert one_block <= compiled.temp_bytes < 3 * one_block


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (100, {"window": 1}, "window=1 must be a whole number, 2 or above"),
        (100, {"window": 10.0}, "window=10.0 must be a whole number"),
        (3000, {"window": 1025}, "window=1025 is longer than the context of random: 1024 tokens"),
        (9, {"window": 10}, "tokens: 9 of them, fewer than one window of 10"),
        (0, {"window": 10}, "tokens: 0 of them"),
        (100, {"window": 10, "max_windows": 0}, "max_windows=0 must be a whole number, 1 or above"),
    ],
)
def test_bad_input(tiny_llama, count, options, expected):
    with pytest.raises(InputError, match=expected):
        perplexity(tiny_llama, [5] * count, **options)


def test_a_token_that_the_model_does_not_have(tiny_llama):
    with pytest.raises(InputError, match="window 1 holds token id 97: ids go from 0 to 96"):
        perplexity(tiny_llama, [5] * 15 + [97] * 5, window=10)

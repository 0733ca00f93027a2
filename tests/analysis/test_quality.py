"""Perplexity against what follows from the logits, at windows on both sides of every chunk border."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import jaxinfer
from jaxinfer import InputError, Model
from jaxinfer.analysis.quality import cross_entropy, perplexity
from jaxinfer.cache import Window
from jaxinfer.runtime.compiled import TRACES, clear, program
from jaxinfer.runtime.prefill import prefill


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


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def both(request, tmp_path_factory):
    """A random model in torch, and the same here with a tokenizer that puts BOS, token 2, before a text."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
    sizes |= dict(head_dim=16, num_hidden_layers=2, max_position_embeddings=64)
    torch.manual_seed(0)
    if request.param == "llama":
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, initializer_range=0.3))
    else:
        more = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"], initializer_range=0.3)
        theirs = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes, **more))
    folder = tmp_path_factory.mktemp("hf") / request.param
    theirs.save_pretrained(folder)
    tokenizer = SimpleNamespace(bos_id=2, encode=lambda text: [2, *map(ord, text)])
    return theirs.eval(), dataclasses.replace(jaxinfer.load(folder, dtype="float32"), tokenizer=tokenizer)


def in_torch(model, tokens, window, stride, bos):
    """The loop of transformers' page on the perplexity of fixed-length models, over whole windows; sums by label."""
    import torch

    total, labels, scored = 0.0, 0, 0  # scored: the end of what has been scored of the text
    for begin in range(0, len(tokens) - window + 1, stride):
        end = begin + window
        before = [] if bos is None else [bos]
        ids = torch.tensor([before + tokens[begin:end]])
        target = ids.clone()
        target[:, : len(before) + scored - begin] = -100
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits[0, :-1].double()
        shifted = target[0, 1:]
        total += torch.nn.functional.cross_entropy(logits, shifted, ignore_index=-100, reduction="sum").item()
        labels += int((shifted != -100).sum())
        scored = end
    return np.exp(total / labels), labels


@pytest.mark.parametrize("bos", [None, 2])
@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 32), (33, 7), (20, 1), (17, 16), (2, 1)])
def test_strides_and_bos_are_those_of_transformers(both, text, window, stride, bos):
    theirs, ours = both
    value, labels = in_torch(theirs, text[:150], window, stride, bos)
    # The tokenizer's own BOS stands before each window, not in the first alone; without it the text is taken as it is.
    found = perplexity(ours, [2, *text[:150]] if bos else text[:150], window, stride=stride, bos=bool(bos))
    assert found.value == pytest.approx(value, rel=2e-4)
    assert found.tokens == labels
    assert found.windows == len(range(0, 150 - window + 1, stride))
    assert found.protocol == f"windows of {window} {'after' if bos else 'without'} BOS, stride {stride}"


def test_every_token_of_the_text_counts_once(both, text):
    """With BOS the first one too; with overlap as many as disjoint windows have, and they are easier."""
    _, ours = both
    assert perplexity(ours, text[:64], 16).tokens == 64
    assert perplexity(ours, text[:64], 16, stride=4).tokens == 64
    assert perplexity(ours, text[:64], 16, stride=4, bos=False).tokens == 63
    assert perplexity(ours, text[:64], 16, stride=4, max_windows=3).tokens == 24


def test_bos_is_what_the_tokenizer_has_it(both, text):
    _, ours = both
    with_bos = perplexity(ours, [2, *text[:40]], 10)
    assert with_bos == perplexity(ours, text[:40], 10, bos=True)
    assert with_bos.bos
    never = dataclasses.replace(ours, tokenizer=SimpleNamespace(bos_id=2, encode=lambda text: [5, 6]))
    assert perplexity(never, text[:40], 10) == perplexity(ours, text[:40], 10, bos=False)
    assert perplexity(never, text[:40], 10, bos=True) == with_bos
    assert not perplexity(dataclasses.replace(ours, tokenizer=None), text[:40], 10).bos
    with pytest.raises(InputError, match=r"bos=True: .* has no BOS token"):
        perplexity(dataclasses.replace(ours, tokenizer=None), text[:40], 10, bos=True)


def test_gemma3_needs_bos(gemma3, prose):
    """A model that never saw a text without BOS: 4 windows of 64."""
    tokens = gemma3.tokenizer.encode(prose)[:257]
    assert tokens[0] == gemma3.tokenizer.bos_id
    found, without = perplexity(gemma3, tokens, 64), perplexity(gemma3, tokens[1:], 64, bos=False)
    assert found.bos
    assert 2 * found.value < without.value


def test_a_model_of_no_numbers_is_refused(tiny_llama, text):
    broken = {**tiny_llama.params, "final_norm": {"scale": np.full(48, np.nan, np.float32)}}
    with pytest.raises(InputError, match="random: its logits are no numbers in window 0 of the text"):
        perplexity(dataclasses.replace(tiny_llama, params=broken), text, 16)


def test_a_perplexity_beyond_all_numbers(tiny_llama, text):
    loud = {**tiny_llama.params, "final_norm": {"scale": np.full(48, 1e9, np.float32)}}
    assert perplexity(dataclasses.replace(tiny_llama, params=loud), text, 16, max_windows=1).value == np.inf


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


def test_one_trace_for_all_chunks_of_a_window(tiny_llama, text):
    clear()
    before = TRACES["prefill"]
    perplexity(tiny_llama, text, 613)
    perplexity(tiny_llama, text[1:], 613)
    assert TRACES["prefill"] - before == 1  # two chunks of 320 each


def test_logits_of_a_whole_chunk_are_never_held(tiny_llama):
    vocab = 40_000
    model = Model.random(tiny_llama.config.replace(vocab_size=vocab))
    placed = model.placed
    tokens = np.zeros((1, 512), np.int32)
    args = (
        placed.params,
        placed.empty_cache(Window(), np.array([512]), 512),
        tokens,
        np.array([512], np.int32),
        tokens,
        np.array([512], np.int32),
    )
    args = (*args[:2], *(placed.place(x, "batch") for x in args[2:]))
    compiled, _ = program(prefill, (placed.model, cross_entropy), args, carry=1)
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
        (100, {"window": 10, "stride": 0}, "stride=0 must be a whole number, 1 or above"),
        (100, {"window": 10, "stride": 11}, "stride=11 must be at most the window of 10"),
        (100, {"window": 10, "stride": 2.5}, "stride=2.5 must be a whole number"),
        (100, {"window": "x" * 500}, "window='xxx.*xxx' must be a whole number"),
        (100, {"window": 10, "bos": "yes"}, "bos='yes' must be True, False, or None"),
        (100, {"window": 10, "max_windows": 0}, "max_windows=0 must be a whole number, 1 or above"),
    ],
)
def test_bad_input(tiny_llama, count, options, expected):
    with pytest.raises(InputError, match=expected):
        perplexity(tiny_llama, [5] * count, **options)


@pytest.mark.parametrize("tokens", [None, 5, "a text"])
def test_what_is_no_text_in_tokens(tiny_llama, tokens):
    with pytest.raises(InputError, match=r"tokens=.* must be the ids of a text"):
        perplexity(tiny_llama, tokens, 10)


def test_a_token_that_the_model_does_not_have(tiny_llama):
    with pytest.raises(InputError, match="window 1 holds token id 97: ids go from 0 to 96"):
        perplexity(tiny_llama, [5] * 15 + [97] * 5, window=10)

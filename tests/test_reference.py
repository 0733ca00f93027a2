"""The two real models against transformers on torch, with the same weights in float32."""

import numpy as np
import pytest

from jaxinfer import Dense
from jaxinfer.analysis import perplexity

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("torch_models")

NEW = 64
LENGTHS = (2, 17, 45, 523, 640)  # the last two lie beyond Gemma's window of 512


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def pair(request):
    """One of our models, and the same in torch. Each torch model lives as long as its tests."""
    return request.getfixturevalue(request.param), getattr(torch_models, request.param)()


@pytest.fixture(scope="module")
def prompts(pair, prose):
    """Five stretches of prose, of the lengths above."""
    ids = pair[0].tokenizer.encode(prose)
    starts = (0, 900, 1500, 300, 1900)
    return [ids[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def continued(pair, prompts):
    """Our greedy continuation of all prompts in one ragged batch."""
    result = pair[0].generate(prompts, max_new_tokens=NEW)
    assert [len(row) for row in result.tokens] == [NEW] * len(prompts)
    return result.tokens


def reference_logits(model, ids, last=0):
    """float32[T, V] of one row, alone and without a cache; of its `last` tokens if that is given."""
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False, logits_to_keep=last).logits[0].numpy()


def test_logits(pair, prompts):
    """Rows are padded on the right, to share programs; what follows a token must not reach it."""
    ours, theirs = pair
    for group in (prompts[:3], prompts[3:4], prompts[4:]):
        width = 640 if len(group) == 1 else max(map(len, group))
        found = ours.logits([ids + [0] * (width - len(ids)) for ids in group])
        for row, ids in enumerate(group):
            expected = reference_logits(theirs, ids)
            error = np.abs(np.asarray(found[row, : len(ids)]) - expected).max()
            assert error < 2e-4 * np.abs(expected).max()


def test_greedy_continues_as_torch_would(pair, prompts, continued):
    """Under our tokens so far, each of our tokens is torch's most likely one: its greedy text, by induction."""
    for prompt, new in zip(prompts, continued, strict=True):
        expected = reference_logits(pair[1], prompt + new, last=NEW + 1)[:-1]
        np.testing.assert_array_equal(expected.argmax(axis=-1), new)


def test_greedy_text_is_that_of_generate(pair, prompts, continued):
    """The same without the induction: transformers' own loop, with its own cache, on one prompt."""
    prompt = torch.tensor([prompts[2]])
    with torch.inference_mode():
        found = pair[1].generate(prompt, do_sample=False, max_new_tokens=NEW, attention_mask=torch.ones_like(prompt))
    tokenizer = pair[0].tokenizer
    assert tokenizer.decode(found[0, len(prompts[2]) :].tolist()) == tokenizer.decode(continued[2])


@pytest.mark.parametrize("pair", ["gemma3"], indirect=True)  # SmolLM2's layers hold every token in any case
def test_holding_every_token_gives_the_same_text(pair, prompts, continued):
    """Dense in every layer, for the prompts that Gemma's local layers hold the last 512 tokens of."""
    assert pair[0].generate(prompts[3:], max_new_tokens=NEW, policy=Dense()).tokens == continued[3:]


def test_perplexity(pair, prose):
    window, count = 128, 8
    ids = pair[0].tokenizer.encode(prose)
    found = perplexity(pair[0], ids, window=window, max_windows=count)
    if found.bos:  # the text begins with one, and every window stands after one
        bos, *ids = ids
    windows = torch.tensor(ids[: window * count]).reshape(count, window)
    if found.bos:
        windows = torch.nn.functional.pad(windows, (1, 0), value=bos)
    losses = []
    with torch.inference_mode():
        for rows in windows.split(4):  # the logits of all windows would take gigabytes
            logits = pair[1](rows, use_cache=False).logits[:, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item())
    assert found.windows == count
    assert found.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)

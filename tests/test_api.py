"""What a user of the library sees: generate, stream, logits, and one clear line for bad input."""

import jax
import numpy as np
import pytest

from jaxinfer import Dense, Greedy, InputError, Lookup, Sample, Sampling, Window, load


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [[]]}, "prompt is empty"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1, 97]]}, "token id 97"),
        ({"prompts": [[-1]]}, "token id -1"),
        ({"prompts": [[1] * 1025]}, "1025 tokens.*1024"),
        ({"prompts": ["text"]}, "tokenizer"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"max_new_tokens": [4, 4, 4]}, "max_new_tokens has 3 values for 2 prompts"),
        ({"seed": [1]}, "seed has 1 values for 2 prompts"),
        ({"seed": -1}, "seed=-1"),
        ({"method": Greedy(), "sampling": Sampling(temperature=0.5)}, "Greedy takes no sampling"),
        ({"policy": Dense(capacity=4)}, "capacity=4"),
        ({"method": Sample(), "sampling": Sampling(temperature=[0.1, 0.2, 0.3])}, "temperature has 3 values"),
        ({"stop": "x"}, "stop strings need"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tiny_llama, options, named):
    options = {"prompts": [[1, 2], [3]], "max_new_tokens": 4} | options
    with pytest.raises(InputError, match=named) as error:
        tiny_llama.generate(options.pop("prompts"), **options)
    assert "\n" not in str(error.value)


def test_a_prompt_may_fill_the_whole_context(tiny_llama):
    result = tiny_llama.generate([[5] * 1024], max_new_tokens=9)
    assert len(result.tokens[0]) == 1  # there is room for nothing behind it


def test_logits_equal_the_step_by_step_ones(tiny, ragged):
    (tokens,) = ragged((150,))
    whole = tiny.logits([tokens])
    one_by_one = [tiny.logits([tokens[:n]])[0, -1] for n in (1, 2, 15, 16, 17, 127, 128, 129, 150)]
    at = np.array([1, 2, 15, 16, 17, 127, 128, 129, 150]) - 1
    np.testing.assert_allclose(whole[0, at], np.stack(one_by_one), rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", [Greedy(), Lookup(width=4)])
def test_logprobs_are_those_of_the_model(tiny, ragged, method):
    prompts = ragged((12, 3))
    result = tiny.generate(prompts, max_new_tokens=16, method=method, logprobs=True)
    for prompt, tokens, logprobs in zip(prompts, result.tokens, result.logprobs, strict=True):
        expected = jax.nn.log_softmax(tiny.logits([prompt + tokens])[0])[len(prompt) - 1 : -1]
        np.testing.assert_allclose(logprobs, [row[t] for row, t in zip(expected, tokens, strict=True)], atol=2e-4)


def test_stats_add_up(tiny, ragged):
    prompts = ragged((30, 4, 1))
    result = tiny.generate(prompts, max_new_tokens=[40, 7, 1], method=Lookup(width=5))
    stats = result.stats
    assert stats.emitted == [len(t) for t in result.tokens] == [40, 7, 1]
    assert stats.prompt_tokens == [30, 4, 1]
    assert [e - s for e, s in zip(stats.emitted, stats.steps, strict=True)] == stats.accepted
    assert all(a <= p <= 4 * s for a, p, s in zip(stats.accepted, stats.proposed, stats.steps, strict=True))
    assert set(stats.seconds) == {"prefill", "decode", "compile"}
    assert stats.weight_bytes == sum(x.nbytes for x in jax.tree.leaves(tiny.params))


def test_a_row_with_a_seed_draws_the_same_alone(tiny, ragged):
    prompts = ragged((9, 17, 2))
    sampling = Sampling(temperature=1.2, top_p=0.95, repetition_penalty=1.1)
    together = tiny.generate(prompts, max_new_tokens=20, sampling=sampling, seed=40)
    for row, prompt in enumerate(prompts):
        alone = tiny.generate([prompt], max_new_tokens=20, sampling=sampling, seed=40 + row)
        assert alone.tokens[0] == together.tokens[row]
    again = tiny.generate(prompts, max_new_tokens=20, sampling=sampling, seed=[40, 41, 42])
    other = tiny.generate(prompts, max_new_tokens=20, sampling=sampling, seed=41)
    assert again.tokens == together.tokens
    assert other.tokens != together.tokens


def test_a_random_model_answers_in_tokens(tiny_llama):
    assert tiny_llama.generate([[1, 2]], max_new_tokens=3).texts is None
    with pytest.raises(InputError, match="tokenizer"):
        tiny_llama.stream([1, 2])


PROMPT = "List three colors and an emoji for each:\n1. red 🍎\n2."


@pytest.mark.parametrize(("method", "steps"), [(Greedy(), 1), (Lookup(width=6), 1), (Greedy(), 5)])
def test_streamed_pieces_join_to_the_text(smollm2, method, steps):
    whole = smollm2.generate(PROMPT, max_new_tokens=40, method=method)
    stream = smollm2.stream(PROMPT, max_new_tokens=40, method=method, steps_per_piece=steps)
    pieces = list(stream)
    assert "".join(pieces) == whole.texts[0]
    assert stream.tokens == whole.tokens[0]
    assert stream.stats.emitted == [len(stream.tokens)]
    assert len(pieces) > 3


def test_stop_strings_end_a_row_before_them(smollm2):
    free = smollm2.generate(PROMPT, max_new_tokens=40)
    text = free.texts[0]
    stop = text[len(text) // 2 - 1 : len(text) // 2 + 2]  # three characters, across tokens or not
    stopped = smollm2.generate([PROMPT, "Hello"], max_new_tokens=40, stop=stop)
    assert stopped.texts[0] == text[: text.index(stop)]
    assert len(stopped.tokens[0]) < len(free.tokens[0])
    assert stopped.tokens[0] == free.tokens[0][: len(stopped.tokens[0])]
    assert stopped.tokens[1] == smollm2.generate("Hello", max_new_tokens=40).tokens[0][: len(stopped.tokens[1])]
    assert "".join(smollm2.stream(PROMPT, max_new_tokens=40, stop=[stop, "never to be seen"])) == stopped.texts[0]


def test_a_stop_token_ends_a_row_and_is_its_last(smollm2):
    chat = [{"role": "user", "content": "Say hi."}]
    ids = smollm2.tokenizer.chat(chat)
    result = smollm2.generate([ids, ids[:7]], max_new_tokens=[120, 30], method=Lookup(width=8), policy=Window())
    assert result.tokens[0][-1] in smollm2.tokenizer.stop_ids
    assert not set(result.tokens[0][:-1]) & set(smollm2.tokenizer.stop_ids)
    assert "<|im_end|>" not in result.texts[0]


def test_the_text_of_a_prompt_and_its_tokens_give_the_same(smollm2):
    text = "The sea"
    assert (
        smollm2.generate(text, max_new_tokens=8).tokens
        == smollm2.generate([smollm2.encode(text)], max_new_tokens=8).tokens
    )


def test_logits_refuse_what_is_not_a_batch_of_tokens(tiny_llama):
    for wrong in ([1, 2, 3], [[]], [[1, 200]]):
        with pytest.raises(InputError, match="tokens"):
            tiny_llama.logits(wrong)


def test_loading_refuses_an_unknown_dtype():
    with pytest.raises(InputError, match="float99"):
        load("smollm2-135m", dtype="float99")

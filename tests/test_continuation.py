"""The space between a prompt and what continues it, with SentencePiece's way of writing words."""

import dataclasses

import pytest

from jaxinfer.checkpoint import Tokenizer

tokenizers = pytest.importorskip("tokenizers")
PROMPT = [5, 6]


@pytest.fixture(scope="module")
def model(tiny_gemma):
    """Each token is a word with the space before it, but for token 0, which is special."""
    from tokenizers import decoders, models

    words = {"<s>" if id == 0 else f"▁w{id}": id for id in range(tiny_gemma.config.vocab_size)}
    backend = tokenizers.Tokenizer(models.BPE(words, [], unk_token="<s>"))
    backend.add_special_tokens(["<s>"])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return dataclasses.replace(tiny_gemma, tokenizer=Tokenizer(backend))


@pytest.mark.parametrize("prompt", [PROMPT, [0], [0, 0, 7]], ids=["words", "special", "both"])
def test_prompt_and_continuation_are_the_whole_text(model, prompt):
    result = model.generate([prompt], max_new_tokens=5)
    expected = model.tokenizer.backend.decode([*prompt, *result.tokens[0]], skip_special_tokens=True)
    assert model.tokenizer.decode(prompt) + result.texts[0] == expected
    assert result.texts[0].startswith(" ") == (prompt != [0])
    assert "".join(model.stream(prompt, max_new_tokens=5)) == result.texts[0]


def test_stop_strings_see_the_space(model):
    first, second = model.generate([PROMPT], max_new_tokens=2).tokens[0]
    stopped = model.generate([PROMPT], max_new_tokens=5, stop=f" w{first} w{second}")
    assert (stopped.texts, stopped.tokens) == ([""], [[first, second]])
    assert "".join(model.stream(PROMPT, max_new_tokens=5, stop=f" w{second}")) == f" w{first}"

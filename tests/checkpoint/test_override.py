"""A tokenizer from elsewhere, and SentencePiece's as a GGUF file has it, against llama.cpp's ids."""

import contextlib
import sys
from contextlib import closing

import pytest
from gguf_files import GPT2_TOKENIZER, write_gguf

import jaxinfer
from jaxinfer.checkpoint.gguf_header import read_header
from jaxinfer.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.cli.commands import main
from jaxinfer.errors import InputError
from jaxinfer.experiment.schema import load_config

SPM_TOKENS = ["<unk>", "<s>", "</s>", "<|t|>", "<|u|>", "  ", "<unused>", *(f"<0x{n:02X}>" for n in range(256))]
SPM_TOKENS += ["▁", "a", "b", "▁a", "▁b", "<", ">", "|", "t", "s", "/", "ab", "▁ab", "▁▁", "u", "n", "k"]
SPM_TYPES = [2, 3, 3, 4, 4, 4, 5, *[6] * 256, *[1] * 17]
SPM = {
    "model": "llama",
    "tokens": SPM_TOKENS,
    "token_type": SPM_TYPES,
    "scores": [0.0] * 263 + [-float(n) for n in range(17)],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
}
SPM_TEXTS = [
    "a<|t|>b",
    "a <|t|> b",
    "<|t|>a",
    "<|t|><|u|>a b",
    " a<|t|>",
    "a  b",
    "a<|t|>  b   a",
    "<s>a</s>b<unk>ab",
    "<unused>a<0x41>",
    "é<|u|>\n",
    "",
    " ",
    "<|t|",
    "▁a",
]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tiny.gguf"


def test_tokens_of_sentencepiece_equal_llama_cpp(file):
    llama_cpp = pytest.importorskip("llama_cpp")
    write_gguf(file, tokenizer=SPM, metadata={"vocab_size": len(SPM_TOKENS)}, tensors={})
    ours = tokenizer_from_gguf(read_header(file))
    with closing(llama_cpp.Llama(str(file), vocab_only=True, verbose=False)) as theirs:
        for text in SPM_TEXTS:
            assert ours.encode(text) == theirs.tokenize(text.encode(), add_bos=True, special=True), repr(text)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A folder with a tokenizer.json of 64 tokens, its config beside it."""
    folder = tmp_path_factory.mktemp("other")
    path = write_gguf(folder / "other.gguf", tokenizer=GPT2_TOKENIZER, tensors={})
    (folder / "tokenizer.json").write_text(tokenizer_from_gguf(read_header(path)).backend.to_str())
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|start|>", "eos_token": "<|im_end|>"}')
    return folder


@pytest.mark.parametrize("name", ["", "tokenizer.json", "other.gguf"])
def test_a_tokenizer_from_elsewhere(file, other, llama_folder, name):
    wanted = tokenizer_from_gguf(read_header(other / "other.gguf"))
    write_gguf(file, tokenizer=GPT2_TOKENIZER | {"tokens": [f"x{n}" for n in range(64)], "merges": ["x0 x1"]})
    for source in (file, llama_folder):
        found = load_checkpoint(source, tokenizer=other / name).tokenizer
        assert found.encode("hello world") == wanted.encode("hello world")
        assert found.stop_ids == (1,)
    assert jaxinfer.load(str(file), tokenizer=str(other / name)).tokenizer.encode("hello") == wanted.encode("hello")


def test_a_tokenizer_that_does_not_fit_the_embedding(file, other, tmp_path):
    large = write_gguf(tmp_path / "large.gguf", tokenizer=SPM, tensors={})
    write_gguf(file)
    with pytest.raises(InputError, match=r"tokenizer: .*large.gguf: has 280 tokens, and the model's embedding has 64"):
        load_checkpoint(file, tokenizer=large)
    for name, message in [("nowhere", "no such file"), ("tiny.gguf", "holds no tokenizer")]:
        with pytest.raises(InputError, match=rf"tokenizer: .*{name}: {message}"):
            load_checkpoint(file, tokenizer=tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no tokenizer"):
        load_checkpoint(file, tokenizer=tmp_path / "empty")


def test_the_commands_take_a_tokenizer(file, other, capfd, monkeypatch):
    write_gguf(file)
    arguments = ["jaxinfer", "generate", "hello", "--model", str(file), "--max-new-tokens", "2", "--no-stream"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--tokenizer", str(other / "nowhere")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "nowhere: no such file" in capfd.readouterr().err
    monkeypatch.setattr(sys, "argv", [*arguments, "--tokenizer", str(other)])
    with contextlib.suppress(SystemExit):
        main()
    assert "tokens/s" in capfd.readouterr().err


def test_configs_take_a_tokenizer(tmp_path):
    (tmp_path / "x.yaml").write_text(
        "name: x\nmodel: {source: smollm2-135m, tokenizer: /somewhere}\nrows: [{name: a, method: greedy}]\n"
    )
    assert load_config(tmp_path / "x.yaml", []).model.tokenizer == "/somewhere"

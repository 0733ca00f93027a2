"""Tokenizers against llama.cpp's, transformers', and themselves."""

import json
import random
from contextlib import closing
from functools import cache

import pytest
from gguf_files import GPT2_TOKENIZER, write_gguf

from jaxinfer.checkpoint import StreamDecoder, Tokenizer
from jaxinfer.checkpoint.gguf_header import read_header
from jaxinfer.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from jaxinfer.checkpoint.hf_tokenizer import tokenizer_from_folder
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.checkpoint.pre_tokenizers import ADD_BOS, PRE_TOKENIZERS
from jaxinfer.checkpoint.sources import builtin_path
from jaxinfer.checkpoint.spelling import Spelling
from jaxinfer.checkpoint.tokenizer import TokenizerSettings
from jaxinfer.errors import InputError

NAMES = ["smollm2-135m", "gemma3-270m"]
TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "a",
    "Hello world",
    " Hello  world   !",
    "Hello, world! It's we're I'LL can't",
    "def f(x):\n    if x:\n\treturn  x+1  # ok\n\n\nclass A:\n        pass\n",
    "1234567890 3.14 1,000,000 0x1F",
    "你好，世界。今天天气怎么样？",
    "مرحبا بالعالم كيف حالك",
    "🎉🎊 👩‍👩‍👧‍👦 🇫🇷 👍🏽",
    "café naïve Ünïcödé",
    "<|im_start|>user\nhi<|im_end|>",
    "<start_of_turn>user\nhi<end_of_turn>\n<bos><eos>",
    "trailing space ",
    "\t\ttabs\t and\r\nCRLF\r\n",
    "ﬁ ligature ½ ² Ⅷ",
    "日本語テキスト ひらがな カタカナ",
    "한국어 텍스트",
    "Привет, мир",
    "a" * 100,
    "=" * 80,
    "!@#$%^&*()_+-=[]{}|;':\",./<>?",
    "<html><body><p>hi</p></body></html>",
    "\u200bzero\u200dwidth\ufeff",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀𓂀",
    "ा़ combining é",
    "            deep indent",
    "x" + " " * 40 + "y",
    "\x01 control \x7f",
    "<0x0A> literal Ġ",
    "foo<pad>bar<unk>baz [multimodal] <unused5>",
    "https://example.com/a?b=c&d=%20e",
]


def mixtures(count, seed=0):
    """Random strings of characters that tokenizers treat differently. Not U+2581, which SentencePiece cannot tell
    from a space."""
    rng = random.Random(seed)
    return ["".join(rng.choices("abc ABC  \n\t0123.,'!-_<>|é你🎉ّ\r", k=rng.randint(1, 60))) for _ in range(count)]


@cache
def tokenizer(name) -> Tokenizer:
    return tokenizer_from_gguf(read_header(builtin_path(name)))


def llama_cpp(path):
    """llama.cpp's reading of a file's vocabulary, as a context that frees it."""
    return closing(pytest.importorskip("llama_cpp").Llama(str(path), vocab_only=True, verbose=False))


@pytest.mark.parametrize("name", NAMES)
def test_tokens_equal_llama_cpp(name):
    with llama_cpp(builtin_path(name)) as theirs:
        for text in TEXTS + mixtures(200):
            expected = theirs.tokenize(text.encode(), add_bos=name == "gemma3-270m", special=True)
            assert tokenizer(name).encode(text) == expected, repr(text)


@pytest.mark.parametrize("name", NAMES)
def test_text_comes_back(name):
    for text in TEXTS + mixtures(50):
        ours = tokenizer(name)
        assert ours.decode(ours.encode(text)[len(ours.encode("")) :], skip_special=False) == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("skip_special", [True, False])
def test_decoding_equals_tokenizers_and_streams(name, skip_special):
    """Also of tokens in random order, where characters are cut and bytes are no UTF-8."""
    ours, rng = tokenizer(name), random.Random(1)
    jumbles = [rng.choices(range(ours.vocab_size), k=12) for _ in range(500)]
    for ids in [ours.encode(text) for text in TEXTS] + jumbles:
        whole = ours.decode(ids, skip_special)
        assert whole == ours.backend.decode(ids, skip_special_tokens=skip_special)
        assert stream(ours, ids, skip_special) == whole


def stream(tokenizer, ids, skip_special=True, at_once=1):
    decoder = StreamDecoder(tokenizer, skip_special)
    pieces = [decoder.feed(ids[at : at + at_once]) for at in range(0, len(ids), at_once)]
    return "".join(pieces) + decoder.finish()


@pytest.mark.parametrize("name", NAMES)
def test_bytes_stream_as_characters(name):
    """A character that takes several tokens comes with the last of them; an unfinished one comes at the end."""
    ours = tokenizer(name)
    start = len(ours.encode(""))
    rare = next(chr(code) for code in range(0x13000, 0x14000) if len(ours.encode(f"a{chr(code)}b")) - start > 5)
    ids = ours.encode(f"a{rare}b")[start:]
    decoder = StreamDecoder(ours)
    pieces = [decoder.feed([id]) for id in ids]
    assert [piece for piece in pieces if piece] == ["a", rare, "b"]
    assert pieces[1] == ""
    assert decoder.finish() == ""
    cut = ids[:3]
    assert stream(ours, cut).startswith("a�")
    assert stream(ours, ids, at_once=3) == f"a{rare}b"


def test_bytes_of_sentencepiece_that_are_no_utf8():
    """A wrong byte costs one character, and not the run of bytes around it: what was streamed cannot be taken back."""
    ours = tokenizer("gemma3-270m")
    ids = [ours.backend.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode() + b"\xff"]
    assert ours.decode(ids) == stream(ours, ids) == "€�"


@pytest.mark.parametrize(
    ("name", "stops", "bos", "chat"), [(NAMES[0], (0, 2), 1, True), (NAMES[1], (1, 106), 2, False)]
)
def test_properties(name, stops, bos, chat):
    ours = tokenizer(name)
    assert ours.stop_ids == stops
    assert ours.bos_id == bos
    assert ours.has_chat == chat
    assert ours.decode([ours.vocab_size + 5]) == ""
    with pytest.raises(InputError, match="token -1 is negative"):
        ours.decode([-1])


def test_chat():
    ours = tokenizer("smollm2-135m")
    ids = ours.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi  there"}])
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi  there<|im_end|>\n<|im_start|>assistant\n"
    assert ours.decode(ids, skip_special=False) == expected
    assert ids.count(1) == 3
    with pytest.raises(InputError, match="no chat template"):
        tokenizer("gemma3-270m").chat([{"role": "user", "content": "Hi"}])
    with pytest.raises(InputError, match="message 0 must be"):
        ours.chat([{"content": "Hi"}])
    with pytest.raises(InputError, match="no chat template 'tool'"):
        ours.chat([{"role": "user", "content": "Hi"}], chat_template="tool")


def test_chat_has_one_bos_and_that_from_the_template():
    base = tokenizer("gemma3-270m")
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    ours = Tokenizer(base.backend, TokenizerSettings(base.bos_id, (1,), template))
    ids = ours.chat([{"role": "user", "content": "Hi"}])
    assert ids == [*base.encode("Hi"), 1]
    assert ids.count(2) == 1


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tiny.gguf"


def write_small(file, **changes):
    kept = {key: value for key, value in (GPT2_TOKENIZER | changes).items() if value is not None}
    return write_gguf(file, tokenizer=kept, metadata={"vocab_size": len(kept.get("tokens", ()))}, tensors={})


def small(file, **changes):
    return tokenizer_from_gguf(read_header(write_small(file, **changes)))


def test_byte_level_bos_follows_the_flag(file):
    assert small(file).encode("hello world") == small(file, add_bos_token=True).encode("hello world")[1:]
    assert small(file, add_bos_token=True).encode("hello")[0] == 0


# llama.cpp's own engine of regular expressions knows no marks apart from letters: these are as in tokenizer.json.
NOT_AS_LLAMA_CPP = ("tiny_aya", "cohere2moe")
# One name of each splitting, and those whose other rules differ.
DISTINCT = {splits: name for name, splits in reversed(PRE_TOKENIZERS.items()) if name not in NOT_AS_LLAMA_CPP}.values()


@pytest.mark.parametrize(
    "pre", sorted({*DISTINCT, "llama-bpe", "dbrx", "glm4", "falcon3", "deepseek-r1-qwen", "smaug-bpe"})
)
def test_pre_tokenizers_cut_as_llama_cpp_does(file, pre):
    """The head of SmolLM2's vocabulary, and numbers, with another pre-tokenizer in the metadata, read by both."""
    header = read_header(builtin_path("smollm2-135m"))
    values = {key: header.metadata[f"tokenizer.ggml.{key}"] for key in ("bos_token_id", "eos_token_id", "model")}
    tokens = header.array("tokenizer.ggml.tokens")[:8000]
    kept = set(tokens)
    merges = [pair for pair in header.array("tokenizer.ggml.merges") if pair.replace(" ", "") in kept]
    numbers = ["1 2", "12 3", "123 4", "0 1", "01 2", "012 3", "1 0", "3 1", "31 2", "2 2", "Ġ 1", "Ġ1 2"]
    tokens += [pair.replace(" ", "") for pair in numbers]
    values |= {"tokens": tokens, "merges": merges + numbers, "token_type": [3] * 17 + [1] * (len(tokens) - 17)}
    values["add_bos_token"] = False
    write_gguf(file, tokenizer=values | {"pre": pre}, metadata={"vocab_size": len(values["tokens"])}, tensors={})
    ours = tokenizer_from_gguf(read_header(file))
    with llama_cpp(file) as theirs:
        for text in TEXTS + mixtures(60, seed=2):
            assert ours.encode(text) == theirs.tokenize(text.encode(), add_bos=False, special=True), repr(text)


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken", "chameleon", "smollm", "qwen2", "gpt-2"])
def test_without_a_flag_the_pre_tokenizer_decides_about_bos(file, pre):
    expected = small(file, pre=pre, add_bos_token=False).encode("hello world")
    assert small(file, pre=pre, add_bos_token=None).encode("hello world") == [0] * (pre in ADD_BOS) + expected
    assert (pre in ADD_BOS) == (pre in ("llama-bpe", "tekken", "chameleon"))
    with llama_cpp(write_small(file, pre=pre, add_bos_token=None)) as theirs:
        assert small(file, pre=pre, add_bos_token=None).encode("hello") == theirs.tokenize(b"hello", special=True)


PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a", "▁b", "<|t|>", "▁▁", "<tool>", "ab", "▁ab"]
SENTENCEPIECE = {
    "model": "llama",
    "pre": "default",
    "tokens": PIECES,
    "scores": [0.0, 0.0, 0.0, 0.0, -5.0, -6.0, -7.0, -1.0, -2.0, 0.0, -1.5, 0.0, -3.0, -2.5],
    "token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 4, 4, 4, 1, 1],
    "unknown_token_id": 0,
}


@pytest.mark.parametrize("prefix", [True, False])
def test_tokens_of_a_users_are_found_in_the_text_as_it_stands(file, prefix):
    """In SentencePiece files of Llama 2 and Mistral: what follows one begins with a space again."""
    values = SENTENCEPIECE | {"add_space_prefix": prefix}
    write_gguf(file, tokenizer=values, metadata={"vocab_size": len(PIECES)}, tensors={})
    ours = tokenizer_from_gguf(read_header(file))
    if prefix:
        assert [ours.backend.id_to_token(id) for id in ours.encode("a<|t|>b")] == ["<s>", "▁a", "<|t|>", "▁b"]
    with llama_cpp(file) as theirs:
        for text in ("a<|t|>b", "<|t|>", "<|t|><tool>a", "a <|t|> b", "ab<tool> a  b<|t|>", "a\n</s>b<|t|>", "  a", ""):
            assert ours.encode(text) == theirs.tokenize(text.encode(), add_bos=True, special=True), repr(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, r"tiny.gguf: tokenizer 'bert' is not supported; supported: gpt2, llama"),
        ({"pre": "smolm"}, r"tiny.gguf: tokenizer.ggml.pre: pre-tokenizer 'smolm' is not known; nearest: 'smollm'"),
        ({"tokens": None}, r"tiny.gguf: field 'tokenizer.ggml.tokens' is missing, and this tokenizer needs it"),
        ({"merges": None}, r"tiny.gguf: field 'tokenizer.ggml.merges' is missing"),
        ({"merges": ["q qqq"]}, r"tiny.gguf: the tokenizer in the metadata does not fit together"),
        ({"token_type": [1, 1]}, r"tiny.gguf: the tokenizer in the metadata does not fit together"),
        ({"bos_token_id": 5000}, r"tiny.gguf: tokenizer.ggml.bos_token_id: token 5000 is not in the vocabulary"),
        ({"eos_token_id": 64}, r"tiny.gguf: tokenizer.ggml.eos_token_id: token 64 is not in the vocabulary"),
        ({"eot_token_id": "x"}, r"tiny.gguf: tokenizer.ggml.eot_token_id: must be the number of a token"),
    ],
)
def test_tokenizer_metadata_that_does_not_fit(file, changes, message):
    with pytest.raises(InputError, match=message):
        small(file, **(changes | {"add_bos_token": True}))


def test_the_built_tokenizer_is_kept_and_a_damaged_one_is_rebuilt(file, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path / "cache"))
    expected = small(file).encode("hello world")
    (kept,) = (tmp_path / "cache" / "tokenizers").iterdir()
    text = kept.read_text()
    assert json.loads(text)["model"]["type"] == "BPE"
    monkeypatch.setattr("jaxinfer.checkpoint.gguf_tokenizer._build", lambda *_: pytest.fail("built again"))
    assert small(file).encode("hello world") == expected
    monkeypatch.undo()
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path / "cache"))
    for damaged in (text[: len(text) // 2], "", "{}"):
        kept.write_text(damaged)
        assert small(file).encode("hello world") == expected
        assert kept.read_text() == text


def test_without_a_cache_and_with_one_that_cannot_be_written(file, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for setting in ("off", str(tmp_path / "file" / "below")):
        monkeypatch.setenv("JAXINFER_CACHE", setting)
        assert small(file).encode("hello")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tiny.gguf"]


def test_a_folder_of_transformers(tmp_path):
    """The same tokenizer, saved by transformers with BOS and without, and with an end that only one file declares."""
    from transformers import PreTrainedTokenizerFast

    ours = tokenizer("smollm2-135m")
    template = tokenizer("smollm2-135m").settings.chat_template
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=ours.backend, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=template
    )
    theirs.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    loaded = tokenizer_from_folder(tmp_path)
    assert loaded.stop_ids == (0, 2, 7)
    assert loaded.bos_id == 1
    messages = [{"role": "user", "content": "Hi"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert loaded.chat(messages) == expected == ours.chat(messages)
    for text in TEXTS:
        assert loaded.encode(text) == theirs(text)["input_ids"]

    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    assert tokenizer_from_folder(tmp_path).encode("Hi") == [1, *ours.encode("Hi")]
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer.json: is not valid JSON"):
        tokenizer_from_folder(tmp_path)


def test_sentencepiece_with_a_space_before_the_text():
    """Llama 2's decoder: the space that encoding puts before a text goes away again, once."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    vocab = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "<0xE2>": 4, "<0x82>": 5, "<0xAC>": 6}
    backend = Backend(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    ours = Tokenizer(backend)
    for text in ("a", "a a", " a", "  a", "a€a", "€", " "):
        ids = ours.encode(text)
        assert ours.decode(ids) == stream(ours, ids) == backend.decode(ids) == text


def test_decoders_that_are_not_known():
    with pytest.raises(InputError, match="decoder 'WordPiece' is not supported"):
        Spelling.of({"type": "WordPiece", "prefix": "##"})


def test_checkpoints_carry_their_tokenizer():
    assert load_checkpoint("smollm2-135m").tokenizer.encode("Hello") == tokenizer("smollm2-135m").encode("Hello")

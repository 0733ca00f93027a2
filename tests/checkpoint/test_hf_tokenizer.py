"""Tokenizers of Hugging Face folders, whichever files they have, against transformers and SentencePiece."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.checkpoint import StreamDecoder, Tokenizer
from jaxinfer.checkpoint.hf_tokenizer import tokenizer_from_folder
from jaxinfer.checkpoint.sentencepiece import backend_of
from jaxinfer.checkpoint.tokenizer import TokenizerSettings, checked_ids
from jaxinfer.errors import InputError

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "",
    " ",
    "hello world",
    "  two  spaces ",
    "a<|t|>b",
    "<|t|> a<|t|>",
    "line\nbreak\n\n",
    "naïve 你好 🎉",
    "x" * 30,
]
CORPUS = ["hello world, this is a small corpus of words", "two spaces and a line break", "the words of the world"] * 20


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """vocab.json and merges.txt, trained on a few words."""
    folder = tmp_path_factory.mktemp("byte_level")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save_model(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_a_vocabulary_and_merges_are_read_as_transformers_does(byte_level, tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    for file in byte_level.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    size = len(json.loads((tmp_path / "vocab.json").read_text()))
    values = {
        "tokenizer_class": kind,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
        "added_tokens_decoder": {
            str(size): {"content": "<|t|>", "special": True},
            str(size + 1): {"content": "<|pad|>", "special": True},
            str(size + 2): {"content": "world,", "special": False},
        },
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    ours = tokenizer_from_folder(tmp_path)
    for text in [*TEXTS, *CORPUS[:3]]:
        assert ours.encode(text) == theirs.encode(text), repr(text)
        assert ours.decode(ours.encode(text), skip_special=False) == text
    assert ours.settings.special_tokens["pad_token"] == "<|pad|>"
    assert ours.stop_ids == (0,)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pieces(request, tmp_path_factory):
    """A tokenizer.model, trained on a few words, and SentencePiece's own reading of it."""
    spm = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    options = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    spm.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), model_type=request.param,
        vocab_size=340, hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    return folder, spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_a_model_of_sentencepiece_is_read_as_by_itself(pieces):
    folder, theirs = pieces
    ours = Tokenizer(backend_of(folder / "tokenizer.model"))
    for text in [*TEXTS, *CORPUS[:3]]:
        expected = theirs.encode(text)
        if text == "":
            expected = []
        assert ours.encode(text) == expected, repr(text)
        assert ours.decode(ours.encode(text)) == text


def test_bos_and_added_tokens_come_beside_a_model_of_sentencepiece(pieces, tmp_path):
    folder, theirs = pieces
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|t|>": theirs.get_piece_size()}))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    )
    ours = tokenizer_from_folder(tmp_path)
    added = theirs.get_piece_size()
    # As Llama's tokenizer in transformers, and llama.cpp: a text after an added token begins with a space again.
    assert ours.encode("hello<|t|>world") == [1, *theirs.encode("hello"), added, *theirs.encode("world")]
    assert ours.stop_ids == (2,)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    assert tokenizer_from_folder(tmp_path).encode("hello") == theirs.encode("hello")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|t|>": 7}))
    with pytest.raises(InputError, match=r"the added token '<\|t\|>' is \d+ after the others, and should be 7"):
        tokenizer_from_folder(tmp_path)


def test_what_continues_a_text_keeps_its_space(pieces):
    folder, theirs = pieces
    ours = Tokenizer(backend_of(folder / "tokenizer.model"))
    prompt, new = theirs.encode("hello"), theirs.encode("world")
    assert ours.decode(prompt) + ours.decode(new, continues=True) == ours.decode([*prompt, *new]) == "hello world"
    for continues, text in ((True, " world"), (False, "world")):
        decoder = StreamDecoder(ours, continues=continues)
        assert "".join(decoder.feed([id]) for id in new) + decoder.finish() == text


def test_no_tokenizer_is_none(tmp_path):
    assert tokenizer_from_folder(tmp_path) is None


@pytest.mark.parametrize(
    "damage", [b"", b"\x00", b"GGUF" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x03\x0a\x01a", b"\xff" * 50]
)
def test_a_damaged_model_of_sentencepiece_is_one_line(tmp_path, damage):
    (tmp_path / "tokenizer.model").write_bytes(damage)
    with pytest.raises(InputError, match=r"tokenizer.model: is damaged"):
        tokenizer_from_folder(tmp_path)


def test_a_decoder_that_is_not_known_is_refused_when_the_tokenizer_is_read(folder):
    built = json.loads((folder / "tokenizer.json").read_text())
    built["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps(built))
    with pytest.raises(InputError, match=r"tokenizer.json: decoder 'WordPiece' is not supported"):
        tokenizer_from_folder(folder)


@pytest.fixture
def folder(byte_level, tmp_path):
    """A folder with a small tokenizer.json, which a test damages."""
    built = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(byte_level / "vocab.json"), str(byte_level / "merges.txt"))
    )
    built.add_special_tokens(["<|endoftext|>"])
    built.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "eos_token_id", -5, "config.json: eos_token_id: must be the number of a token"),
        ("config.json", "eos_token_id", 1.5, "config.json: eos_token_id: must be the number of a token"),
        ("config.json", "eos_token_id", True, "config.json: eos_token_id: must be the number of a token"),
        ("config.json", "eos_token_id", "2", "config.json: eos_token_id: must be the number of a token"),
        ("config.json", "eos_token_id", [[2]], "config.json: eos_token_id: must be the number of a token"),
        ("config.json", "eos_token_id", 400, "config.json: eos_token_id: token 400 is not in the vocabulary"),
        ("generation_config.json", "eos_token_id", [0, 401], "token 401 is not in the vocabulary"),
        ("tokenizer_config.json", "chat_template", 3, "tokenizer_config.json: chat_template: must be a text"),
        ("tokenizer_config.json", "chat_template", [3], "chat_template: must be a list of names and templates"),
        ("tokenizer_config.json", "chat_template", [{"name": "x", "template": 3}], "must be a text"),
        ("tokenizer_config.json", "add_bos_token", "yes", "add_bos_token must be true or false"),
    ],
)
def test_fields_of_other_types_are_refused_by_name(folder, file, key, value, message):
    beside = {"bos_token": "<|endoftext|>"} if file == "tokenizer_config.json" else {}
    (folder / file).write_text(json.dumps({key: value, **beside}))
    with pytest.raises(InputError) as caught:
        tokenizer_from_folder(folder, 400)
    assert message in str(caught.value)


def test_templates_by_name(folder):
    settings = {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    ours, turn = tokenizer_from_folder(folder), [{"role": "user", "content": "x"}]
    assert ours.chat_text(turn) == "d"
    assert ours.chat_text(turn, tools=[{"name": "f"}]) == "t"
    assert ours.chat_text(turn, chat_template="rag") == "r"
    (folder / "chat_template.jinja").write_text("{{ pad_token }}{{ enable_thinking }}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    assert tokenizer_from_folder(folder).chat_text(turn, enable_thinking=False) == "<pad>False"


ENDS = {
    "gpt-oss": (["<|end|>", "<|return|>", "<|call|>"], ["<|return|>", "<|call|>"], ["<|return|>", "<|call|>"]),
    "phi-3": (["<|end|>", "<|endoftext|>"], ["<|endoftext|>"], ["<|endoftext|>", "<|end|>"]),
    "phi-3 that says so": (["<|end|>", "<|endoftext|>"], ["<|endoftext|>", "<|end|>"], ["<|endoftext|>", "<|end|>"]),
    "llama 3 instruct": (["<|end_of_text|>", "<|eot_id|>"], ["<|end_of_text|>"], ["<|end_of_text|>", "<|eot_id|>"]),
    "chatml over a base model": (["<|im_end|>", "</s>"], ["</s>"], ["<|im_end|>", "</s>"]),
    "an end of its own": (["<|fin|>", "<|end|>", "<|im_end|>"], ["<|fin|>", "<|im_end|>"], ["<|fin|>", "<|im_end|>"]),
    "html": (["</s>", "<eos>"], ["<eos>"], ["<eos>"]),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_text(name):
    there, declared, expected = ENDS[name]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    backend.add_special_tokens(there)
    ids = tuple(backend.token_to_id(text) for text in declared)
    stops = Tokenizer(backend, TokenizerSettings(eos_ids=ids)).stop_ids
    assert sorted(backend.id_to_token(id) for id in stops) == sorted(expected)


def test_half_a_character_is_refused_everywhere(folder):
    ours = tokenizer_from_folder(folder)
    with pytest.raises(InputError, match="the text holds half a character"):
        ours.encode("a\ud800")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(InputError, match="the chat holds half a character"):
        tokenizer_from_folder(folder).chat([{"role": "user", "content": "\udfff"}])
    with pytest.raises(InputError, match="must be a text"):
        ours.encode(3)
    for id in ("1", 1.5, None, -1):
        with pytest.raises(InputError):
            ours.decode([id])
    assert ours.decode([10**9, 2**40]) == ""


def test_numbers_of_tokens():
    assert checked_ids(None, "x") == ()
    assert checked_ids([3, 1, 3], "x", 4) == (3, 1)
    with pytest.raises(InputError, match="x: token 4 is not in the vocabulary: it goes from 0 to 3"):
        checked_ids(4, "x", 4)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["bos_token", "eos_token", "pad_token", "add_bos_token", "chat_template", "added_tokens_decoder", "legacy"]
KEYS += ["additional_special_tokens", "tokenizer_class", "eos_token_id", "add_prefix_space"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_settings_and_any_tokenizer_load_or_are_refused(byte_level, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((byte_level / name).read_bytes())
    for name in ("tokenizer_config.json", "generation_config.json"):
        (folder / name).write_text(json.dumps(data.draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))))
    if data.draw(st.booleans()):
        built = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
        keys = ["normalizer", "pre_tokenizer", "decoder", "post_processor", "model", "added_tokens", "truncation"]
        built[data.draw(st.sampled_from(keys))] = data.draw(VALUES | st.just({"type": "BPE", "vocab": {"a": 2**33}}))
        (folder / "tokenizer.json").write_text(json.dumps(built))
    try:
        loaded = tokenizer_from_folder(folder, 1000)
        said = f"{loaded.encode('a b')}{loaded.stop_ids}"
    except InputError as error:
        said = str(error)
    assert said
    assert len(said) < 700


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("trims", [True, False])
def test_normalized_texts_and_user_defined_pieces_are_those_of_sentencepiece(tmp_path, kind, trims):
    spm = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("\n".join([*CORPUS, "ﬁne café ½ 123"] * 2))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "tokenizer"), model_type=kind, vocab_size=90,
        hard_vocab_limit=False, minloglevel=2, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=trims,
        add_dummy_prefix=trims, user_defined_symbols=["<|t|>", "wor"],
    )  # fmt: skip
    theirs = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours, rng = Tokenizer(backend_of(tmp_path / "tokenizer.model")), random.Random(0)
    jumbles = ["".join(rng.choices("abc helo wrd  \n\t01.é你🎉½ﬁ<|t>\u3000\u00a0", k=25)) for _ in range(100)]
    for text in [*TEXTS[1:], *jumbles, "<|t|>world<|t|><|t|> wor"]:
        assert ours.encode(text) == theirs.encode(text), repr(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_ids": [-5]}, "settings.json: eos_ids: must be the number of a token"),
        ({"eos_ids": [True]}, "settings.json: eos_ids: must be the number of a token"),
        ({"eos_ids": {"a": 1}}, "settings.json: eos_ids: must be the number of a token"),
        ({"eos_ids": [400]}, "settings.json: eos_ids: token 400 is not in the vocabulary: it goes from 0 to 399"),
        ({"bos_id": "1"}, "settings.json: bos_id: must be the number of a token"),
        ({"bos_id": [1]}, "settings.json: bos_id: must be the number of one token"),
        ({"chat_template": 5}, "settings.json: the chat template: must be a text"),
        ({"named_templates": [1]}, "settings.json: the chat templates: must be an object"),
        ({"named_templates": {"a": 1}}, "settings.json: the chat template 'a': must be a text"),
        ({"eos_id": 1}, "settings.json: has no key 'eos_id'; it takes bos_id, eos_ids"),
    ],
)
def test_settings_of_orbax_folders_are_checked(values, message):
    with pytest.raises(InputError) as caught:
        TokenizerSettings.of(values, "settings.json", 400)
    assert message in str(caught.value)
    assert TokenizerSettings.of({"bos_id": None, "eos_ids": [2, 2], "chat_template": None}, "x", 400).eos_ids == (2,)


def test_a_tokenizer_that_cuts_and_pads_texts_does_neither_here(folder):
    ours = tokenizer_from_folder(folder)
    ours.backend.enable_truncation(2)
    ours.backend.enable_padding(length=9)
    ours.backend.save(str(folder / "tokenizer.json"))
    theirs = pytest.importorskip("transformers").PreTrainedTokenizerFast.from_pretrained(folder)
    for text in TEXTS:
        assert tokenizer_from_folder(folder).encode(text) == theirs(text)["input_ids"]
    assert len(tokenizer_from_folder(folder).encode("hello world")) > 2

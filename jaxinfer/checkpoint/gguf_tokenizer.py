"""Builds a tokenizer from a GGUF file's metadata.

Two kinds: `gpt2`, byte-level BPE whose pre-tokenizer `tokenizer.ggml.pre` names, and `llama`, SentencePiece BPE whose
merges follow from the scores. Building takes seconds; the result is kept in the cache folder.
"""

import contextlib
from pathlib import Path
from typing import Any

from jaxinfer.caching import cache_dir, write_atomic
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.gguf_header import Header
from jaxinfer.checkpoint.imports import require
from jaxinfer.checkpoint.tokenizer import Tokenizer, TokenizerSettings
from jaxinfer.errors import InputError, nearest

_VERSION = 1  # of what is built; part of the cached file's name
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type

# Where llama.cpp splits text before merging (src/llama-vocab.cpp): each pattern splits what the former left.
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3_WORDS = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT4O_SUFFIX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
_GPT4O_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_GPT4O_SUFFIX}|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_GPT4O_SUFFIX}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_LETTERS = (  # letters with case, of most scripts
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛ"
    "ὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ"
    "Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_EAST_ASIAN = "[一-龥\u0800-一가-\ud7ff]+"
PRE_TOKENIZERS = {
    "gpt-2": (_GPT2_WORDS,),
    "mpt": (_GPT2_WORDS,),  # GPT-NeoX's vocabulary: also of MPT and Mamba
    "olmo": (_GPT2_WORDS,),  # GPT-NeoX's vocabulary as Pythia and StableLM 3B have it
    "smollm": (r"\p{N}", _GPT2_WORDS),
    "refact": (r"\p{N}", _GPT2_WORDS),  # Granite
    "llama-bpe": (_LLAMA3_WORDS,),
    "dbrx": (_LLAMA3_WORDS,),  # OLMo 2
    "qwen2": (_QWEN2_WORDS,),
    "stablelm2": (_QWEN2_WORDS,),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2_WORDS, "[0-9][0-9][0-9]"),
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
    "gpt-4o": (_GPT4O_WORDS,),  # gpt-oss
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_DEEPSEEK_LETTERS}]+",
        r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
        r"\s+$",
        _DEEPSEEK_EAST_ASIAN,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_EAST_ASIAN, r"\p{N}"),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3_WORDS),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
}
_WHOLE_WORDS_FIRST = {"llama-bpe"}  # a word that is a token is not merged from its letters


def tokenizer_from_gguf(header: Header) -> Tokenizer | None:
    """The tokenizer that a GGUF file describes; None if it describes none.

    Raises InputError for a kind of tokenizer, or a pre-tokenizer, that is not supported.
    """
    fields = Fields(str(header.path), header.metadata, prefix="tokenizer.ggml.")
    kind = fields.text("model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in _BUILDERS:
        raise InputError(f"{header.path}: tokenizer {kind!r} is not supported; supported: {', '.join(_BUILDERS)}")
    require("tokenizers", "to turn text into tokens")
    ends = (fields.token_id(f"{name}_token_id") for name in ("eos", "eot", "eom"))
    settings = TokenizerSettings(
        bos_id=fields.token_id("bos_token_id"),
        eos_ids=tuple(dict.fromkeys(id for id in ends if id is not None)),
        chat_template=header.metadata.get("tokenizer.chat_template"),
    )
    return Tokenizer(_cached(header, fields, kind), settings)


def _cached(header: Header, fields: Fields, kind: str) -> Any:
    from tokenizers import Tokenizer as Backend

    folder = cache_dir()
    if folder is None:
        return _build(header, fields, kind)
    path: Path = folder / "tokenizers" / f"{header.fingerprint()}-{_VERSION}.json"
    with contextlib.suppress(Exception):  # none yet, or damaged: tokenizers raises bare Exception
        return Backend.from_file(str(path))
    backend = _build(header, fields, kind)
    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to fail
        write_atomic(path, backend.to_str())
    return backend


def _build(header: Header, fields: Fields, kind: str) -> Any:
    try:
        return _BUILDERS[kind](header, fields)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{header.path}: the tokenizer in the metadata does not fit together: {error}") from None


def _byte_level(header: Header, fields: Fields) -> Any:
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    pre = fields.text("pre", "default")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise InputError(
            f"{header.path}: pre-tokenizer {pre!r} is not supported; supported: {known}{nearest(pre, PRE_TOKENIZERS)}"
        )
    tokens = _array(header, "tokens")
    vocab = {token: id for id, token in enumerate(tokens)}
    merges = [tuple(pair.split(" ", 1)) for pair in _array(header, "merges")]
    backend = Backend(models.BPE(vocab, merges, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre]]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return _finish(backend, header, fields, tokens)


def _sentencepiece(header: Header, fields: Fields) -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    tokens, scores = _array(header, "tokens"), _array(header, "scores")
    kinds = _array(header, "token_type")
    vocab = {token: id for id, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    whole = {token for token, kind in zip(tokens, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)}
    merges = _merges_of_scores(vocab, scores, whole)
    backend = Backend(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    add_space = fields.flag("add_space_prefix", True)
    prefix = [normalizers.Prepend("▁")] if add_space else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if add_space else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return _finish(backend, header, fields, tokens)


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _merges_of_scores(vocab: dict[str, int], scores: list[float], whole: set[str]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece model: every way to make a token from two others, best score of the result first.

    Tokens in `whole` are matched in the text as they stand, and never merged from pieces.
    """
    merges = []
    for token, id in vocab.items():
        if token in whole:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab and left not in whole and right not in whole:
                merges.append((-scores[id], id, vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _finish(backend: Any, header: Header, fields: Fields, tokens: list[str]) -> Any:
    """Add what both kinds share: tokens that are matched as they stand, and BOS."""
    from tokenizers import AddedToken, processors

    kinds = _array(header, "token_type") if "tokenizer.ggml.token_type" in header.metadata else [1] * len(tokens)
    pairs = list(zip(tokens, kinds, strict=True))
    backend.add_special_tokens([AddedToken(token, normalized=False) for token, kind in pairs if kind == _CONTROL])
    # Normalized: SentencePiece looks for them after it has replaced the spaces, several spaces among them.
    backend.add_tokens([AddedToken(token, normalized=True) for token, kind in pairs if kind == _USER_DEFINED])
    bos = fields.token_id("bos_token_id")
    if bos is not None and fields.flag("add_bos_token", fields.text("model") == "llama"):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A $B", special_tokens=[(tokens[bos], bos)]
        )
    return backend


def _array(header: Header, name: str) -> list:
    key = f"tokenizer.ggml.{name}"
    if key not in header.metadata:
        raise InputError(f"{header.path}: field {key!r} is missing, and this tokenizer needs it")
    return header.array(key)

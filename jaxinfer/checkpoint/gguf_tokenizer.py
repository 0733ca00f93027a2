"""Builds a tokenizer from a GGUF file's metadata.

Two kinds: `gpt2`, byte-level BPE whose pre-tokenizer `tokenizer.ggml.pre` names, and `llama`, SentencePiece BPE whose
merges follow from the scores. Building takes seconds; the result is kept in the cache folder.
"""

import contextlib
from pathlib import Path
from typing import Any

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.gguf_header import Header
from jaxinfer.checkpoint.pre_tokenizers import ADD_BOS, PRE_TOKENIZERS, WHOLE_WORDS_FIRST
from jaxinfer.checkpoint.tokenizer import Tokenizer, TokenizerSettings, checked_ids
from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.host.files import cache_dir, write_atomic
from jaxinfer.host.optional import require

_VERSION = 2  # of what is built; part of the cached file's name
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type

SPACE = "▁"  # how SentencePiece writes one


def tokenizer_from_gguf(header: Header) -> Tokenizer | None:
    """Return the tokenizer that a GGUF file describes; None if it describes none.

    Raises InputError for a kind of tokenizer, or a pre-tokenizer, that is not supported.
    """
    fields = Fields(str(header.path), header.metadata, prefix="tokenizer.ggml.")
    kind = fields.text("model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in _BUILDERS:
        raise InputError(f"{header.path}: tokenizer {kind!r} is not supported; supported: {', '.join(_BUILDERS)}")
    require("tokenizers", "to turn text into tokens")
    size = len(_array(header, "tokens"))
    ids = {
        name: checked_ids(
            header.metadata.get(f"tokenizer.ggml.{name}_token_id"),
            f"{header.path}: tokenizer.ggml.{name}_token_id",
            size,
        )
        for name in ("bos", "eos", "eot", "eom")
    }
    settings = TokenizerSettings(
        bos_id=_bos(header, fields),
        eos_ids=tuple(dict.fromkeys(id for name in ("eos", "eot", "eom") for id in ids[name])),
        chat_template=header.metadata.get("tokenizer.chat_template"),
    )
    return Tokenizer(_cached(header, fields, kind), settings)


def _bos(header: Header, fields: Fields) -> int | None:
    """Find the token that begins a text. SentencePiece files that do not say have <s> in place 1, as in llama.cpp."""
    bos = fields.token_id("bos_token_id")
    if bos is not None or fields.text("model") != "llama":
        return bos
    kinds = header.array("tokenizer.ggml.token_type") if "tokenizer.ggml.token_type" in header.metadata else []
    return 1 if len(kinds) > 1 and kinds[1] == _CONTROL else None


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
        hint = nearest(pre, PRE_TOKENIZERS) or f"; supported: {', '.join(sorted(PRE_TOKENIZERS))}"
        raise InputError(f"{header.path}: tokenizer.ggml.pre: pre-tokenizer {shown(pre)} is not known{hint}")
    tokens = _array(header, "tokens")
    vocab = {token: id for id, token in enumerate(tokens)}
    merges = [tuple(pair.split(" ", 1)) for pair in _array(header, "merges")]
    backend = Backend(models.BPE(vocab, merges, ignore_merges=pre in WHOLE_WORDS_FIRST))
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
    whole = {token for token, kind in zip(tokens, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)}
    whole |= {token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED and SPACE not in token}
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
    """List the merges of a SentencePiece model: every way to make a token from two others, best resulting score first.

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
    special = [token for token, kind in pairs if kind in (_CONTROL, _UNKNOWN)]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    # Those of a user's are looked for in the text as it stands, before SentencePiece puts a space in front of it and of
    # what follows each. In no such text is a space written as it is in the vocabulary: those that have one are merged.
    own = [token for token, kind in pairs if kind == _USER_DEFINED and SPACE not in token]
    backend.add_tokens([AddedToken(token, normalized=False) for token in own])
    bos, model = _bos(header, fields), fields.text("model")
    usual = model == "llama" or (model == "gpt2" and fields.text("pre", "default") in ADD_BOS)
    if bos is not None and fields.flag("add_bos_token", usual):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A $B", special_tokens=[(tokens[bos], bos)]
        )
    return backend


def _array(header: Header, name: str) -> list:
    key = f"tokenizer.ggml.{name}"
    if key not in header.metadata:
        raise InputError(f"{header.path}: field {key!r} is missing, and this tokenizer needs it")
    return header.array(key)

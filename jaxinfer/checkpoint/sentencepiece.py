"""SentencePiece's own files, tokenizer.model, as a `tokenizers.Tokenizer` (Kudo and Richardson 2018).

The file is a message of Protocol Buffers (sentencepiece_model.proto); of its fields these are read: the pieces, their
scores and kinds, whether they are merged (BPE) or chosen by probability (Unigram), and how texts are normalized.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError
from jaxinfer.host.files import read_bytes, shown_error

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2


@dataclass(frozen=True)
class Model:
    """Holds what a tokenizer.model says."""

    pieces: tuple[tuple[str, float, int], ...]  # text, score, kind
    kind: int
    byte_fallback: bool
    charsmap: bytes
    dummy_prefix: bool  # a space is put before the text
    trim_spaces: bool  # spaces at the ends are dropped, and of several in a row all but one

    def ids(self, kind: int) -> list[int]:
        """Return the pieces of a kind, by number."""
        return [id for id, piece in enumerate(self.pieces) if piece[2] == kind]


def read_model(file: Path) -> Model:
    """Read a tokenizer.model. Raises InputError if it is none, is damaged, or splits texts in another way."""
    data = memoryview(read_bytes(file))
    try:
        top = list(_fields(data))
        pieces = tuple(_piece(value) for number, value in top if number == 1)
        trainer = dict(_fields(next((value for number, value in top if number == 2), memoryview(b""))))
        normalizer = dict(_fields(next((value for number, value in top if number == 3), memoryview(b""))))
        model = Model(
            pieces,
            int(trainer.get(3, _UNIGRAM)),
            bool(trainer.get(35, False)),
            bytes(normalizer.get(2, b"")),
            bool(normalizer.get(3, True)),
            bool(normalizer.get(4, True)),
        )
        suffix = bool(trainer.get(24, False))
    except (IndexError, ValueError, TypeError, struct.error, UnicodeDecodeError):
        raise InputError(f"{file}: is damaged, or not a file of SentencePiece") from None
    if not pieces or len(model.ids(_UNKNOWN)) != 1:
        raise InputError(f"{file}: is damaged: it has {len(pieces)} pieces, {len(model.ids(_UNKNOWN))} for the unknown")
    if model.kind not in (_UNIGRAM, _BPE) or suffix:
        raise InputError(f"{file}: only BPE and Unigram are supported, with spaces before words")
    return model


def backend_of(file: Path, legacy: bool = True) -> Any:
    """Make a `tokenizers.Tokenizer` that does what a tokenizer.model says.

    legacy: a text goes on after an added token as if it began there, with a space before it, as transformers does
    unless tokenizer_config.json says otherwise.
    """
    model = read_model(file)
    try:
        return _built(model, legacy)
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{file}: the pieces do not fit together: {shown_error(error)}") from None


def _built(model: Model, legacy: bool) -> Any:
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    texts = [text for text, _, _ in model.pieces]
    (unknown,) = model.ids(_UNKNOWN)
    whole = [texts[id] for id in model.ids(_USER_DEFINED)]
    if model.kind == _BPE:
        vocab = {text: id for id, text in enumerate(texts)}
        merges = _merges(model)
        fallback = {"fuse_unk": True, "byte_fallback": model.byte_fallback, "ignore_merges": bool(whole)}
        backend = Backend(models.BPE(vocab, merges, unk_token=texts[unknown], **fallback))
    else:
        scores = [(text, score) for text, score, _ in model.pieces]
        backend = Backend(models.Unigram(scores, unk_id=unknown, byte_fallback=model.byte_fallback))
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.trim_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    first: list[Any] = []
    if model.dummy_prefix and legacy:
        steps.append(normalizers.Prepend("▁"))
    elif model.dummy_prefix:
        first.append(pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    if whole:
        pattern = "|".join(re.escape(text) for text in sorted(whole, key=len, reverse=True))
        first.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if first:
        backend.pre_tokenizer = pre_tokenizers.Sequence(first)
    strip = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.add_special_tokens([AddedToken(texts[id], normalized=False) for id in model.ids(_CONTROL)])
    return backend


def _merges(model: Model) -> list[tuple[str, str]]:
    """List every way to make a piece from two others, best score of the result first."""
    scores = {text: (score, id) for id, (text, score, kind) in enumerate(model.pieces) if kind == _NORMAL}
    found = []
    for text, (score, id) in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                found.append((-score, id, scores[left][1], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _piece(data: memoryview) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    return bytes(fields[1]).decode("utf-8"), score, int(fields.get(3, _NORMAL))


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Read a message's fields: number, and a whole number or bytes. Raises IndexError or ValueError if it is none."""
    if not isinstance(data, memoryview):
        raise ValueError("a number where a message belongs")
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _number(data, at)
        if size is None or at + size > len(data):
            raise ValueError("a field that ends after the file")
        yield key >> 3, data[at : at + size]
        at += size


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """Read a number of variable length, seven bits a byte, and where the next field is."""
    value = 0
    for place in range(10):
        byte = data[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise ValueError("a number of more than ten bytes")

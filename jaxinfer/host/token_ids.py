"""Token ids and texts as callers give them. Anything else is refused, and never rounded or guessed at."""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from jaxinfer.errors import InputError, shown
from jaxinfer.host.values import MOST, whole

_NO_IDS = (str, bytes, bytearray, memoryview, Mapping, Set)  # can be gone through, and hold no ids in order


def token_ids(value: Any, name: str, vocab_size: int = MOST) -> list[int]:
    """Turn a list, tuple, range or array of token ids into a list of ints.

    Raises InputError for what is none (floats, bools, texts, nested lists), and for an id out of the vocabulary.
    """
    wrong = InputError(f"{name}={shown(value)} must be a list of token ids")
    if isinstance(value, _NO_IDS):
        raise wrong
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise wrong
        ids = array.tolist()
    else:
        try:
            ids = list(value)
        except TypeError:
            raise wrong from None
        if not all(type(x) is int for x in ids):
            try:
                ids = [whole(x, name, most=None) for x in ids]
            except InputError:
                raise InputError(f"{name} holds what is no token id: {shown(value)} must be whole numbers") from None
    for wrong_id in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= wrong_id < vocab_size:
            raise InputError(f"{name} holds token id {shown(wrong_id)}: ids go from 0 to {vocab_size - 1}")
    return ids


def batch_of(tokens: Any, vocab_size: int, most: int | None = None) -> np.ndarray:
    """Return tokens as int32[B, T], T at most `most` if given. Raises InputError if they are not that, or empty."""
    what = "give int[B, T] with at least one token"
    if hasattr(tokens, "dtype") and hasattr(tokens, "shape"):
        if len(tokens.shape) != 2 or not np.asarray(tokens).size:
            raise InputError(f"tokens has shape {tuple(tokens.shape)}: {what}")
        rows = list(np.asarray(tokens))
    elif isinstance(tokens, (list, tuple)):
        rows = list(tokens)
    else:
        raise InputError(f"tokens={shown(tokens)}: {what}")
    ids = [token_ids(row, "tokens" if len(rows) == 1 else f"tokens: row {i}", vocab_size) for i, row in enumerate(rows)]
    lengths = {len(row) for row in ids}
    if len(lengths) != 1 or not ids[0]:
        raise InputError(f"tokens has rows of {', '.join(map(str, sorted(lengths)))} ids: {what}" if ids else what)
    if most is not None and len(ids[0]) > most:
        raise InputError(f"tokens has rows of {len(ids[0])} ids, and the context is {most} tokens")
    return np.array(ids, np.int32)


def checked_text(text: str, name: str) -> str:
    """Return the text. Raises InputError if it holds half a character, which is no text in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = shown(text[error.start])
        raise InputError(f"{name} holds half a character (a lone surrogate), {half}, at place {error.start}") from None
    return text

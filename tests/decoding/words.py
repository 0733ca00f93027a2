"""A vocabulary small enough to try every token of, and the slow way to constrain: match what is written so far."""

import functools
from dataclasses import dataclass

import numpy as np
import regex

PIECES = (b"0", b"1", b"2", b"12", b"20", b"-", b"-1", b"a", b"b", b"c", b"ab", b"bca", b"ca", b" a", b", ", b" ", b",")
PIECES += ("é".encode(), b"\xc3", b"\xa9", b"\xa9a", b"b\xc3", b"x", b"\n", b"", b"", b"a")  # two that have no text


@dataclass(frozen=True, eq=False)
class Words:
    """A tokenizer of `size` tokens: PIECES, then an end, then text that no test asks for."""

    size: int = 97
    pieces: tuple[bytes, ...] = PIECES
    strips_first_space: bool = False

    @property
    def stop_ids(self):
        return (len(self.pieces),)

    @property
    def vocabulary(self):
        rest = [f"<{i}>".encode() for i in range(len(self.pieces) + 1, self.size)]
        return [*self.pieces, b"", *rest]

    def text(self, ids):
        return b"".join(self.vocabulary[id] for id in ids)

    def token_bytes(self, id, skip_special=True):
        return self.vocabulary[id]

    def decode(self, ids):
        return self.text(ids).decode("utf-8", "replace")


WORDS = Words()
LIST = r"((a|b|c){1,3}( a|, )){4,9}[0-2]{2,4}(-1(é)?)*"
DATE = r"(0|1|2){4}(-[0-2]{2}){2}"
PATTERNS = (LIST, DATE, r"(ab|ca|é)*", r"(0|[12][0-2]*)(-1)?(, [0-2]+)*", "x?( a)+b|x|x-1")


@functools.cache
def slow_allowed(words, pattern, ids):
    """bool[V]: which tokens may follow these ids: those with which the text can still grow into a match."""
    expression = regex.compile(pattern.encode())  # over bytes: a non-ASCII character only by itself or in brackets
    allowed = np.zeros(words.size, bool)
    for id, piece in enumerate(words.pieces):  # no pattern of these tests has what follows them
        if piece:
            allowed[id] = expression.fullmatch(words.text([*ids, id]), partial=True) is not None
    allowed[list(words.stop_ids)] = expression.fullmatch(words.text(ids)) is not None
    return allowed

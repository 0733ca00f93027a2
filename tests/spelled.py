"""A tokenizer of a few pieces, some of them parts of characters, some special tokens: for texts and their ends."""

from dataclasses import dataclass

PIECES = [b"a", b"b", b"ab", b" a", b"ba ", b"", b"\xc3", b"\xa9", b"\xc3\xa9", b"<|x|>", b"<", b"|x|>", b"\n", b"\xff"]
SPECIAL = {5: b"<|x|>", 12: b"<end>"}


@dataclass(frozen=True)
class Spelled:
    """A tokenizer of `size` tokens: PIECES again and again, of which SPECIAL are special tokens; 12 ends a text."""

    size: int = 97
    stop_ids: tuple[int, ...] = (12,)
    strips_first_space: bool = False

    def token_bytes(self, id, skip_special=True):
        if id in SPECIAL:
            return b"" if skip_special else SPECIAL[id]
        return PIECES[id % len(PIECES)]

    def decode(self, ids, skip_special=True, **_):
        return b"".join(self.token_bytes(id, skip_special) for id in ids).decode("utf-8", "replace")

    def encode(self, text):
        return list(text.encode())

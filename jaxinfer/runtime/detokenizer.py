"""Ends texts before their tokens do: at a stop string, looked for as the tokens come.

A stop string is found in the text as it is read, without special tokens, and in the text with them: one that is a
special token, or has one in it, is found too; one that is a part of a special token's name is not found in it. All is
done on bytes, for a token may hold part of a character.
"""

import codecs
from collections.abc import Collection, Iterable, Sequence
from typing import Any


class Text:
    """The text of one row. `feed` it tokens; once it has `ended`, at a stop string or token, it takes no more.

    skip: whether special tokens are left out. include: whether what the text ended at is its end; else it ends before.
    prompt: the tokens that it continues. After a prompt without text, the space that SentencePiece puts before a text
    is none of it.
    """

    def __init__(
        self,
        tokenizer: Any,
        stops: Sequence[str],
        stop_ids: Collection[int],
        skip: bool = True,
        include: bool = False,
        prompt: Sequence[int] = (),
    ):
        self._tokenizer, self._stop_ids, self._skip, self._include = tokenizer, stop_ids, skip, include
        self._stops = [stop.encode() for stop in stops]
        self._longest = max(map(len, self._stops), default=0)
        self._shown, self._read = bytearray(), bytearray()  # the text with special tokens, and as it is read
        self._starts: list[tuple[int, int]] = []  # of each token, in both
        self._hidden: list[tuple[int, int]] = []  # special tokens that are left out: start and end, in the first
        self._utf8, self._given = codecs.getincrementaldecoder("utf-8")("replace"), 0
        self.ended = False
        self._strips = tokenizer.strips_first_space and not any(map(tokenizer.token_bytes, prompt))

    @property
    def tokens(self) -> int:
        """Count the tokens that were taken; the last is the one that it ended at."""
        return len(self._starts)

    def feed(self, ids: Iterable[int]) -> bool:
        """Take tokens, up to the one at which the text ends. Returns whether it has ended."""
        for id in ids:
            if self.ended:
                break
            before = len(self._shown), len(self._read)
            self._starts.append(before)
            shown = self._tokenizer.token_bytes(id, False)
            read = self._tokenizer.token_bytes(id, True) if self._skip else shown
            if self._strips and read:
                shown, read, self._strips = shown.removeprefix(b" "), read.removeprefix(b" "), False
            self._shown += shown
            self._read += read
            if shown and not read:
                self._hidden.append((before[0], len(self._shown)))
            # Only what can begin a stop string is looked at again in what stood there before.
            low, low_read = (max(n - self._longest + 1, 0) for n in before)
            found = [(self._at_read(p), stop) for stop in self._stops if (p := self._find(stop, low)) >= 0]
            found += [(p, stop) for stop in self._stops if (p := self._read.find(stop, low_read)) >= 0]
            if not found and id in self._stop_ids:
                found = [(before[1], shown)]
            if found:
                end, stop = min(found, key=lambda one: (one[0], len(one[1])))
                del self._read[end:]
                self._read += stop if self._include else b""
                self.ended = True
        return self.ended

    def piece(self, last: bool = False) -> str:
        """Give what is new since the last piece, but for what may turn out to begin a stop string, unless `last`."""
        until = len(self._read)
        if not (self.ended or last) and self._stops:
            until = min(self._at_read(self._open(self._shown)), self._open(self._read))
        new, self._given = self._read[self._given : until], max(until, self._given)
        return self._utf8.decode(bytes(new), self.ended or last)

    def _find(self, stop: bytes, low: int) -> int:
        """Find a stop string in the text with special tokens, from a place on, none of which it may cut. -1: none."""
        place = self._shown.find(stop, low)
        while place >= 0 and self._cuts(place, place + len(stop)):
            place = self._shown.find(stop, place + 1)
        return place

    def _cuts(self, start: int, end: int) -> bool:
        """Tell whether start..end has one part of a special token that is left out, and not the other."""
        for first, last in reversed(self._hidden):
            if last <= start:
                break
            if first < end and not (start <= first and last <= end):
                return True
        return False

    def _open(self, text: bytearray) -> int:
        """Find where the longest ending begins that begins a stop string."""
        for place in range(max(len(text) - self._longest + 1, 0), len(text)):
            if any(stop.startswith(text[place:]) for stop in self._stops):
                return place
        return len(text)

    def _at_read(self, place: int) -> int:
        """Translate a place of the text with special tokens to the text as it is read."""
        end = len(self._read)
        for shown, read in reversed(self._starts):
            if shown <= place:
                return min(read + place - shown, end)
            end = read
        return 0

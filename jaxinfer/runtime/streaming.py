"""A text piece by piece, while it is generated."""

from collections.abc import Iterator

from jaxinfer.runtime.detokenizer import Text
from jaxinfer.runtime.generation import Generation
from jaxinfer.runtime.stats import Stats


class Stream:
    """Pieces of text as they are generated. `stats` and `tokens` hold what has been generated so far."""

    def __init__(self, text: Text, generation: Generation, steps_per_piece: int):
        self._text, self._generation = text, generation
        self._pieces = self._produce(steps_per_piece)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def tokens(self) -> list[int]:
        new = self._generation.rows()[0]
        return new[: self._text.tokens] if self._text.ended else new

    @property
    def stats(self) -> Stats:
        return self._generation.stats()

    def _produce(self, steps: int) -> Iterator[str]:
        fed = 0
        while not self._generation.done.all():
            self._generation.advance(steps)
            new = self._generation.rows()[0]
            if self._text.feed(new[fed:]):
                self._generation.finish(0)
            fed = len(new)
            if piece := self._text.piece():
                yield piece
        if rest := self._text.piece(last=True):
            yield rest

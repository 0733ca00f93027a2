"""A text piece by piece, while it is generated."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxinfer.generation import Generation
from jaxinfer.stats import Stats


class Stream:
    """Pieces of text as they are generated. `stats` and `tokens` hold what has been generated so far."""

    def __init__(self, tokenizer: Any, generation: Generation, stops: tuple[str, ...], steps_per_piece: int):
        self._tokenizer, self._generation, self._stops = tokenizer, generation, stops
        self._pieces = self._produce(steps_per_piece)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def tokens(self) -> list[int]:
        return self._generation.rows()[0]

    @property
    def stats(self) -> Stats:
        return self._generation.stats()

    def _produce(self, steps: int) -> Iterator[str]:
        from jaxinfer.checkpoint.tokenizer import StreamDecoder

        decoder, held, fed = StreamDecoder(self._tokenizer), "", 0
        while not self._generation.done.all():
            self._generation.advance(steps)
            new = self.tokens[fed:]
            fed += len(new)
            held += decoder.feed(new)
            if any(s in held for s in self._stops):
                self._generation.finish(0)
                yield before_stop(held, self._stops)
                return
            # What may be the beginning of a stop string waits for what follows.
            keep = max((n for s in self._stops for n in range(len(s)) if n and held.endswith(s[:n])), default=0)
            piece, held = held[: len(held) - keep], held[len(held) - keep :]
            if piece:
                yield piece
        if rest := held + decoder.finish():
            yield before_stop(rest, self._stops)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    return text[: min((text.find(s) for s in stops if s in text), default=len(text))]

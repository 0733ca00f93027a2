"""Text to tokens and back, and chats to tokens: one class around a `tokenizers.Tokenizer`, wherever it came from."""

import codecs
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxinfer.checkpoint.chat import render_chat
from jaxinfer.checkpoint.spelling import Spelling
from jaxinfer.errors import InputError

END_TOKENS = (  # ends of a turn or of the text, by the names that model families give them
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
)


@dataclass(frozen=True)
class TokenizerSettings:
    """What a tokenizer.json does not say."""

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # what the checkpoint itself declares
    chat_template: str | None = None


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's tokenizer.

    `backend` is a `tokenizers.Tokenizer`; its post-processor adds the BOS token if the model wants one.
    """

    backend: Any
    settings: TokenizerSettings = field(default_factory=TokenizerSettings)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, None if the tokenizer has none. `encode` may or may not add it."""
        return self.settings.bos_id

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation: those the checkpoint declares, and special tokens known by name."""
        named = {token.content: id for id, token in self._added.items() if token.special}
        return tuple(sorted({*self.settings.eos_ids, *(named[name] for name in END_TOKENS if name in named)}))

    @cached_property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included. The model's embedding may have more rows."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def vocabulary(self) -> list[bytes]:
        """What each token adds to a text, by id: `token_bytes` of all of them."""
        return [self.token_bytes(id) for id in range(self.vocab_size)]

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template."""
        return self.settings.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with BOS if the model wants one. Special tokens spelled out in the text are recognized."""
        return self.backend.encode(text).ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of tokens. Bytes that are no valid UTF-8 become U+FFFD."""
        text = b"".join(self.token_bytes(id, skip_special) for id in ids)
        if self.strips_first_space:
            text = text.removeprefix(b" ")
        return text.decode("utf-8", "replace")

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding drops a space at the very beginning, because encoding had put one there."""
        return self._spelling.strip_first_space

    def token_bytes(self, id: int, skip_special: bool = True) -> bytes:
        """What one token adds to the text; the whole text is these joined (less one leading space for some models).

        A token may hold part of a character. Rows that only pad the embedding have no text. Raises InputError for a
        negative number.
        """
        if id < 0:
            raise InputError(f"token {id} is negative")
        added = self._added.get(id)
        if added is not None and added.special:
            return b"" if skip_special else added.content.encode()
        token = self.backend.id_to_token(id)
        return b"" if token is None else self._spelling.to_bytes(token)

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of a chat: the template applied, with the prompt for the assistant's turn. BOS only if it is in it.

        `messages` are `{"role": ..., "content": ...}`. Raises InputError if there is no template, or it refuses.
        """
        if self.settings.chat_template is None:
            raise InputError("this model has no chat template; use a plain prompt")
        specials = {"bos_token": self.settings.bos_id, "eos_token": next(iter(self.settings.eos_ids), None)}
        words = {name: "" if id is None else self.backend.id_to_token(id) for name, id in specials.items()}
        text = render_chat(self.settings.chat_template, messages, **words)
        return self.backend.encode(text, add_special_tokens=False).ids

    @cached_property
    def _added(self) -> dict[int, Any]:
        return self.backend.get_added_tokens_decoder()

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling.of(json.loads(self.backend.decoder.__getstate__()) if self.backend.decoder else None)


class StreamDecoder:
    """Text from tokens as they come: the pieces, joined, are `tokenizer.decode` of all of them.

    An incomplete UTF-8 character is held back until its last byte arrives. The cost of a token does not depend on how
    many came before.

        decoder = StreamDecoder(tokenizer)
        for id in tokens:
            print(decoder.feed([id]), end="")
        print(decoder.finish())
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_first_space

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete, perhaps none."""
        text = b"".join(self._tokenizer.token_bytes(id, self._skip_special) for id in ids)
        if self._strip and text:
            text, self._strip = text.removeprefix(b" "), False
        return self._utf8.decode(text)

    def finish(self) -> str:
        """What was held back, as U+FFFD: the tokens ended within a character."""
        return self._utf8.decode(b"", final=True)

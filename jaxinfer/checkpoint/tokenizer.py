"""Text to tokens and back, and chats to tokens: one class around a `tokenizers.Tokenizer`, wherever it came from."""

import codecs
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from jaxinfer.checkpoint.chat import render_chat
from jaxinfer.checkpoint.spelling import Spelling
from jaxinfer.errors import InputError, nearest, shown, shown_text
from jaxinfer.host.files import shown_error
from jaxinfer.host.token_ids import checked_text

MOST_TOKENS = 1 << 23  # of a vocabulary: every token of it is looked at

# Ends by the names that model families give them, as llama.cpp has them (src/llama-vocab.cpp).
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOS]", "<eos>", "<｜end▁of▁sentence｜>")
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<end_of_utterance>", "[EOT]")
CALL_ENDS = ("<|eom_id|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<|tool_response>")  # or of all turns
SECTION_END = "<|end|>"  # of a turn in Phi-3; of a part of a turn, such as the reasoning, in gpt-oss and Solar Open
_MARKUP_END = "</s>"  # of a text where it is declared; elsewhere a word of HTML, as in Gemma


@dataclass(frozen=True)
class TokenizerSettings:
    """Holds what a tokenizer.json does not say. Raises InputError for values of other types."""

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # what the checkpoint itself declares
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict)  # more of them, such as `tool_use`
    special_tokens: Mapping[str, Any] = field(default_factory=dict)  # what templates may name: pad_token and others

    def __post_init__(self) -> None:
        checked_ids(self.bos_id, "the tokenizer's bos_id")
        checked_ids(self.eos_ids, "the tokenizer's eos_ids")
        checked_template(self.chat_template, "the chat template")
        for name, template in _object(self.named_templates, "the chat templates").items():
            checked_template(template, f"the chat template {shown(name)}")
        _object(self.special_tokens, "the tokenizer's special tokens")

    @classmethod
    def of(cls, values: Mapping[str, Any], file: Any, vocab_size: int | None = None) -> "TokenizerSettings":
        """Read the JSON object of a file. Raises InputError, which names the file and the key, if it does not fit."""
        for name in values:
            if name not in (known := [one.name for one in fields(cls)]):
                raise InputError(f"{file}: has no key {shown(name)}; it takes {', '.join(known)}{nearest(name, known)}")
        for name in ("bos_id", "eos_ids"):
            checked_ids(values.get(name), f"{file}: {name}", vocab_size)
        if isinstance(values.get("bos_id"), list):
            raise InputError(f"{file}: bos_id: must be the number of one token, not {shown(values['bos_id'])}")
        try:
            return cls(**{**values, "eos_ids": checked_ids(values.get("eos_ids"), f"{file}: eos_ids")})
        except InputError as error:
            raise InputError(f"{file}: {error}") from None


def checked_ids(value: Any, where: str, vocab_size: int | None = None) -> tuple[int, ...]:
    """Return the numbers of tokens in a field that holds one, a list of them, or None: each once, in their order.

    Raises InputError, which begins with `where`, for anything else and for what is not below `vocab_size`.
    """
    ids = () if value is None else value if isinstance(value, list | tuple) else (value,)
    for id in ids:
        if isinstance(id, bool) or not isinstance(id, int) or id < 0:
            raise InputError(f"{where}: must be the number of a token or a list of such numbers, not {shown(value)}")
        if vocab_size is not None and id >= vocab_size:
            raise InputError(f"{where}: token {shown(id)} is not in the vocabulary: it goes from 0 to {vocab_size - 1}")
    return tuple(dict.fromkeys(ids))


def checked_template(value: Any, where: str) -> str | None:
    """Return a chat template, or None. Raises InputError, which begins with `where`, for anything else."""
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: must be a text (a Jinja template), not {shown(value)}")
    return value


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{where}: must be an object, a value for each name, not {shown(value)}")
    return value


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's tokenizer.

    `backend` is a `tokenizers.Tokenizer`; its post-processor adds the BOS token if the model wants one.
    """

    backend: Any
    settings: TokenizerSettings = field(default_factory=TokenizerSettings)

    @property
    def bos_id(self) -> int | None:
        """Return the token that begins a text, None if the tokenizer has none. `encode` may or may not add it."""
        return self.settings.bos_id

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Return the tokens that end a generation: those that the checkpoint declares, and those known by their name.

        Names are added to what is declared, because that is often too little: a GGUF file declares one end, folders
        of Llama 3 without a generation_config.json the end of a text and not that of a turn, and fine-tunes on ChatML
        keep the ends of their base model. (llama.cpp adds names too; transformers does not, and such models run on
        there.) One name says different things: `<|end|>` is an end where it is declared, or where nothing else is
        known to end a turn.
        """
        named = {name: id for name in (*TEXT_ENDS, *TURN_ENDS, *CALL_ENDS) if (id := self._id(name)) is not None}
        ends = {*self.settings.eos_ids, *named.values()}
        only_texts = ends <= {self._id(name) for name in (*TEXT_ENDS, _MARKUP_END)}
        if only_texts and (section := self._id(SECTION_END)) is not None:
            ends.add(section)
        return tuple(sorted(ends))

    @cached_property
    def vocab_size(self) -> int:
        """Return one more than the largest token, added ones included. The model's embedding may have more rows."""
        largest = max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= MOST_TOKENS:
            raise InputError(f"the tokenizer has a token {largest:,}, and only the first {MOST_TOKENS:,} are supported")
        return largest + 1

    @cached_property
    def vocabulary(self) -> list[bytes]:
        """Return what each token adds to a text, by id: `token_bytes` of all of them."""
        return [self.token_bytes(id) for id in range(self.vocab_size)]

    @property
    def has_chat(self) -> bool:
        """Tell whether there is a chat template."""
        return self.settings.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Encode a text, with BOS if the model wants one. Special tokens spelled out in the text are recognized.

        Raises InputError for what is no text: another type, or half a character (a lone surrogate).
        """
        return self._ids(text, "the text", add_special_tokens=True)

    def decode(self, ids: Iterable[int], skip_special: bool = True, continues: bool = False) -> str:
        """Decode tokens to text. Bytes that are no valid UTF-8 become U+FFFD. Raises InputError for what is no token.

        continues: the tokens come after others that have text, so a space at their beginning is one of the text. (At
        the beginning of a whole text, SentencePiece models have put it there.) So the text of a prompt and that of
        what continues it, joined, are the text of all their tokens.
        """
        text = b"".join(self.token_bytes(id, skip_special) for id in ids)
        if self.strips_first_space and not continues:
            text = text.removeprefix(b" ")
        return text.decode("utf-8", "replace")

    @property
    def strips_first_space(self) -> bool:
        """Tell whether decoding drops a space at the very beginning, because encoding had put one there."""
        return self._spelling.strip_first_space

    def token_bytes(self, id: int, skip_special: bool = True) -> bytes:
        """Return what one token adds to the text, which is these joined (less one leading space for some models).

        A token may hold part of a character. Rows that only pad the embedding have no text. Raises InputError for a
        negative number and for what is no whole number.
        """
        try:
            id = operator.index(id)
        except TypeError:
            raise InputError(f"token {shown(id)} is not a whole number") from None
        if id < 0:
            raise InputError(f"token {shown(id)} is negative")
        if id >= MOST_TOKENS:
            return b""
        if id in self._special:
            return b"" if skip_special else self._special[id].encode()
        token = self.backend.id_to_token(id)
        return b"" if token is None else self._spelling.to_bytes(token)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Encode a chat: `chat_text` of it, with its options. BOS comes only from the template."""
        return self._ids(self.chat_text(messages, **options), "the chat", add_special_tokens=False)

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """Return the text of a chat: the template applied, with the prompt for the assistant's turn at its end.

        messages: `{"role": ..., "content": ...}`, as `chat.render_chat` takes them. tools: JSON schemas of functions.
        add_generation_prompt: default True. continue_final_message: end within the last message, which the model then
        continues, and have no such prompt. chat_template: the name of one of several; default: `tool_use`, if there are
        tools and such a template. variables: what the template may ask for besides, such as enable_thinking.

        Raises InputError if there is no template, or it refuses, or messages and options are of other forms.
        """
        return render_chat(
            self._template(tools, chat_template),
            messages,
            tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **{**self._template_words(), **variables},
        )

    def _template(self, tools: Any, name: str | None) -> str:
        templates = dict(self.settings.named_templates)
        if self.settings.chat_template is not None:
            templates["default"] = self.settings.chat_template
        if not templates:
            raise InputError("this model has no chat template; use a plain prompt")
        name = name or ("tool_use" if tools is not None and "tool_use" in templates else "default")
        if name not in templates:
            known = ", ".join(shown_text(one) for one in templates)
            raise InputError(f"this model has no chat template {shown(name)}: it has {known}{nearest(name, templates)}")
        return templates[name]

    def _template_words(self) -> dict[str, Any]:
        """Return special tokens by the names that templates have for them; the first two, which all take, always."""
        ids = {"bos_token": self.settings.bos_id, "eos_token": next(iter(self.settings.eos_ids), None)}
        words = {name: "" if id is None else self._token(id) for name, id in ids.items()}
        return {**words, **self.settings.special_tokens}

    def _ids(self, text: Any, what: str, add_special_tokens: bool) -> list[int]:
        if not isinstance(text, str):
            raise InputError(f"{what} must be a text, not {shown(text)}")
        checked_text(text, what)
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # tokenizers raises bare Exception, as of a vocabulary without an unknown token
            raise InputError(f"this tokenizer cannot write {what}: {shown_error(error)}") from None

    def _id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def _token(self, id: int) -> str:
        return (self.backend.id_to_token(id) if id < MOST_TOKENS else None) or ""

    @cached_property
    def _special(self) -> dict[int, str]:
        """Return the tokens that are no part of what a model says: special ones, and ends marked as ordinary tokens."""
        return {id: token.content for id, token in self._added.items() if token.special or id in self.stop_ids}

    @cached_property
    def _added(self) -> dict[int, Any]:
        return self.backend.get_added_tokens_decoder()

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling.of(json.loads(self.backend.decoder.__getstate__()) if self.backend.decoder else None)


class StreamDecoder:
    """Text from tokens as they come: the pieces, joined, are `tokenizer.decode` of all of them.

    An incomplete UTF-8 character is held back until its last byte arrives. The cost of a token does not depend on how
    many came before. `continues`: see `Tokenizer.decode`.

        decoder = StreamDecoder(tokenizer)
        for id in tokens:
            print(decoder.feed([id]), end="")
        print(decoder.finish())
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, continues: bool = False):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_first_space and not continues

    def feed(self, ids: Iterable[int]) -> str:
        """Return the text that these tokens complete, perhaps none."""
        text = b"".join(self._tokenizer.token_bytes(id, self._skip_special) for id in ids)
        if self._strip and text:
            text, self._strip = text.removeprefix(b" "), False
        return self._utf8.decode(text)

    def finish(self) -> str:
        """Return what was held back, as U+FFFD: the tokens ended within a character."""
        return self._utf8.decode(b"", final=True)

"""Bytes as the printable tokens of a vocabulary, and the way back."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from jaxinfer.errors import InputError, shown


@dataclass(frozen=True)
class Spelling:
    """The way a vocabulary writes bytes: GPT-2's printable alphabet, or SentencePiece's pieces."""

    byte_level: bool = False  # every character stands for one byte (GPT-2)
    space: str = ""  # what stands for a space
    byte_tokens: bool = False  # <0x0A> stands for the byte 10
    strip_first_space: bool = False  # the text began with a space that encoding had put there

    @classmethod
    def of(cls, decoder: dict | None, file: str = "tokenizer.json") -> "Spelling":
        """Read it from the decoder in a tokenizer.json, `file`. Raises InputError for a kind that is not known."""
        spelling: dict[str, Any] = {}
        steps = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        for step in steps:
            match step:
                case {"type": "ByteLevel"}:
                    spelling["byte_level"] = True
                case {"type": "ByteFallback"}:
                    spelling["byte_tokens"] = True
                case {"type": "Replace", "pattern": {"String": space}, "content": " "}:
                    spelling["space"] = space
                case {"type": "Metaspace", "replacement": space}:
                    spelling |= {"space": space, "strip_first_space": step.get("prepend_scheme", "always") != "never"}
                case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                    spelling["strip_first_space"] = True
                case {"type": "Fuse"}:
                    pass
                case _:
                    raise InputError(f"{file}: decoder {shown(step.get('type'))} is not supported")
        return cls(**spelling)

    def to_bytes(self, token: str) -> bytes:
        if self.byte_level:
            alphabet = _byte_alphabet()
            known = all(character in alphabet for character in token)
            return bytes(alphabet[character] for character in token) if known else token.encode()
        if self.byte_tokens and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        return (token.replace(self.space, " ") if self.space else token).encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable character of each byte: itself where it prints, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}

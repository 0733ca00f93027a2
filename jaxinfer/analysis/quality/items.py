"""The items of tasks, read from .jsonl files: endings to choose from, and last words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host.files import parse_json, read_text
from jaxinfer.host.token_ids import checked_text

Item = TypeVar("Item")


@dataclass(frozen=True)
class Choice:
    """A context, the endings that it may have, and which of them is right, counted from 0 (HellaSwag)."""

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Word:
    """A context, and the word, or the words, that it goes on with (LAMBADA)."""

    context: str
    target: str


def read_choices(file: str, limit: int | None = None, name: str | None = None) -> list[Choice]:
    """Read lines {"context", "endings", "label"}. name: the key or option that named the file. Raises InputError."""
    return _read(file, _choice, limit, name)


def read_words(file: str, limit: int | None = None, name: str | None = None) -> list[Word]:
    """Read lines {"context", "target"}: see `read_choices`. Raises InputError."""
    return _read(file, _word, limit, name)


def read_task(file: str, limit: int | None = None, name: str | None = None) -> list[Choice] | list[Word]:
    """Read a file of either form, which its first line says. Raises InputError."""
    text = read_text(file, name)
    first = next((line for line in text.split("\n") if line.strip()), "")
    is_word = '"target"' in first
    return read_words(file, limit, name) if is_word else read_choices(file, limit, name)


def _read(file: str, make: Callable[[dict[str, Any], str], Item], limit: int | None, name: str | None) -> list[Item]:
    items: list[Item] = []
    where = f"{name}: {shown_text(str(file))}" if name else shown_text(str(file))
    for number, line in enumerate(read_text(file, name).split("\n"), start=1):
        if line.strip() and (limit is None or len(items) < limit):
            entry = parse_json(line, f"{where}:{number}")
            items.append(make(entry if isinstance(entry, dict) else {}, f"{where}:{number}"))
    if not items:
        raise InputError(f"{where}: holds no items")
    return items


def _choice(entry: dict[str, Any], where: str) -> Choice:
    endings, label = entry.get("endings"), entry.get("label")
    if "context" not in entry or not isinstance(endings, list) or len(endings) < 2:
        raise InputError(f'{where}: expected {{"context": text, "endings": [two or more], "label": number}}')
    texts = tuple(_text(ending, f"{where}: endings.{i}") for i, ending in enumerate(endings))
    if isinstance(label, str) and label.isdecimal() and len(label) < 9:  # as the data set itself has it
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(texts):
        raise InputError(f"{where}: label must be a whole number from 0 to {len(texts) - 1}, got {shown(label)}")
    return Choice(_text(entry["context"], f"{where}: context"), texts, label)


def _word(entry: dict[str, Any], where: str) -> Word:
    if "context" not in entry or "target" not in entry:
        raise InputError(f'{where}: expected {{"context": text, "target": text}}')
    return Word(_text(entry["context"], f"{where}: context"), _text(entry["target"], f"{where}: target"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} must be text, and not empty, got {shown(value)}")
    return checked_text(value, where)

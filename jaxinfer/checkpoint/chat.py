"""Chats as texts: messages, tools and variables checked and made plain, then rendered by the model's template."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.checkpoint import templates
from jaxinfer.errors import InputError, shown

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # where the text of the last message ends; with a space, which some templates trim
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names for the same in messages; templates know the first
_TAKES_PARTS = re.compile(r"""\bis (not )?(string|iterable|mapping|sequence)\b|\[['"]type['"]\]|\.type\b""")


def render_chat(
    template: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """Render the text of a chat as transformers does, with the prompt for the assistant's turn at its end.

    messages: `{"role": ..., "content": ...}`. content: a text, a list of parts `{"type": "text", "text": ...}`, or
    nothing, as beside `tool_calls`. tools: JSON schemas of functions. add_generation_prompt: None is True, unless
    continue_final_message, with which the text ends within the last message. variables: whatever the template asks for.

    Raises InputError if one of these is of another form, and if the template fails or refuses the chat.
    """
    chat = [_message(i, message, template) for i, message in enumerate(_listed(messages, "messages"))]
    prompted = not continue_final_message if add_generation_prompt is None else add_generation_prompt
    for name, value in (("add_generation_prompt", prompted), ("continue_final_message", continue_final_message)):
        if not isinstance(value, bool):
            raise InputError(f"{name}={shown(value)} must be True or False")
    if continue_final_message and prompted:
        raise InputError("continue_final_message ends within the last message: leave add_generation_prompt out")
    final = _tagged(chat) if continue_final_message else ""
    words = {
        **{name: _plain(value, name) for name, value in variables.items()},
        "tools": _objects(tools, "tools"),
        "documents": _objects(documents, "documents"),
        "messages": chat,
        "add_generation_prompt": prompted,
    }
    text = templates.render(template, words)
    return _ending_within(text, final) if continue_final_message else text


def _listed(values: Any, name: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise InputError(f"{name} must be a list, not {shown(values)}")
    return list(values)


def _objects(values: Any, name: str) -> list[dict[str, Any]] | None:
    if values is None:
        return None
    for value in _listed(values, name):
        if not isinstance(value, Mapping):
            raise InputError(f"{name} must be a list of mappings, such as JSON schemas, and holds {shown(value)}")
    return _plain(values, name)


def _message(place: int, message: Any, template: Any) -> dict[str, Any]:
    """Return a message as plain data, without what is None. Reasoning stands under the names that templates know."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f'message {place} must be {{"role": ..., "content": ...}}, not {shown(message)}')
    plain = {name: value for name, value in _plain(message, f"message {place}").items() if value is not None}
    content = plain.get("content", "")
    if isinstance(content, list):
        parts = [_part(place, part) for part in content]
        takes_parts = isinstance(template, str) and _TAKES_PARTS.search(template)
        plain["content"] = parts if takes_parts else "\n".join(part["text"] for part in parts)
    elif not isinstance(content, str):
        raise InputError(f"message {place}: content must be a text or a list of parts, not {shown(content)}")
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _part(place: int, part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part
    if isinstance(kind, str) and kind != "text":
        raise InputError(f"message {place}: parts of type {shown(kind)} are not supported: text alone is")
    raise InputError(f'message {place}: a part must be {{"type": "text", "text": ...}}, not {shown(part)}')


def _plain(value: Any, where: str) -> Any:
    """Return a copy made of dicts, lists, texts and numbers, so that a template can reach nothing else."""
    try:
        return _copied(value, where)
    except RecursionError:
        raise InputError(f"{where} is nested too deep") from None


def _copied(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {shown(key)}: keys must be texts")
        return {str(key): _copied(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item, where) for item in value]
    raise InputError(f"{where} holds {shown(value)}: give texts, numbers, lists and mappings")


def _tagged(chat: list[dict[str, Any]]) -> str:
    """Mark where the text of the last message ends, in place; gives that text. Raises InputError if it has none."""
    content = chat[-1].get("content") if chat else None
    if isinstance(content, str):
        chat[-1]["content"] = content + _TAG
        return content
    if content:
        last = content[-1]["text"]
        content[-1]["text"] = last + _TAG
        return last
    raise InputError("continue_final_message: the last message has no content to continue")


def _ending_within(text: str, final: str) -> str:
    at = text.rfind(_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise InputError("continue_final_message: the chat template does not show the last message")
    return text[:at] if text.startswith(_TAG, at) else text[:at].rstrip()

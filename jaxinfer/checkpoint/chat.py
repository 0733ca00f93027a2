"""Chat templates: Jinja programs that come with a model, rendered as transformers renders them, in a sandbox."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jaxinfer.checkpoint.imports import require
from jaxinfer.errors import InputError


def render_chat(template: str, messages: Sequence[dict[str, str]], bos_token: str = "", eos_token: str = "") -> str:
    """The text of a chat, with the prompt for the assistant's turn at its end.

    Raises InputError if a message is not `{"role": ..., "content": ...}`, or if the template fails or refuses the chat.
    """
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f'a chat message must be {{"role": ..., "content": ...}}, not {message!r}')
    jinja2 = require("jinja2", "for chat templates")
    try:
        compiled = _environment().from_string(template)
        return compiled.render(
            messages=messages, bos_token=bos_token, eos_token=eos_token, add_generation_prompt=True, tools=None
        )
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template failed: {error}") from None


def _environment() -> Any:
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        # Jinja's own filter escapes HTML characters.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment

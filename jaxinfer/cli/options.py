"""Give options of the command line as the objects that the library takes."""

import contextlib
import sys
from typing import Any

from jaxinfer.analysis.ahead_of_time import saving
from jaxinfer.analysis.profile import profile_to
from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.experiment import attachments, merge, registry
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.progress import stderr
from jaxinfer.experiment.schema import ConstraintSpec
from jaxinfer.experiment.spread import Spread
from jaxinfer.host.files import MOST_BYTES, parse_json, read_bytes


def options(
    method: str | None, parameters: dict, policy: str | None, capacity: int | None, sampling: dict
) -> dict[str, Any]:
    """Make options of the command line the objects that `generate` takes; None is an option that is not given.

    Without a method the options decide: parameters of lookup mean lookup, sampling options mean sample.
    Raises InputError.
    """
    parameters, sampling = _given(parameters), _given(sampling)
    name = method or ("lookup" if parameters else "sample" if sampling else "greedy")
    chosen = registry.method({"name": name, **parameters}, (), Origin("--method"))
    if sampling and not chosen.samples:
        option = next(iter(sampling)).replace("_", "-")
        raise InputError(f"--{option}: method {name!r} does not sample; use --method sample, or leave it out")
    return {
        "method": chosen,
        "policy": policy_of(policy, capacity),
        "sampling": registry.sampling(sampling, (), Origin("sampling")) if sampling else None,
    }


def policy_of(text: str | None, capacity: int | None = None):
    """Make the cache policy of `--policy name:key=value,...`; None where nothing is given. Raises InputError."""
    if text is None and capacity is None:
        return None
    spec = _spec(text or "window", "--policy", "paged:block=16,pool=64")  # window: exact for every model
    if capacity is not None:
        if "capacity" in spec:
            raise InputError("--policy: 'capacity' is given twice")
        spec["capacity"] = capacity
    return registry.policy(spec, (), Origin("--policy"))


def method_of(text: str | None):
    """Make the decode method of `--method name:key=value,...`; None where none is given. Raises InputError."""
    return None if text is None else registry.method(_spec(text, "--method", "lookup:width=8"), (), Origin("--method"))


def _spec(text: str, option: str, example: str) -> dict[str, Any]:
    """Read `name:key=value,...`. Raises InputError."""
    name, _, parameters = text.partition(":")
    spec: dict[str, Any] = {"name": name}
    for part in parameters.split(",") if parameters else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{option}: {shown(part)} must be key=value, as in {example}")
        if key.strip() in spec:
            raise InputError(f"{option}: {shown(key.strip())} is given twice")
        spec[key.strip()] = merge.parse(value, f"{option}: {shown_text(key, 60)}")
    return spec


def constraint(model, regex: str | None, json_schema: str | None) -> dict[str, Any]:
    """Make the option `constraint` of `generate`, where one of the two is given. Raises InputError."""
    if regex is not None and json_schema is not None:
        raise InputError("--regex and --json-schema: give one of them")
    if regex is None and json_schema is None:
        return {}
    option = "--regex" if json_schema is None else "--json-schema"
    with stderr.status(f"compiling {option} for the model's tokens"):
        return {"constraint": attachments.constraint(model, ConstraintSpec(regex, json_schema), option)}


def read_prompt(text: str) -> str:
    """Give the prompt itself, or standard input for "-". Raises InputError if it is empty, too long, or no text."""
    if text == "-":
        text = sys.stdin.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise InputError(f"standard input: has more than the {MOST_BYTES:,} characters that are read")
        check_text(text, "standard input")
    if not text.strip():
        raise InputError("the prompt is empty")
    return text


def check_text(text: str, where: str) -> None:
    """Raise InputError for what was no UTF-8 where it was read (each such byte is half a character)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: is not UTF-8 text (character {error.start})") from None


def template_options(variables: list[str] | None, tools: str | None) -> dict[str, Any]:
    """Read `--template-var` and `--tools`, as options of `Tokenizer.chat`. Raises InputError."""
    found: dict[str, Any] = {}
    for text in variables or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--template-var: {shown(text)} must be KEY=VALUE, as in enable_thinking=false")
        if name in ("messages", "tools", "chat_template"):
            raise InputError(f"--template-var: {name} is not a variable of your own")
        found[name] = merge.parse(value, f"--template-var: {name}")
    if tools is not None:
        found["tools"] = parse_json(read_bytes(tools, "--tools"), f"--tools: {tools}")
        if not isinstance(found["tools"], list) or not all(isinstance(tool, dict) for tool in found["tools"]):
            raise InputError(f"--tools: {tools}: must hold a list of JSON schemas, not {shown(found['tools'])}")
    return found


def encode_prompt(
    model, text: str, chat: bool | None, system: str | None, template: dict[str, Any] | None = None
) -> list[int] | str:
    """Give the tokens of a chat with one user turn, or the text itself; `chat` None: chat if there is a template."""
    has_chat = model.tokenizer is not None and model.tokenizer.has_chat
    if chat and not has_chat:
        raise InputError(f"--chat: {model.name} has no chat template; use --no-chat")
    if system is not None and (chat is False or not has_chat):
        raise InputError("--system: needs a chat; leave it out, or use --chat with a model that has a chat template")
    if template and (chat is False or not has_chat):
        option = "--tools" if "tools" in template else "--template-var"
        raise InputError(f"{option}: needs a chat; leave it out, or use --chat with a model that has a chat template")
    if chat is False or not has_chat:
        return text
    turns = [] if system is None else [{"role": "system", "content": system}]
    return model.tokenizer.chat([*turns, {"role": "user", "content": text}], **(template or {}))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def profiled(folder: str | None) -> contextlib.AbstractContextManager[None]:
    """Trace what runs inside into a folder, if one is given. Raises InputError for one that cannot be made."""
    return contextlib.nullcontext() if folder is None else profile_to(folder)


def executable(file: str | None) -> Spread | None:
    """Let the programs of `--executable` take the place of compiling: how the model must be spread for that, or None.

    Raises InputError for a damaged file, and one for another version or device.
    """
    return None if file is None else Spread(*saving.use(file))

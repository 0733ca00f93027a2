"""A tokenizer from elsewhere, in place of the one that a checkpoint brings."""

from pathlib import Path

from jaxinfer.checkpoint.gguf_header import read_header
from jaxinfer.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from jaxinfer.checkpoint.hf_tokenizer import read_backend, tokenizer_from_folder
from jaxinfer.checkpoint.tokenizer import Tokenizer
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, shown_text
from jaxinfer.host.files import path_of, read_bytes


def tokenizer_at(named: str | Path) -> Tokenizer:
    """Load the tokenizer of a folder with a tokenizer.json, of a tokenizer.json, or of a GGUF file.

    What lies beside a file called tokenizer.json (its config, its chat template) counts too. Raises InputError if there
    is no tokenizer.
    """
    path, name = path_of(named, "tokenizer"), f"tokenizer: {shown_text(str(named))}"
    if not path.exists():
        raise InputError(f"{name}: no such file; give a folder with a tokenizer.json, a tokenizer.json or a .gguf file")
    if path.suffix == ".gguf" and not path.is_dir():
        found = tokenizer_from_gguf(read_header(path))
    elif path.is_dir() or path.name == "tokenizer.json":
        found = tokenizer_from_folder(path if path.is_dir() else path.parent)
    else:
        read_bytes(path, "tokenizer")  # no pipe, no device
        found = Tokenizer(read_backend(path))
    if found is None:
        raise InputError(f"{name}: holds no tokenizer")
    return found


def check_fits(tokenizer: Tokenizer, config: ModelConfig, named: str | Path) -> None:
    """Raise InputError if a tokenizer has tokens that the model has no embedding for."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"tokenizer: {shown_text(str(named))}: has {tokenizer.vocab_size} tokens, and the model's embedding has "
            f"{config.vocab_size} rows"
        )

"""Loads models: built-in ones, GGUF files, Hugging Face folders and hub ids, Orbax folders. Saves Orbax folders."""

from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.checkpoint.conversion import convert, export
from jaxinfer.checkpoint.hf_export import save_folder
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.checkpoint.orbax import save as save_checkpoint
from jaxinfer.checkpoint.sources import BUILTINS
from jaxinfer.checkpoint.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "BUILTINS",
    "Checkpoint",
    "StreamDecoder",
    "Tokenizer",
    "convert",
    "export",
    "load_checkpoint",
    "save_checkpoint",
    "save_folder",
]

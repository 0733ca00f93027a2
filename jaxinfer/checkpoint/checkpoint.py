"""A model as a file holds it."""

from dataclasses import dataclass

from jaxinfer.checkpoint.tokenizer import Tokenizer
from jaxinfer.config import ModelConfig


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model as it was loaded: the parameter tree fits `config`; some checkpoints bring no tokenizer."""

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer | None
    name: str

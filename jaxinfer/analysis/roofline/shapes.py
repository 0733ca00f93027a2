"""The models that can be analyzed: shapes known by name, and checkpoints, of which no weight is read."""

import contextlib
from pathlib import Path

from jaxinfer.checkpoint.loading import read_config
from jaxinfer.checkpoint.presets import PREFIX, SHAPES, preset
from jaxinfer.checkpoint.sources import BUILTINS, locate
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, nearest, shown_text
from jaxinfer.host.files import path_of


def config_of(source: str | Path) -> ModelConfig:
    """Return the configuration of a shape's name or of what `jaxinfer.load` takes. Raises InputError for neither."""
    text = shown_text(str(source)).removeprefix(PREFIX)
    exists = path_of(source, "model").exists()
    if "/" not in text and not exists:
        with contextlib.suppress(InputError):
            return preset(text)
    try:
        locate(source)
    except InputError:
        if exists or "/" in text or text in BUILTINS:
            raise
        known = (*SHAPES, *BUILTINS)
        raise InputError(
            f"{text}: is no known shape, and no checkpoint: {', '.join(known)}{nearest(text, known)}"
        ) from None
    return read_config(source)

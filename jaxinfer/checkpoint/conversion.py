"""Convert a model from any source: to an Orbax folder, or to one that transformers loads."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxinfer.checkpoint.hf_export import save_folder
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.checkpoint.orbax import save as save_checkpoint
from jaxinfer.host.files import refuse_existing
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.quantize import dequantize_params


def convert(source: str | Path, destination: str | Path, dtype: Any = None, weights: str | None = None) -> None:
    """Load a model from any source and save it as a folder of this format; `dtype` None is float32.

    weights: a format of `weights.formats` to round the weights to.

    Raises InputError as loading and saving do.
    """
    if weights is not None:
        FORMATS.find(weights, "weights")
    refuse_existing(destination)  # before the long part
    save_checkpoint(load_checkpoint(source, dtype or "float32", weights=weights), destination)


def export(source: str | Path, destination: str | Path, dtype: Any = None) -> None:
    """Load a model from any source and write it as a folder that transformers loads; `dtype` None is float32.

    Quantized weights are written as the numbers that they stand for.

    Raises InputError as loading does, and if the destination exists or cannot be written.
    """
    refuse_existing(destination)  # before the long part
    found = load_checkpoint(source, dtype or "float32")
    params = dequantize_params(found.params, dtype or "float32")
    save_folder(dataclasses.replace(found, params=params), destination)

"""Weight-only quantization of a loaded model: its kernels in another format, rounded to nearest."""

import dataclasses

from jaxinfer.api import Model
from jaxinfer.errors import InputError
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.quantize import quantize_params


def quantize_weights(model: Model, format: str) -> Model:
    """The same model with the weights that it multiplies by in `format`, one of `weights.formats.FORMATS`.

    Kernels, the experts of a mixture, embedding and head; norms, biases, routers, and MLA's expansions stay. Raises
    InputError for another format, and for a model that is quantized or spread over a mesh already.
    """
    FORMATS.find(format, "weights")
    if model.weights is not None:
        raise InputError(f"{model.name} has {model.weights} weights already")
    if model.layout is not None:
        raise InputError(f"{model.name} is spread over a mesh already: quantize it before")
    return dataclasses.replace(model, params=quantize_params(model.params, format))

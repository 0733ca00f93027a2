"""Weight-only quantization: the kernels of a model as int8 or int4, rounded to nearest."""

import dataclasses
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from jaxinfer.errors import InputError, nearest
from jaxinfer.layers.qtensor import dequantized, is_quantized, map_weights, quantize_int4, quantize_int8

if TYPE_CHECKING:
    from jaxinfer.api import Model

Format = Literal["int8", "int4", "int4-64", "int4-128", "w8a8"]
FORMATS: tuple[Format, ...] = ("int8", "int4", "int4-64", "int4-128", "w8a8")
"""int4 has groups of 32 inputs. w8a8 is int8 that rounds the activations to int8 as well."""

_EMBEDDINGS = re.compile(r"embed/embedding|head/kernel")
_KERNELS = re.compile(r"segment_\d+/layer_\d+/.*(?<!/router)(?<!/shared_gate)/kernel")
_EXPERTS = re.compile(r"segment_\d+/layer_\d+/moe/(gate|up|down)")


def quantize_weights(model: "Model", format: Format) -> "Model":
    """The same model with the weights that it multiplies by in `format`, and activations as they were.

    Kernels, the experts of a mixture, embedding and head; norms, biases, routers, and MLA's expansions stay. Raises
    InputError for another format, and for a model that is quantized or spread over a mesh already.
    """
    check_format(format)
    if model.weights is not None:
        raise InputError(f"{model.name} has {model.weights} weights already")
    if model.layout is not None:
        raise InputError(f"{model.name} is spread over a mesh already: quantize it before")
    return dataclasses.replace(model, params=quantize_params(model.params, format))


def check_format(format: str, what: str = "weights=") -> None:
    """Raises InputError unless it is one of `FORMATS`."""
    if format not in FORMATS:
        raise InputError(f"{what}{format!r} must be one of {', '.join(FORMATS)}{nearest(str(format), FORMATS)}")


def quantize_params(params: dict[str, Any], format: str) -> dict[str, Any]:
    """The parameter tree with QTensors in place of the arrays that products read most of."""

    def quantized(path: Any, leaf: Any) -> Any:
        name = "/".join(entry.key for entry in path)
        if not any(kind.fullmatch(name) for kind in (_EMBEDDINGS, _KERNELS, _EXPERTS)):
            return leaf
        n_in = 2 if name.endswith(("/attention/o/kernel", "/mixer/o/kernel")) else 1
        if format in ("int8", "w8a8"):
            return _int8(leaf, n_in, format == "w8a8")
        return _int4(leaf, int(format.partition("-")[2] or 32), n_in)

    return jax.tree_util.tree_map_with_path(quantized, params)


_int8 = partial(jax.jit, static_argnums=(1, 2))(lambda w, n_in, activations: quantize_int8(w, n_in, activations))
_int4 = partial(jax.jit, static_argnums=(1, 2))(lambda w, group, n_in: quantize_int4(w, group, n_in))


def dequantize_params(params: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The parameter tree with arrays in place of QTensors."""
    return map_weights(lambda w: dequantized(w).astype(jnp.dtype(dtype)) if is_quantized(w) else w, params)

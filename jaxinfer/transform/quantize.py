"""Weight-only quantization: the kernels of a model as int8 or int4, rounded to nearest."""

import dataclasses
import re
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp

from jaxinfer.config import WeightFormat
from jaxinfer.errors import InputError, nearest
from jaxinfer.layers.qtensor import dequantized, is_quantized, map_weights, quantize_int4, quantize_int8

if TYPE_CHECKING:
    from jaxinfer.api import Model

FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
"""int4 has groups of 32 inputs; embedding and head are int8 then. w8a8 is int8 that rounds the activations as well."""

_EMBEDDINGS = re.compile(r"embed/embedding|head/kernel")
_KERNELS = re.compile(r"segment_\d+/layer_\d+/.*(?<!/router)(?<!/shared_gate)/kernel")
_EXPERTS = re.compile(r"segment_\d+/layer_\d+/moe/(gate|up|down)")


def quantize_weights(model: "Model", format: WeightFormat | str) -> "Model":
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
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: quantize_leaf("/".join(entry.key for entry in path), leaf, format), params
    )


def quantize_in_place(params: dict[str, Any], format: str, prefix: str = "") -> dict[str, Any]:
    """`quantize_params` that forgets each array once it is rounded: no two are there unrounded and rounded."""
    for name, leaf in params.items():
        path = prefix + name
        if isinstance(leaf, dict):
            quantize_in_place(leaf, format, f"{path}/")
        else:
            params[name] = jax.block_until_ready(quantize_leaf(path, leaf, format))
    return params


def quantize_leaf(path: str, leaf: Any, format: str) -> Any:
    """The parameter at a path such as "segment_0/layer_0/mlp/up/kernel": a QTensor, or itself if it stays an array."""
    if not any(kind.fullmatch(path) for kind in (_EMBEDDINGS, _KERNELS, _EXPERTS)):
        return leaf
    n_in = 2 if path.endswith(("/attention/o/kernel", "/mixer/o/kernel")) else 1
    # In int4 the embedding alone would cost SmolLM2 0.075 nats a token, and all that is behind it nothing.
    if format in ("int8", "w8a8") or _EMBEDDINGS.fullmatch(path):
        return _int8(leaf, n_in, format == "w8a8")
    return _int4(leaf, int(format.partition("-")[2] or 32), n_in)


_int8 = partial(jax.jit, static_argnums=(1, 2))(lambda w, n_in, activations: quantize_int8(w, n_in, activations))
_int4 = partial(jax.jit, static_argnums=(1, 2))(lambda w, group, n_in: quantize_int4(w, group, n_in))


def dequantize_params(params: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The parameter tree with arrays in place of QTensors."""
    return map_weights(lambda w: dequantized(w).astype(jnp.dtype(dtype)) if is_quantized(w) else w, params)

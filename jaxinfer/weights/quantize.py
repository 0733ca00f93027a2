"""Weight-only quantization: the kernels of a model in one of `formats.FORMATS`."""

import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxinfer.weights.contract import WeightFormat
from jaxinfer.weights.formats import FORMATS, name_of
from jaxinfer.weights.qtensor import dequantized, is_quantized, map_weights

_EMBEDDINGS = re.compile(r"embed/embedding|head/kernel")
_KERNELS = re.compile(r"segment_\d+/layer_\d+/.*(?<!/router)(?<!/shared_gate)/kernel")
_EXPERTS = re.compile(r"segment_\d+/layer_\d+/moe/(gate|up|down)")


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
    """The parameter at a path such as "segment_0/layer_0/mlp/up/kernel": a QTensor, or itself if it stays an array.

    Raises InputError for a format that there is not.
    """
    rounding = rounding_of(path, format)
    return leaf if rounding is None else encoded(leaf, *rounding)


class Rounding(NamedTuple):
    """A way to round a parameter: its format, how many of its last axes are inputs, and how many in front a stack."""

    format: WeightFormat[Any]
    n_in: int
    stacked: int


def rounding_of(path: str, format: str) -> Rounding | None:
    """Say how the parameter at a path is rounded; None: it stays an array.

    Raises InputError for a format that there is not.
    """
    found = FORMATS.find(format, "weights")
    if _EMBEDDINGS.fullmatch(path):
        if found.embeddings is not None:
            found = FORMATS.find(found.embeddings, f"weight format {format}: embeddings")
        return Rounding(found, 1, 0)
    stacked = 2 if _EXPERTS.fullmatch(path) else 1 if _KERNELS.fullmatch(path) else 0
    n_in = 2 if path.endswith(("/attention/o/kernel", "/mixer/o/kernel")) else 1
    return Rounding(found, n_in, stacked) if stacked else None


@partial(jax.jit, static_argnums=(1, 2, 3))
def encoded(leaf: jax.Array, format: Any, n_in: int, stacked: int) -> Any:
    """Each of the weights in a stack of so many axes by itself: all that a format stores has these axes in front."""
    encode = partial(format.encode, n_in=n_in)
    for _ in range(stacked):
        encode = jax.vmap(encode)
    return encode(leaf)


def format_of(params: Any) -> str | None:
    """The format of a model's quantized kernels, by its name in `FORMATS`; None for arrays.

    Raises InputError for a format that is not registered.
    """
    weights = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantized)[0]
    found = {path[0].key != "embed": weight.format for path, weight in weights if is_quantized(weight)}
    format = found.get(True, found.get(False))
    return None if format is None else name_of(format)


def dequantize_params(params: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The parameter tree with arrays in place of QTensors."""
    return map_weights(lambda w: dequantized(w).astype(jnp.dtype(dtype)) if is_quantized(w) else w, params)

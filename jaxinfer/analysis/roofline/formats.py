"""The storage of the weight formats and cache formats that the engine has, read off what they store."""

import functools

import jax
import jax.numpy as jnp

from jaxinfer.analysis.roofline.setting import Storage, kv_of, weights_of
from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.weights.formats import FORMATS

FLOATS = {"float32": 32, "float16": 16, "bfloat16": 16}
KV_FORMATS = {"int8": 8, "fp8": 8}
ROWS = 4096, 8192  # inputs, of which codes grow with the number and scales of a row do not


def weight_storage(text: str | float) -> Storage:
    """Give the storage of weights by the name of a format or dtype, or by bits. Raises InputError for neither."""
    if isinstance(text, int | float) or text.isdecimal():
        return weights_of(_bits("weights", float(text)))
    if text in FLOATS:
        return Storage(FLOATS[text])
    if text not in FORMATS:
        known = (*FLOATS, *FORMATS)
        hint = nearest(text, known)
        raise InputError(f"weights={shown(text)} must be bits, such as 4, or one of {', '.join(known)}{hint}")
    return _of_format(text)


def kv_storage(text: str | float) -> Storage:
    """Give the storage of keys and values by the name of a format or dtype, or by bits. Raises InputError."""
    if isinstance(text, int | float) or text.isdecimal():
        return kv_of(_bits("kv", float(text)))
    known = FLOATS | KV_FORMATS
    if text not in known:
        hint = nearest(text, known)
        raise InputError(f"kv={shown(text)} must be bits, such as 8, or one of {', '.join(known)}{hint}")
    return kv_of(known[text])


def _bits(name: str, value: float) -> int:
    if not value.is_integer():
        raise InputError(f"{name}={value:g} must be a whole number of bits")
    return int(value)


@functools.cache
def _of_format(name: str) -> Storage:
    """Measure what a format stores of a row of 4,096 inputs and of one of 8,192: bits a weight, and bits a row."""
    format = FORMATS[name]

    def stored(width: int) -> int:
        weight = jax.eval_shape(format.encode, jax.ShapeDtypeStruct((64, width), jnp.float32))
        return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(weight)) * 8 // 64

    one, two = map(stored, ROWS)
    each = (two - one) / (ROWS[1] - ROWS[0])
    code = next(bits for bits in (8, 6, 4, 3, 2, 1) if bits <= each)
    embedding = _of_format(format.embeddings) if format.embeddings else None
    operands = 8 if getattr(format, "activations", False) else None
    return Storage(code, each - code, one - each * ROWS[0], embedding, operands)

"""Weights of scanned layers: stacked on axis 0, indexed by the layer that is running.

The scanned body sees the whole stack and a layer number, as attention sees the whole cache. What it costs to get one
layer out of the stack depends on the target. XLA on a CPU copies the slice before a matrix product may read it, which
doubles the time of a decode step once a layer is larger than the processor's cache, and adds a tenth to a prefill.
`for_cpu` avoids that: the same memory, seen as one array a layer, and a branch that picks the product.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from jaxinfer.weights.bfloat16_bits import WithBits, bits_of
from jaxinfer.weights.qtensor import is_quantized
from jaxinfer.weights.resting import Resting, resting

WORTH_A_VIEW = 1 << 18  # bytes of one layer's matrix: smaller slices stay in the processor's cache when copied
MOST_VIEWS = 32  # layers in a stack: every one of them is a branch to compile


@struct.dataclass
class LayerViews:
    """A stacked weight as one array a layer, each a view of the stack."""

    layers: tuple[jax.Array, ...]


def parameter(
    module: nn.Module, name: str, init: Callable[..., jax.Array], shape: tuple[int, ...], axes: tuple[str, ...], dtype
) -> Any:
    """A parameter and its logical axes. One that is given is taken as it is: it may be compressed, or `LayerViews`."""
    if module.has_variable("params", name):
        return resting(nn.meta.unbox(module.get_variable("params", name)), axes)
    return module.param(name, nn.with_partitioning(init, axes), shape, dtype)


def layer_of(weight: Any, layer: jax.Array | None = None) -> Any:
    """Take weight[layer] out of a stack; with None, give the weight, which is none."""
    if isinstance(weight, Resting):
        return weight.layer(layer)
    return weight if layer is None else jax.lax.dynamic_index_in_dim(weight, layer, keepdims=False)


def with_layer(weight: Any, layer: jax.Array, use: Callable[[Any], jax.Array]) -> jax.Array:
    """use(weight[layer]): `weight` is a pytree of arrays [L, ...], a `LayerViews` or `WithBits`, `layer` an i32[]."""
    if isinstance(weight, Resting):
        return use(weight.layer(layer))
    if isinstance(weight, WithBits):
        weight = weight.weight
    if isinstance(weight, LayerViews):
        # The branches differ in the buffer they read, in nothing else: `use` is traced and lowered once.
        use = jax.jit(use)
        return jax.lax.switch(layer, [lambda w=w: use(w) for w in weight.layers])
    return use(jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), weight))


def for_cpu(params: dict[str, Any], most_layers: int = MOST_VIEWS) -> dict[str, Any]:
    """The same parameters in the form that programs for a CPU read best, in the same memory.

    Every large kernel in a stack of up to `most_layers` is one array a layer, and kernels and embeddings in bfloat16
    have their bits beside them. Copies nothing: the result shares its memory with `params`, which must stay alive. For
    arrays in the memory of one CPU device. Quantized weights stay as they are: their products take slices of the stack.
    """

    def form(path, leaf):
        names = [entry.key for entry in path]
        if is_quantized(leaf) or names[-1] not in ("kernel", "embedding"):
            return leaf
        stacked = names[0].startswith("segment_") and names[-1] == "kernel"
        weight = _views(leaf) if stacked and leaf.shape[0] <= most_layers else leaf
        bits = bits_of(leaf) if leaf.dtype == jnp.bfloat16 else None
        return weight if bits is None else WithBits(weight, bits)

    return jax.tree_util.tree_map_with_path(form, params, is_leaf=is_quantized)


def _views(stack: jax.Array) -> Any:
    """A stack as one array a layer, where its layers are large and these are views of it."""
    if stack.nbytes < WORTH_A_VIEW * stack.shape[0]:
        return stack
    layers = tuple(jax.device_put(layer) for layer in np.asarray(stack))
    base, size = stack.unsafe_buffer_pointer(), stack.nbytes // stack.shape[0]
    shared = all(layer.unsafe_buffer_pointer() == base + i * size for i, layer in enumerate(layers))
    return LayerViews(layers) if shared else stack

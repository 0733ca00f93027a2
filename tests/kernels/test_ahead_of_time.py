"""Attention, and products with quantized weights, compiled for machines that are not here, at shapes of real models.

Each target needs its compiler, in an environment of its own (docs/kernels.md):

    pip install -e ".[tpu]" pytest pytest-xdist hypothesis; pytest -n 0 tests/kernels/test_ahead_of_time.py
    pip install -e ".[cuda]" pytest pytest-xdist hypothesis; pytest -n 0 tests/kernels/test_ahead_of_time.py
"""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinfer import sharding
from jaxinfer.cache.codes import Codes
from jaxinfer.cache.store import Store, causal
from jaxinfer.config import LayerKind
from jaxinfer.kernels import dispatch
from jaxinfer.kernels.attention import attend
from jaxinfer.layers.linear import matmul
from jaxinfer.sharding import topologies
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.formats.int4 import Int4Weight
from jaxinfer.weights.formats.int8 import Int8Weight

pytestmark = pytest.mark.quick

TARGETS = ["v5e:2x2", "v6e:2x2", "h200"]
MODELS = {  # query heads, key/value heads, width, window
    "llama-3-8b": (32, 8, 128, None),
    "gemma-3-12b": (16, 8, 256, 1024),
}
WEIGHTS = {  # the distinct projections of a layer, outputs and inputs, and the head
    "llama-3-8b": (
        {"q": (32, 128, 4096), "kv": (8, 128, 4096), "o": (4096, 32, 128), "up": (14336, 4096), "down": (4096, 14336)},
        (128256, 4096),
    ),
    "gemma-3-12b": (
        {"q": (16, 256, 3840), "kv": (8, 256, 3840), "o": (3840, 16, 256), "up": (15360, 3840), "down": (3840, 15360)},
        (262144, 3840),
    ),
}
LAYERS, SLOTS = 4, 8192
WEIGHT_LAYERS = 32  # a small stack would be brought into the memory of a TPU's processor as a whole


@pytest.fixture(params=TARGETS)
def layout(request):
    extra = topologies.missing(request.param)
    if extra:
        pytest.skip(f"compiling for {request.param} takes {extra}")
    devices = np.array(topologies.devices(request.param)[:1]).reshape(1, 1)
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)  # nothing here can load such a program again
    yield sharding.Sharding(Mesh(devices, ("data", "tensor")))
    jax.config.update("jax_enable_compilation_cache", cached)


class Shapes:
    """The arguments of a layer of attention, as shapes on a device that is not here."""

    def __init__(self, layout, model, batch, tokens, slots, stored, tree=False, page=None):
        self.layout = layout
        n, k_heads, width, window = MODELS[model]
        self.visible = partial(causal, LayerKind(window=window))
        rows = (LAYERS, batch * slots // page, k_heads, page) if page else (LAYERS, batch, k_heads, slots)
        keys = self.of((*rows, width), stored)
        keys = Codes(keys, self.of(rows, "float32")) if stored == "int8" else keys
        pages = self.of((batch, slots // page), "int32") if page else None
        self.store = Store(keys, keys, self.of((batch, slots), "int32"), pages)
        self.q = self.of((batch, k_heads, tokens * (n // k_heads), width))
        self.fresh = self.of((batch, k_heads, tokens, width))
        self.q_pos = self.of((batch, tokens), "int32")
        self.tree = self.of((batch, tokens, tokens), "bool") if tree else None
        self.one = self.of((), "int32")
        self.layer_bytes = 2 * batch * k_heads * slots * width * jnp.dtype(stored).itemsize

    def of(self, shape, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.layout.mesh, PartitionSpec()))

    def compiled(self, fun, *args):
        with sharding.use(self.layout), dispatch.use("pallas"):
            return jax.jit(fun).lower(*args).compile()

    def attention(self):
        """What `attend` comes to, where the kernel is asked for."""

        def run(q, k, v, tree, store, layer, q_pos, extent):
            return attend(q, k, v, tree, store, layer, q_pos, extent, self.visible, lambda x, dtype: x.astype(dtype))

        args = self.q, self.fresh, self.fresh, self.tree, self.store, self.one, self.q_pos, self.one
        return self.compiled(run, *args)


def check(compiled, bound):
    """The kernel is in the program, and nothing as large as the bound is made beside it."""
    text = compiled.as_text()
    assert "tpu_custom_call" in text or "mosaic_gpu" in text
    assert compiled.memory_analysis().temp_size_in_bytes < bound


@pytest.mark.parametrize("model", MODELS)
def test_prefill(layout, model):
    shapes = Shapes(layout, model, 1, 4096, SLOTS, "bfloat16")
    # Whole score matrices of one head would take 4096 x 4096 x 4 bytes, 64 MiB a head.
    check(shapes.attention(), 512 << 20)


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
@pytest.mark.parametrize("tokens", [1, 5, 64])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("model", MODELS)
def test_decode(layout, model, batch, tokens, stored):
    shapes = Shapes(layout, model, batch, tokens, SLOTS, stored, tree=tokens > 1)
    # A layer of the cache is never copied. The output's pieces on a GPU take up to 20 MiB, whatever the cache holds.
    check(shapes.attention(), max(shapes.layer_bytes, 24 << 20))


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("model", MODELS)
def test_paged_decode(layout, model, tokens, stored):
    shapes = Shapes(layout, model, 16, tokens, SLOTS, stored, page=128)
    check(shapes.attention(), shapes.layer_bytes)


class Weight:
    """A quantized weight as shapes, in a stack or alone."""

    def __init__(self, of, format, shape, n_in, stacked):
        lead = (WEIGHT_LAYERS,) if stacked else ()
        self.shape, self.n_in = shape, n_in
        outer, inner = shape[:-n_in], shape[-n_in:]
        self.outputs, self.inputs = math.prod(outer), math.prod(inner)
        if format == "int8":
            codes, scale = of((*lead, *outer, self.inputs), "int8"), of((*lead, *outer), "float32")
            self.array = Int8Weight(FORMATS[format], inner, codes, scale)
            return
        group = int(format.partition("-")[2] or 32)
        assert self.inputs % (2 * group) == 0
        by_group = of((*lead, *outer, self.inputs // group), "float32")
        codes = of((*lead, *outer, self.inputs // 2), "uint8")
        self.array = Int4Weight(FORMATS[format], inner, codes, by_group, by_group)


def products_compiled(layout, weights, rows, stacked):
    """A program with a product of each weight, of `rows` rows; of a stack, in a loop over its layers."""

    def of(shape, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(layout.mesh, PartitionSpec()))

    made = [Weight(of, *given, stacked) for given in weights]

    def layer_of(xs, arrays, layer):
        return [matmul(x, w, m.shape, m.n_in, layer) for x, w, m in zip(xs, arrays, made, strict=True)]

    def run(xs, arrays):
        if not stacked:
            return layer_of(xs, arrays, None)
        ys = [jnp.zeros((rows, *m.shape[: -m.n_in])) for m in made]
        return jax.lax.fori_loop(
            0, WEIGHT_LAYERS, lambda layer, ys: jax.tree.map(jnp.add, ys, layer_of(xs, arrays, layer)), ys
        )

    args = [of((rows, *m.shape[-m.n_in :])) for m in made], [m.array for m in made]
    with sharding.use(layout), dispatch.use("pallas"):
        return made, jax.jit(run).lower(*args).compile()


def check_products(made, compiled):
    """A kernel for each, and no array as large as the codes of one layer's smallest weight, in whatever dtype."""
    text = compiled.as_text()
    kernels = re.findall(r'custom_call_target="(tpu_custom_call|mosaic_gpu[^"]*)"', text)
    assert len(kernels) >= len(made)
    bound = min(weight.outputs * weight.array.codes.shape[-1] for weight in made)
    for shape, operation in re.findall(r"= \w+\[([\d,]*)\]\S* ([\w-]+)\(", text):
        if operation not in ("parameter", "bitcast", "get-tuple-element"):
            assert math.prod(int(n) for n in shape.split(",") if n) < bound, f"{operation} makes [{shape}]"


@pytest.mark.parametrize("format", ["int8", "int4", "int4-64", "int4-128"])
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("model", WEIGHTS)
def test_projections(layout, model, rows, format):
    shapes, _ = WEIGHTS[model]
    weights = [(format, shape, 1 + (name == "o")) for name, shape in shapes.items()]
    check_products(*products_compiled(layout, weights, rows, stacked=True))


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("model", WEIGHTS)
def test_heads(layout, model, rows):
    _, shape = WEIGHTS[model]
    check_products(*products_compiled(layout, [("int8", shape, 1)], rows, stacked=False))

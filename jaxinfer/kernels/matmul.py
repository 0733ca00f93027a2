"""Products of a few rows with weight-only int8 and int4: their definition, and the table that says which code runs.

reference   the weights as numbers, whole
xla         plain XLA, which the format of the weight writes, by shape and platform (`weights/formats/`)
pallas      a kernel that reads the codes as they are (`matmul_tpu.py`, `matmul_gpu.py`)

More than 64 rows, as a prompt has, are left to plain XLA whatever is chosen.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.kernels import dispatch
from jaxinfer.kernels.coded import CodedWeight
from jaxinfer.sharding import layouts

FEW = 64  # rows that a kernel takes
FORMATS = ("int8", "int4", "int4-64", "int4-128")


@dataclass(frozen=True)
class Call:
    """All that a choice depends on. It is static."""

    platform: str  # "cpu", "gpu" or "tpu"
    generation: str  # of an NVIDIA GPU: its compute capability
    dtype: str  # of activations
    format: str  # of the weight
    outputs: int
    inputs: int
    devices: int = 1  # of the mesh

    @staticmethod
    def of(x: jax.Array, format: str, n_out: int) -> "Call":
        layout = layouts.active()
        devices = 1 if layout is None else layout.mesh.size
        return Call(*dispatch.machine(dispatch.MATMUL), x.dtype.name, format, n_out, x.shape[1], devices)


@dataclass(frozen=True)
class Row:
    """A formulation, and what it takes. None: anything."""

    name: str
    module: str = ""
    platforms: tuple[str, ...] | None = None
    generations: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    formats: tuple[str, ...] | None = None
    outputs: int = 1  # a multiple of that
    inputs: int = 1  # likewise, with what pads them to whole groups
    by_default: bool = True  # runs without being forced: False for what no device has proved yet

    def misfit(self, call: Call) -> str | None:
        """Say why this formulation cannot run on that platform, or None."""
        return dispatch.misfit(self, call)

    def refuses(self, call: Call) -> str | None:
        """Say why this formulation does not take those dtypes or shapes, or None."""
        if self.dtypes and call.dtype not in self.dtypes:
            return f"it computes in {' or '.join(self.dtypes)}, not in {call.dtype}"
        if self.formats and call.format not in self.formats:
            return f"it reads {', '.join(self.formats)}, not {call.format}"
        if self.platforms and call.devices > 1:
            return f"it runs on one device, not on a mesh of {call.devices}"
        if call.outputs % self.outputs:
            return f"it takes a multiple of {self.outputs} outputs, not {call.outputs}"
        if call.inputs % self.inputs:
            return f"it takes a multiple of {self.inputs} inputs, not {call.inputs}"
        return None


TABLE = (
    Row("pallas", "matmul_tpu", platforms=("tpu",), dtypes=("bfloat16", "float32"), formats=FORMATS),
    Row(
        "pallas",
        "matmul_gpu",
        platforms=("gpu",),
        generations=("9.0",),
        dtypes=dispatch.HALVES,
        formats=FORMATS,
        outputs=64,
        inputs=256,
        by_default=False,
    ),
    Row("xla"),
    Row("reference"),
)


def choose(x: jax.Array, format: str, n_out: int) -> Row:
    """Choose what multiplies x[rows, in] by a weight of `n_out` outputs in a format, of `FORMATS` or another.

    Raises InputError where `dispatch.use` forces what cannot run.
    """
    plain = TABLE[-2]
    return plain if len(x) > FEW else dispatch.choose(Call.of(x, format, n_out), TABLE, dispatch.MATMUL)


def by_kernel(row: Row, x: jax.Array, weight: CodedWeight, layer: jax.Array | None) -> jax.Array:
    """x[rows, in] times layer i32[] of a stack [L, *out, in], or a weight that is none -> float32[rows, out]."""
    if layer is None:
        weight, layer = jax.tree.map(lambda a: a[None], weight), jnp.int32(0)
    options: dict[str, Any] = dispatch.interpreter(row, dispatch.MATMUL)
    return dispatch.module(row).product(x, weight, layer, **options)


def definition(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """x[rows, in] times the numbers float32[*out, *in] of a weight, in x's dtype, summed in float32."""
    w = numbers.reshape(-1, x.shape[1]).astype(x.dtype)
    contract = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, w, contract, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)

"""The contract of a weight format: a frozen dataclass in a file of its own under `formats/`, and one line there."""

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp

from jaxinfer.kernels import matmul
from jaxinfer.sharding import choices
from jaxinfer.weights.layer_stack import with_layer
from jaxinfer.weights.products import dot, in_blocks
from jaxinfer.weights.qtensor import QTensor

Axes = tuple[str | None, ...]
Stored = TypeVar("Stored", bound=QTensor)

ZEROS = -1
"""In a list of heads to take: one of zeros, in place of one of the weight's."""


class WeightFormat(ABC, Generic[Stored]):
    """The way weights are stored and multiplied by. Static under jit: a frozen dataclass, with parameters as fields.

    A format has to say `encode` and `decode`. The rest has defaults, which are right for any format whose arrays all
    begin with the axes of the outputs (codes[*out, ...], scale[*out]), or that says in `by_output` what does.
    """

    embeddings: ClassVar[str | None] = None  # by name, the format that embedding and head have; None: this one too
    moves_inputs: ClassVar[bool] = False  # whether `take_inputs` is there

    @abstractmethod
    def encode(self, w: jax.Array, n_in: int = 1) -> Stored:
        """Round one weight w[*out, *in], whose last `n_in` axes are inputs. Stacks of them are mapped over."""

    @abstractmethod
    def decode(self, weight: Stored) -> jax.Array:
        """The numbers that it stands for, float32[..., *out, *in]: its arrays may have any axes in front."""

    def by_output(self, weight: Stored) -> Stored:
        """The same numbers in arrays that all begin with the outputs' axes, so that some outputs can be cut out."""
        return weight

    def product(self, x: jax.Array, weight: Stored, n_out: int, few: bool, layer: jax.Array | None = None) -> jax.Array:
        """x[rows, in] times the weight [*out, *in] -> float32[rows, n_out].

        With `layer` i32[], the weight is a stack of which that one is used. few: as many rows as a decode step has.
        """
        row = matmul.choose(x, repr(self), n_out)
        use = by_definition if row.name == "reference" else partial(self.converted, few=few)
        return in_layer(partial(use, x), weight, layer)

    def converted(self, x: jax.Array, weight: Stored, few: bool) -> jax.Array:
        """The product with the numbers, on a CPU in float32 and of no more outputs at a time than `in_blocks` takes."""
        outer, width = len(weight.shape) - len(weight.inputs), x.shape[1]
        in_parts = choices.CONVERT_IN_BLOCKS.here()
        x = x.astype(jnp.float32) if in_parts else x

        def flat(array: jax.Array) -> jax.Array:
            return array.reshape(-1, *array.shape[outer:])

        def product(part: Stored) -> jax.Array:
            return dot(x, self.decode(part).reshape(-1, width).astype(x.dtype), few=few)

        rows = jax.tree.map(flat, self.by_output(weight))
        return in_blocks(product, rows) if in_parts else product(rows)

    def take(self, table: Stored, rows: jax.Array, **how: Any) -> jax.Array:
        """Rows of a table [V, D], as `jnp.take` along axis 0, float32; only these are decoded."""
        return self.decode(jax.tree.map(lambda a: jnp.take(a, rows, axis=0, **how), self.by_output(table)))

    def take_outputs(self, weight: Stored, axis: int, index: tuple[int, ...]) -> QTensor:
        """The weight with these along one of its axes in front of the inputs, each as it is; ZEROS: numbers zero."""
        chosen = jnp.maximum(jnp.array(index), 0)
        rows = jax.tree.map(lambda a: jnp.take(a, chosen, axis=axis), self.by_output(weight))
        if ZEROS not in index:
            return rows
        zero = self.by_output(self.encode(jnp.zeros((1, *weight.inputs), jnp.float32), len(weight.inputs)))

        def with_zeros(a: jax.Array, z: jax.Array) -> jax.Array:
            shape = [-1 if at == axis else 1 for at in range(a.ndim)]
            return jnp.where(jnp.array([one == ZEROS for one in index]).reshape(shape), z[0].astype(a.dtype), a)

        return jax.tree.map(with_zeros, rows, zero)

    def take_inputs(self, weight: Stored, index: tuple[int, ...]) -> QTensor:
        """The weight with these along the first axis of its inputs, each as it is; ZEROS: numbers zero.

        Nothing is rounded again. A format that has it says so: `moves_inputs`.
        """
        raise NotImplementedError(f"{type(self).__name__} moves no inputs")

    def axes(self, weight: Stored, axes: Axes) -> dict[str, Axes]:
        """The logical axes of each array, by its name, where the weight's own are `axes`.

        An axis that is as long as the weight's own at the same place is split as that; the rest is whole.
        """
        shape = weight.shape

        def of(array: jax.Array) -> Axes:
            own = [axis if size == whole else None for axis, size, whole in zip(axes, array.shape, shape, strict=False)]
            return (*own, *[None] * (array.ndim - len(own)))

        return {name: of(array) for name, array in weight.arrays().items()}

    def to_plain(self, weight: Stored) -> dict[str, jax.Array]:
        """Give what a file holds of it: arrays by name."""
        return weight.arrays()

    def from_plain(self, like: Stored, arrays: dict[str, Any]) -> Stored:
        """The way back from `to_plain`. like: what `encode` makes of such a weight, as shapes."""
        return replace(like, **arrays)


def taken(a: jax.Array, width: int, index: tuple[int, ...], fill: Any, multiple: int = 1) -> jax.Array:
    """The parts of `width` of a[..., inputs] at these places, ZEROS: `fill`, and more of it up to a multiple."""
    parts = a[..., : a.shape[-1] // width * width].reshape(*a.shape[:-1], -1, width)
    chosen = jnp.take(parts, jnp.maximum(jnp.array(index), 0), axis=-2)
    chosen = jnp.where(jnp.array([one == ZEROS for one in index])[:, None], jnp.array(fill, a.dtype), chosen)
    chosen = chosen.reshape(*a.shape[:-1], len(index) * width)
    more = -chosen.shape[-1] % multiple
    return jnp.pad(chosen, (*((0, 0),) * (chosen.ndim - 1), (0, more)), constant_values=fill)


def in_layer(use: Any, weight: QTensor, layer: jax.Array | None) -> jax.Array:
    """use(weight), or of a stack use(weight[layer])."""
    return use(weight) if layer is None else with_layer(weight, layer, use)


def by_definition(x: jax.Array, weight: QTensor) -> jax.Array:
    """The product that others are held to: with the numbers, whole."""
    return matmul.definition(x, weight.format.decode(weight))

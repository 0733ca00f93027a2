"""Heads that a mesh axis does not divide, as those of an equal model whose heads it does.

A KV head may be held several times, each time with some of the query heads that read it: what they compute is the same.
So every device has whole groups, and attention needs nothing of another device (as grouped queries on more devices than
KV heads are usually run; Pope et al. 2022, section 3.3, for one KV head).

    64 heads, 8 KV heads on 64     each KV head is held 8 times, with one of its 8 query heads (Llama 3 70B)
    9 heads, 3 KV heads on 4       padded: 4 groups of 3 heads, the last of which are zeros (SmolLM2)
    9 heads, 3 KV heads on 8       padded: 8 groups of 2 heads; each KV head is held twice, and two groups are zeros

A head of zeros gives zeros: its rows of q are zero, and its columns of o.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.config import SSM, ModelConfig
from jaxinfer.network.transformer import param_axes
from jaxinfer.sharding.layouts import Sharding
from jaxinfer.weights.contract import ZEROS, Axes
from jaxinfer.weights.qtensor import is_quantized


@dataclass(frozen=True)
class HeadGroups:
    """The heads of the equal model, each by the number that it has in the model itself. ZEROS: it is none of these."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]  # KV heads; head i reads keys[i // (queries / keys)]

    @classmethod
    def of(cls, cfg: ModelConfig, parts: int, pad: bool = False) -> "HeadGroups | None":
        """Group a model's heads so that `parts` divides heads and KV heads; None where nothing can or need be done.

        Of what is possible, it takes the fewest heads and KV heads together: weights grow with both. pad: heads of
        zeros may be among them; see `obstacle` for models in which they would not be nothing.
        """
        n, k = cfg.n_heads, cfg.n_kv_heads
        if all(isinstance(kind.mixer, SSM) for kind in cfg.kinds):
            return None
        if cfg.mla:  # whose heads share one latent, and read no KV head
            more = -n % parts
            return cls((*range(n), *[ZEROS] * more), tuple(range(n + more))) if pad and more else None
        if k % parts == 0:
            return None
        group = n // k
        sizes = range(1, group + 1) if pad else [size for size in range(1, group + 1) if group % size == 0]
        found = []
        for size in sizes:  # query heads beside each KV head
            needed = k * math.ceil(group / size)
            held = needed + (-needed % parts if pad else 0)
            if held % parts == 0:
                found.append((held * size + held, held * size, held, size))
        return cls._grouped(n, k, *min(found)[2:]) if found else None

    @classmethod
    def _grouped(cls, n: int, k: int, held: int, size: int) -> "HeadGroups":
        group, queries, keys = n // k, [], []
        for head in range(k):
            for start in range(0, group, size):
                own = [head * group + at for at in range(start, min(start + size, group))]
                queries += own + [ZEROS] * (size - len(own))
                keys.append(head)
        more = held - len(keys)
        return cls((*queries, *[ZEROS] * (more * size)), (*keys, *[ZEROS] * more))

    @property
    def padding(self) -> int:
        """Count the heads of zeros."""
        return self.queries.count(ZEROS)

    def config(self, cfg: ModelConfig) -> ModelConfig:
        """Describe the equal model."""
        return cfg.replace(n_heads=len(self.queries), n_kv_heads=len(self.keys))

    def weight(self, weight: Any, axes: Axes) -> Any:
        """Give a parameter with these logical axes as the equal model has it: an array, a QTensor, or shapes of one.

        No number of it changes: what is stored of a quantized weight is moved, and not rounded again.
        """
        for at, axis in enumerate(axes):
            index = {"heads": self.queries, "kv_heads": self.keys}.get(str(axis))
            if index is not None and index != tuple(range(weight.shape[at])):
                weight = _of_shapes(partial(_taken, ndim=len(axes), at=at, index=index), weight)
        return weight

    def __str__(self) -> str:
        n, k = (len({*heads} - {ZEROS}) for heads in (self.queries, self.keys))
        text = f"{n} heads and {k} KV heads are held as {len(self.queries)} and {len(self.keys)}"
        return f"{text}, {self.padding} of the heads zeros" if self.padding else text


def regrouped(cfg: ModelConfig, params: dict[str, Any], parts: int, pad: bool = False) -> tuple[ModelConfig, Any]:
    """Give the equal model whose heads `parts` divides: its configuration, and its parameters.

    parts: devices over which heads are split (`parts_of`). pad: heads of zeros may be added where the heads themselves
    do not divide, and nothing speaks against it (`obstacle`). Parameters may be arrays, QTensors of any format, or
    jax.ShapeDtypeStructs in the place of arrays. What cannot be divided comes back as it is.
    """
    groups = HeadGroups.of(cfg, parts, pad and obstacle(cfg, params) is None)
    if groups is None:
        return cfg, params
    regroup = groups.weight
    return groups.config(cfg), jax.tree.map(
        lambda axes, weight: regroup(weight, axes), param_axes(cfg), params, is_leaf=lambda x: isinstance(x, tuple)
    )


def parts_of(layout: Sharding) -> int:
    """Count the parts into which a layout splits heads; 1 where it does not split KV heads along with them."""
    targets = layout.rules.targets("heads")
    return math.prod(map(layout.size, targets)) if targets == layout.rules.targets("kv_heads") else 1


def obstacle(cfg: ModelConfig, params: dict[str, Any]) -> str | None:
    """Say why heads of zeros cannot be added to a model, or None."""
    if cfg.alibi is not None:
        return "no head of zeros can be added, for ALiBi's slopes go by the number of heads"
    if cfg.qk_norm == "whole":
        return "no head of zeros can be added, for a norm is over all heads"
    found: list[str] = []
    axes_of = param_axes(cfg)

    def look(axes: Axes, weight: Any) -> None:
        inputs = axes[len(axes) - len(weight.inputs) :] if is_quantized(weight) else ()
        if "heads" in inputs and not weight.format.moves_inputs:
            found.append(f"no head of zeros can be added to weights in {type(weight.format).__name__}")

    jax.tree.map(look, axes_of, params, is_leaf=lambda x: isinstance(x, tuple))
    return found[0] if found else None


def _taken(weight: Any, ndim: int, at: int, index: tuple[int, ...]) -> Any:
    """Take some of a weight along one of its `ndim` axes."""
    if not is_quantized(weight):
        chosen = jnp.take(weight, jnp.maximum(jnp.array(index), 0), axis=at)
        shape = [-1 if axis == at else 1 for axis in range(ndim)]
        is_zero = jnp.array([head == ZEROS for head in index]).reshape(shape)
        return jnp.where(is_zero, jnp.zeros((), chosen.dtype), chosen) if ZEROS in index else chosen
    if at < ndim - len(weight.inputs):
        return weight.format.take_outputs(weight, at, index)
    return weight.format.take_inputs(weight, index)


def _of_shapes(use: Callable[[Any], Any], weight: Any) -> Any:
    """Give use(weight); of shapes, its shapes."""
    is_shape = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(weight))
    return jax.eval_shape(use, weight) if is_shape else use(weight)

"""The bound of a stage: bytes that no program can leave out over the bandwidth, and operations over the peak.

A loaded model and its cache are described as the roofline wants them: bits of what is stored, as it is stored.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.roofline import Operator, Setting, Storage, Timed, analyze
from jaxinfer.analysis.roofline.analysis import Stage, timed
from jaxinfer.analysis.roofline.setting import BITS
from jaxinfer.api import Model
from jaxinfer.cache.store import Cache, Store
from jaxinfer.config import ModelConfig
from jaxinfer.weights.qtensor import is_quantized

_ADDED = ("ops", "weights", "read", "written", "kv_read", "kv_written", "wire")


@dataclass(frozen=True)
class Physics:
    """The least time that a device allows a stage. `operators` are those of one layer each, as of a roofline."""

    hardware: Hardware
    operators: tuple[Timed, ...]

    @property
    def ops(self) -> float:
        return sum(one.operator.ops * one.operator.layers for one in self.operators)

    @property
    def bytes(self) -> float:
        """Count compulsory bytes: weights, rows of the embedding, keys and values. Activations may stay on the chip."""
        return sum(compulsory(one.operator) for one in self.operators)

    @property
    def memory_seconds(self) -> float:
        return self.bytes / self.hardware.bandwidth

    @property
    def compute_seconds(self) -> float:
        return sum(self.computing(one.operator) for one in self.operators)

    @property
    def bound(self) -> Literal["memory", "compute"]:
        return "memory" if self.memory_seconds >= self.compute_seconds else "compute"

    @property
    def seconds(self) -> float:
        """Give the longer of both times: no program of these numbers is faster on this device."""
        return max(self.memory_seconds, self.compute_seconds)

    def computing(self, one: Operator) -> float:
        """Give the seconds that the operations of an operator take at the peak, in all layers."""
        return one.ops * one.layers / self.hardware.peak(one.bits)

    def share(self, one: Operator) -> float:
        """Give the seconds of the bound that are an operator's, in all layers: the shares add up to the bound."""
        return compulsory(one) / self.hardware.bandwidth if self.bound == "memory" else self.computing(one)

    def as_dict(self) -> dict[str, Any]:
        kept = ("kind", "layers", "ops", "bytes", "intensity", "bound", "rate", "seconds")
        rows = [(one.operator.name, one.as_dict()) for one in self.operators]
        return {
            "seconds": self.seconds,
            "ops": self.ops,
            "bytes": self.bytes,
            "bound": self.bound,
            "operators": [{"name": name, **{key: row[key] for key in kept}} for name, row in rows],
        }


def compulsory(one: Operator) -> float:
    """Count the bytes of weights, keys and values that an operator has to move, in all layers."""
    return (one.weights + one.kv_read + one.kv_written) * one.layers


def physics(
    config: ModelConfig, hardware: Hardware, setting: Setting, stage: Stage, lengths: Sequence[float]
) -> Physics:
    """Describe a stage whose rows have these lengths, rows of unlike length too.

    Prefill reads so many tokens of each row; the pending token of a decode step sees so many, itself among them.
    """
    found: dict[str, Operator] = {}
    for length, rows in sorted(collections.Counter(max(1, round(length)) for length in lengths).items()):
        one = analyze(config, hardware, setting.replace(batch=rows, prompt=length))
        for made in one.stages[stage]:
            name = made.operator.name
            found[name] = _joined(found[name], made.operator) if name in found else made.operator
    return Physics(hardware, tuple(timed(one, hardware) for one in found.values()))


def _joined(one: Operator, other: Operator) -> Operator:
    """Add what two groups of rows ask of an operator. The weights are read once for both."""
    sums: dict[str, Any] = {name: getattr(one, name) + getattr(other, name) for name in _ADDED}
    if one.kind != "embedding":
        sums["weights"] = max(one.weights, other.weights)
    return dataclasses.replace(one, **sums)


def setting_of(model: Model, cache: Cache, width: int = 1) -> Setting:
    """Describe a loaded model, and a cache of it, as a setting of the roofline: what is stored, in how many bits."""
    bits = 8 * jax.numpy.dtype(model.dtype).itemsize
    return Setting(
        weights=_weights(model.params),
        activations=bits,
        kv=_stored_kv(model.config, cache, bits),
        width=width,
        kv_budget=_budget(model.config, cache),
        prompt_logits=False,
    )


def _weights(params: Any) -> Storage:
    """Give the storage of the layers' matrices, all together, and that of the head."""
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_quantized)[0]
    named = [("/".join(entry.key for entry in path), leaf) for path, leaf in leaves]
    matrices = [leaf for name, leaf in named if name.startswith("segment_") and len(leaf.shape) >= 3]
    tables = [leaf for name, leaf in named if name in ("embed/embedding", "head/kernel")]
    return dataclasses.replace(_storage(matrices), embedding=_storage(tables))


def _storage(weights: Iterable[Any]) -> Storage:
    stored = list(weights)
    return storage(sum(one.nbytes for one in stored), sum(math.prod(one.shape) for one in stored))


def storage(size: float, numbers: float) -> Storage:
    """Give the storage of so many numbers in so many bytes: bits of a code, and what is left of scales."""
    each = 8 * size / numbers
    bits = max(width for width in BITS if width <= each or width == BITS[0])
    return Storage(bits, scales=each - bits)


def _budget(config: ModelConfig, cache: Cache) -> int | None:
    """Give the slots that a policy keeps in layers without a window; more than a text has are no bound."""
    slots = [
        cache.stores[kind.name].pos.shape[1]
        for kind in config.kinds
        if not kind.window and isinstance(cache.stores.get(kind.name), Store)
    ]
    return min(slots, default=None)


def _stored_kv(config: ModelConfig, cache: Cache, bits: int) -> Storage:
    stores = [store for store in cache.stores.values() if isinstance(store, Store)]
    _, *widths = config.stored
    size = numbers = 0.0
    for store in stores:
        leaves = jax.tree.leaves(store.k)
        tokens = math.prod(leaves[0].shape[:4])  # layers, rows or blocks, heads and slots
        numbers += tokens * sum(widths)
        size += sum(leaf.nbytes for leaf in jax.tree.leaves((store.k, store.v)))
    return storage(size, numbers) if numbers else Storage(bits)

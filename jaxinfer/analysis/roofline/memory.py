"""The memory that a setting needs of each device, and what fits."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jaxinfer.analysis.roofline.arithmetic import Number, is_one, largest, over, smallest, where_at_most
from jaxinfer.analysis.roofline.call import Call
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.analysis.roofline.recurrent import STATE_BYTES
from jaxinfer.analysis.roofline.setting import Setting
from jaxinfer.config import LayerKind, ModelConfig

MOST = 2**40  # rows or tokens that are looked for


@dataclass(frozen=True)
class Memory:
    """Bytes of one device: weights, the cache at its fullest, what one layer's call holds, and logits."""

    weights: Number
    kv: Number
    activations: Number
    logits: Number

    @property
    def total(self) -> Number:
        return self.weights + self.kv + self.activations + self.logits

    def as_dict(self) -> dict[str, Number]:
        return {**vars(self), "total": self.total}


def memory(config: ModelConfig, setting: Setting, call: Call, made: Sequence[Operator]) -> Memory:
    """Count the bytes that one device holds while it runs a call whose operators are `made`.

    Activations are the residual stream and the largest operator's inputs and outputs. Layers are spread over the
    pipeline's stages, of which each holds its own; each device has the embedding and the head. Over fsdp a device holds
    its part of every weight, and two layers in whole: the one that runs and the next.
    """
    within = [one for one in made if one.kind in ("linear", "scan", "norm") and one.name != "final_norm"]
    of_layers = over(sum_of(one.layers * weights_held(one) for one in within), setting.ticks)
    if setting.depth != 1.0:
        of_layers = of_layers / setting.depth
    table = config.d_model * config.vocab_size * setting.stored_weights.outside.bytes(config.d_model)
    tables = table * (1 if config.tie_embeddings else 2) / setting.tensor
    if config.absolute_positions == "learned":
        tables = tables + config.max_positions * config.d_model * call.activation
    inner = [one.read + one.written for one in made if one.kind not in ("head", "embedding", "collective")]
    residual = call.held_rows * call.tokens * config.d_model * call.activation
    gathered: Number = 0
    if not is_one(setting.fsdp):
        gathered = where_at_most(setting.fsdp, 1, 0, 2 * of_layers / config.n_layers)
    return Memory(
        over(of_layers / setting.pipeline + tables, setting.fsdp),
        cache(config, setting, setting.prompt + setting.generate),
        residual + largest(*inner) + gathered,
        call.held_rows * call.scored * config.vocab_size * 4 / setting.tensor,
    )


def weights_held(one: Operator) -> Number:
    """Count the bytes of weights that lie in memory for an operator in one layer, or are gathered before it."""
    return one.weights if one.held is None else one.held


def cache(config: ModelConfig, setting: Setting, tokens: Number) -> Number:
    """Count the bytes of the cache with so many tokens in each row: windows and a policy's budget bound the slots.

    Slots are split over the context axis, heads over the tensor axis: where it has more devices than there are heads,
    each head is held by a group of them.
    """
    return (
        sum_of(config.count(kind) * _of_layer(config, setting, kind, tokens) for kind in config.kinds)
        / setting.pipeline
    )


def _of_layer(config: ModelConfig, setting: Setting, kind: LayerKind, tokens: Number) -> Number:
    if kind.mixer:
        sizes = kind.mixer.carried(config).values()
        numbers = sum(math.prod(size) for size in sizes)
        return setting.held_rows * numbers * STATE_BYTES / setting.tensor
    heads, key, value = config.stored
    share = smallest(setting.tensor, heads)
    slots = tokens
    for bound in (kind.window, setting.kv_budget):
        slots = slots if bound is None else smallest(slots, bound)
    slots = over(slots, setting.context)
    return setting.held_rows * slots * (heads / share) * (key + value) * setting.stored_kv.bytes(key)


def sum_of(values: Iterable[Number]) -> Number:
    """Add numbers or formulas."""
    total: Number = 0
    for value in values:
        total = value + total
    return total


def most(fits: Callable[[int], bool]) -> int:
    """Find the largest whole number that fits, where all below it do: 0 if not even 1 does."""
    low, high = 0, 1
    while high < MOST and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low

"""The collectives of a call: what a device sends to the others along each axis of the mesh."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxinfer.analysis.roofline.arithmetic import Number, where_at_most
from jaxinfer.analysis.roofline.attention import Shape
from jaxinfer.analysis.roofline.call import Call
from jaxinfer.analysis.roofline.memory import sum_of, weights_held
from jaxinfer.analysis.roofline.operator import Operator

STATISTIC_BYTES = 4  # a partial softmax is merged in float32


def all_reduce(call: Call, name: str, layers: Number) -> Operator:
    """Give the sum of partial outputs over the tensor axis: each device of a ring sends 2 (n - 1) / n of them."""
    n = call.setting.tensor
    numbers = call.rows * call.tokens * call.config.d_model
    wire = numbers * call.activation * (2 * (n - 1) / n)
    return Operator(name, "collective", layers, wire=wire, bits=call.bits, over=("tensor", "reduce"))


def gather(call: Call, layers: Number, layer: Sequence[Operator]) -> Operator:
    """Give the gathering of a layer's weights over the fsdp axis, before it runs (ZeRO-3, Rajbhandari et al. 2020).

    A device holds an n-th of the bytes W that the layer's operators hold, and passes on n - 1 such parts in a ring:
    (n - 1) / n W, in every call.
    """
    n = call.setting.fsdp
    held = sum_of(weights_held(one) for one in layer if one.kind in ("linear", "scan", "norm"))
    return Operator("fsdp_gather", "collective", layers, wire=held * ((n - 1) / n), over=("fsdp", "gather"))


def over_context(call: Call, layers: Number, shape: Shape) -> Iterator[Operator]:
    """Give what attention sends along the context axis of n devices (`kernels/context.py`).

    In a decode step each device reads its own slots, and the partial softmaxes are merged: of each query and head the
    largest log-sum-exp by one all-reduce, a value vector and a weight by another, in float32. That is H + 2 numbers, of
    which a device sends 2 (n - 1) / n.

    In a prompt a device has an n-th of the tokens of a chunk of T. Their keys and values go around the ring, n - 1
    times to the neighbour (Liu et al. 2023), and then to the devices that hold their slots, by an all-to-all. To meet
    the slots of earlier chunks, where there are any, all queries are gathered, and the partial softmaxes of T queries
    are scattered back as sums: (n - 1) / n of H numbers there and of H + 1 back, and 2 (n - 1) / n of the maxima.
    """
    n = call.setting.context
    share, of_all = (n - 1) / n, shape.rows * shape.heads * shape.tokens * (1 if call.decoding else n)
    if call.decoding:
        yield _send_over(call, "context_max", layers, of_all * STATISTIC_BYTES * 2 * share, "reduce")
        sums = of_all * (shape.value_width + 1) * STATISTIC_BYTES
        yield _send_over(call, "context_merge", layers, sums * 2 * share, "reduce")
        return
    width = shape.key_width + (shape.value_width if shape.stored_values else 0)
    own = shape.rows * shape.tokens * shape.kv_heads * width * call.activation
    yield _send_over(call, "context_ring", layers, own * (n - 1), "ring")
    yield _send_over(call, "context_commit", layers, own * share, "exchange")
    earlier = call.context - shape.tokens * n
    moved = {
        "context_queries": (of_all * shape.key_width * call.activation * share, "gather"),
        "context_scatter": (of_all * (shape.value_width + 1) * STATISTIC_BYTES * share, "gather"),
        "context_max": (of_all * STATISTIC_BYTES * 2 * share, "reduce"),
    }
    for name, (wire, pattern) in moved.items():
        yield _send_over(call, name, layers * where_at_most(earlier, 0, 0, 1), wire, pattern)


def _send_over(call: Call, name: str, layers: Number, wire: Number, pattern: Any) -> Operator:
    return Operator(name, "collective", layers, wire=wire, bits=call.bits, over=("context", pattern))


def send(call: Call) -> Operator:
    """Give the sends between the stages of a pipeline: the residual of a microbatch, from each stage to the next.

    One after the other there are M + P - 2 of M microbatches and P stages: all but the last tick ends with one.
    """
    n, parts = call.setting.pipeline, call.setting.microbatches
    sent = call.rows * call.tokens * call.config.d_model * call.activation
    times = n - 1 + (parts - 1)
    return Operator("pipeline_send", "collective", times, wire=sent, bits=call.bits, over=("pipeline", "pass"))

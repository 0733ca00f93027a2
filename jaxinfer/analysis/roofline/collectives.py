"""The collectives of a call: what a device sends to the others along each axis of the mesh."""

from collections.abc import Sequence

from jaxinfer.analysis.roofline.arithmetic import Number
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


def over_context(call: Call, layers: Number, shape: Shape) -> Operator:
    """Give what attention sends along the context axis of n devices.

    In a prompt a device passes the keys and values of all other parts on to its neighbour: n - 1 times an n-th of the S
    that the last token sees (ring attention, Liu et al. 2023). In a decode step each device reads its own slots, and
    the partial softmaxes are merged by an all-reduce: of each query and head a value vector, a sum and a maximum in
    float32, of which a device sends 2 (n - 1) / n.
    """
    n = call.setting.context
    if call.decoding:
        numbers = shape.rows * shape.tokens * shape.heads * (shape.value_width + 2)
        wire = numbers * STATISTIC_BYTES * (2 * (n - 1) / n)
        return Operator("context_merge", "collective", layers, wire=wire, over=("context", "reduce"))
    width = shape.key_width + (shape.value_width if shape.stored_values else 0)
    keys = shape.rows * call.context * shape.kv_heads
    wire = keys * width * call.activation * ((n - 1) / n)
    return Operator("context_ring", "collective", layers, wire=wire, over=("context", "ring"))


def send(call: Call) -> Operator:
    """Give the sends between the stages of a pipeline: the residual of a microbatch, from each stage to the next.

    One after the other there are M + P - 2 of M microbatches and P stages: all but the last tick ends with one.
    """
    n, parts = call.setting.pipeline, call.setting.microbatches
    sent = call.rows * call.tokens * call.config.d_model * call.activation
    times = n - 1 + (parts - 1)
    return Operator("pipeline_send", "collective", times, wire=sent, bits=call.bits, over=("pipeline", "pass"))

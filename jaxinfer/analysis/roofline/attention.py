"""The operators of softmax attention: scores, softmax and values, or one fused operator."""

from dataclasses import dataclass

from jaxinfer.analysis.roofline.arithmetic import Number, ceil, floor, largest, smallest, where_at_most
from jaxinfer.analysis.roofline.operator import Operator

SOFTMAX_OPS = 5  # a score: maximum, difference, exponential, sum, quotient


@dataclass(frozen=True)
class Shape:
    """The attention of one layer on one device.

    rows, tokens: B and T of the call; context: tokens that the last query sees, itself among them. reach: slots that a
    query sees at most, by a window or a policy's budget; None: all. Heads may be fewer than one where they are split.
    """

    rows: Number
    tokens: Number
    context: Number
    heads: Number
    kv_heads: Number
    key_width: int
    value_width: int
    reach: Number | None
    activation: Number  # bytes
    kv: Number  # bytes of a number in a key or value, scales included
    stored_values: bool = True  # False: values are columns of the keys (latent attention)
    bits: Number = 16


def pairs(tokens: Number, context: Number, reach: Number | None) -> Number:
    """Count the pairs of query and visible key in a row.

    The q-th token of a text sees q keys, itself among them, or `reach` where that is fewer; the queries are those from
    context - tokens + 1 to context. With F(m) = m (m + 1) / 2 for m up to the reach R, and
    R (R + 1) / 2 + (m - R) R beyond it, the sum is F(context) - F(context - tokens). A whole prompt of s tokens without
    a window has s (s + 1) / 2, which is half of the square that a tool counts that knows no causality.
    """

    def up_to(m: Number) -> Number:
        whole = m * (m + 1) / 2
        if reach is None:
            return whole
        return where_at_most(m, reach, whole, reach * (reach + 1) / 2 + (m - reach) * reach)

    return up_to(context) - up_to(context - tokens)


def keys_read(tokens: Number, context: Number, reach: Number | None) -> Number:
    """Count the distinct keys that a row's queries see: all, or those within the reach of the first."""
    return context if reach is None else smallest(context, reach + tokens - 1)


def operators(shape: Shape, layers: Number, flash: bool, on_chip: Number, suffix: str = "") -> list[Operator]:
    """Give qk_matmul, softmax and sv_matmul, or fused_attention, of one layer."""
    b, t, n, g = shape.rows, shape.tokens, shape.heads, shape.kv_heads
    visible = pairs(t, shape.context, shape.reach) * b * n
    keys = keys_read(t, shape.context, shape.reach) * b * g
    scores = 2 * visible * shape.key_width
    values = 2 * visible * shape.value_width
    queries = t * b * n * shape.key_width * shape.activation
    out = t * b * n * shape.value_width * shape.activation
    key_bytes = keys * shape.key_width * shape.kv
    value_bytes = keys * shape.value_width * shape.kv
    bits = shape.bits
    if flash:
        a_key = shape.key_width + (shape.value_width if shape.stored_values else 0)
        return [
            Operator(
                f"fused_attention{suffix}",
                "attention",
                layers,
                ops=scores + values + SOFTMAX_OPS * visible,
                read=queries,
                written=out,
                kv_read=keys_streamed(shape, on_chip) * b * g * a_key * shape.kv,
                bits=bits,
            )
        ]
    kept = visible * shape.activation  # a score a pair
    return [
        Operator(f"qk_matmul{suffix}", "attention", layers, scores, 0, queries, kept, key_bytes, bits=bits),
        Operator(f"softmax{suffix}", "attention", layers, SOFTMAX_OPS * visible, 0, kept, kept, bits=bits),
        Operator(f"sv_matmul{suffix}", "attention", layers, values, 0, kept, out, value_bytes, bits=bits),
    ]


def keys_streamed(shape: Shape, on_chip: Number) -> Number:
    """Count the keys that fused attention reads for a head of a row: those that each block of queries sees.

    FlashAttention (Dao et al. 2022, algorithm 1, line 1) holds min(ceil(M / 4d), d) queries of width d where M numbers
    fit on the chip. The query heads of a group read the same keys, so a block is of whole tokens, with all heads of the
    group: B = block / group of them. A block of T tokens from a context c - T + 1 on sees min(c, R + B - 1) keys for a
    reach R. Of n blocks in a prompt, the first n - 1 end at o + B, o + 2 B and so on, where o tokens came before: up to
    the j-th they see all keys before them, j o + B j (j + 1) / 2 together, and the others R + B - 1 each.
    """
    width, group, before = shape.key_width, shape.heads / shape.kv_heads, shape.context - shape.tokens
    queries = smallest(ceil(on_chip / (4 * width * shape.activation)), width)
    block, parts = largest(1, floor(queries / group)), ceil(group / queries)
    full = ceil(shape.tokens / block) - 1
    last = keys_read(shape.tokens - full * block, shape.context, shape.reach)
    if shape.reach is None:
        return parts * (full * before + block * full * (full + 1) / 2 + last)
    most = shape.reach + block - 1
    j = smallest(full, largest(0, floor((most - before) / block)))
    return parts * (j * before + block * j * (j + 1) / 2 + (full - j) * most + last)

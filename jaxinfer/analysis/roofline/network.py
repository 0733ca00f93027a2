"""The operators of one call of a network, on one device: what `llm_viewer` leaves out is here.

causal attention counts the pairs that are seen, windows and budgets bound them; queries of a group share keys
the activation is over the width of the MLP, the head is a multiply-add, its head width is the model's own
RoPE, the embedding, norms of q and k, norms after, and the final one are operators
codes bring their scales; experts are read as often as they are touched; devices exchange what they have to
"""

from collections.abc import Iterator
from dataclasses import replace

from jaxinfer.analysis.roofline import attention, collectives, mlp
from jaxinfer.analysis.roofline.arithmetic import Number, is_one, largest, over, smallest
from jaxinfer.analysis.roofline.call import Call
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.analysis.roofline.recurrent import mixer
from jaxinfer.config import LayerKind


def operators(call: Call) -> list[Operator]:
    """Give all operators of the call, layers of one kind as one with how many they are."""
    config, kinds = call.config, call.config.kinds
    made = [_embedding(call)]
    for kind in kinds:
        suffix = f"[{kind.name}]" if len(kinds) > 1 else ""
        layers = config.count(kind) * call.setting.depth * call.setting.ticks
        layer = list(_layer(call, kind, layers))
        layer.append(collectives.gather(call, layers, layer))
        made += [replace(one, name=one.name + suffix) for one in layer]
    made += [] if is_one(call.setting.pipeline) else [collectives.send(call)]
    if call.scored:
        made += [call.norm("final_norm", 1, config.d_model), _head(call)]
    size = {"tokens": call.rows * call.tokens, "context": call.context}
    return [replace(one, **size) for one in made if not all(map(_is_zero, (one.ops, one.bytes, one.wire)))]


def _is_zero(value: Number) -> bool:
    return isinstance(value, int | float) and value == 0


def _embedding(call: Call) -> Operator:
    """Give the look-up: a row of the table a token, read as it is stored and written as an activation."""
    numbers = call.held_rows * call.tokens * call.config.d_model
    stored = call.setting.stored_weights.outside.bytes(call.config.d_model)
    return Operator("embedding", "embedding", 1, 0, numbers * stored, 0, numbers * call.activation, bits=call.bits)


def _head(call: Call) -> Operator:
    """Give the product with the vocabulary: 2 D V operations a scored token; its logits are float32."""
    config, scored = call.config, call.held_rows * call.scored
    size = config.d_model * config.vocab_size
    return Operator(
        "lm_head",
        "head",
        1,
        ops=2 * scored * size / call.setting.tensor,
        weights=size * call.setting.stored_weights.outside.bytes(config.d_model) / call.setting.tensor,
        read=scored * config.d_model * call.activation,
        written=scored * config.vocab_size * 4 / call.setting.tensor,
        bits=call.bits,
    )


def _layer(call: Call, kind: LayerKind, layers: Number) -> Iterator[Operator]:
    config, d = call.config, call.config.d_model
    if config.pre_norms:
        yield call.norm("attn_norm", layers, d)
    if kind.mixer:
        yield from mixer(call, kind, layers)
    else:
        yield from (_latent if config.mla else _heads)(call, kind, layers)
    yield collectives.all_reduce(call, "attn_all_reduce", layers)
    if config.post_norms:
        yield call.norm("attn_post_norm", layers, d)
    yield call.each("attn_add", layers, d, 1, read=2)
    if not config.d_ff and not kind.moe:
        return
    if config.pre_norms and not config.shared_norm:
        yield call.norm("mlp_norm", layers, d)
    if kind.moe:
        yield from mlp.experts(call, kind.moe, layers)
    else:
        yield from mlp.dense(call, layers, config.d_ff)
    yield collectives.all_reduce(call, "mlp_all_reduce", layers)
    if config.post_norms:
        yield call.norm("mlp_post_norm", layers, d)
    yield call.each("mlp_add", layers, d, 1, read=2)


def _heads(call: Call, kind: LayerKind, layers: Number) -> Iterator[Operator]:
    """Give attention with keys and values of its own; KV heads fewer than the devices are held by several of them."""
    config, setting = call.config, call.setting
    d, h, n, tensor = config.d_model, config.head_dim, config.n_heads, setting.tensor
    kv_share = smallest(tensor, config.n_kv_heads)
    kv_heads = config.n_kv_heads / kv_share
    yield call.linear("q_proj", layers, d, n * h, tensor)
    yield call.linear("k_proj", layers, d, config.n_kv_heads * h, kv_share, out="kv")
    yield call.linear("v_proj", layers, d, config.n_kv_heads * h, kv_share, out="kv")
    if config.qk_norm:
        yield call.norm("qk_norm", layers, (n / tensor + kv_heads) * h)
    if kind.rope:
        width = kind.rope.width or h
        yield call.each("rope", layers, (n / tensor + kv_heads) * width, 3)
    shape = attention.Shape(
        call.rows, call.tokens, _here(call, call.context), n / tensor, kv_heads, h, h, _reach(call, kind),
        call.activation, setting.stored_kv.bytes(h), bits=largest(setting.stored_kv.bits, setting.activations),
    )  # fmt: skip
    yield from attention.operators(shape, layers, setting.flash, call.on_chip)
    yield from collectives.over_context(call, layers, shape)
    yield call.linear("out_proj", layers, n * h, d, tensor, out="partial")


def _latent(call: Call, kind: LayerKind, layers: Number) -> Iterator[Operator]:
    """Give latent attention in its absorbed form (DeepSeek-V2, section 2.1): one key of kv_rank + rope_dim a token.

    Queries move to the latents (q_absorb), and what is read there moves to values (v_absorb); all heads share the key,
    whose first kv_rank columns are the values.
    """
    config, setting, mla = call.config, call.setting, call.config.mla
    assert mla is not None
    d, n, tensor = config.d_model, config.n_heads, setting.tensor
    stored = mla.kv_rank + mla.rope_dim
    if mla.q_rank:
        yield call.linear("q_down_proj", layers, d, mla.q_rank)
        yield call.norm("q_norm", layers, mla.q_rank)
    yield call.linear("q_proj", layers, mla.q_rank or d, n * config.head_dim, tensor)
    yield call.linear("kv_down_proj", layers, d, stored, out="kv")
    yield call.norm("kv_norm", layers, mla.kv_rank)
    if kind.rope:
        yield call.each("rope", layers, (n / tensor + 1) * mla.rope_dim, 3)
    yield _by_head(call, "q_absorb", layers, mla.nope_dim, mla.kv_rank)
    shape = attention.Shape(
        call.rows, call.tokens, _here(call, call.context), n / tensor, 1, stored, mla.kv_rank, _reach(call, kind),
        call.activation, setting.stored_kv.bytes(stored), False, largest(setting.stored_kv.bits, setting.activations),
    )  # fmt: skip
    yield from attention.operators(shape, layers, setting.flash, call.on_chip)
    yield from collectives.over_context(call, layers, shape)
    yield _by_head(call, "v_absorb", layers, mla.kv_rank, mla.v_dim)
    yield call.linear("out_proj", layers, n * mla.v_dim, d, tensor, out="partial")


def _by_head(call: Call, name: str, layers: Number, ic: int, oc: int) -> Operator:
    """Give a product of each head with a matrix of its own."""
    tokens, n = call.rows * call.tokens, call.config.n_heads / call.setting.tensor
    weights = n * ic * oc * call.activation  # these stay as they are under quantization
    moved = tokens * n * call.activation
    return Operator(name, "linear", layers, 2 * tokens * n * ic * oc, weights, moved * ic, moved * oc, bits=call.bits)


def _here(call: Call, slots: Number) -> Number:
    """Count the slots that a step reads on this device: its part of the context axis. A prompt's ring reads all."""
    return over(slots, call.setting.context) if call.decoding else slots


def _reach(call: Call, kind: LayerKind) -> Number | None:
    """Give the slots that a query sees at most: a window's, and in decode steps a policy's budget.

    A prompt is read whole whatever the budget, since policies drop slots after it.
    """
    budget = call.setting.kv_budget if call.decoding else None
    if budget is None:
        return None if kind.window is None else _here(call, kind.window)
    return _here(call, budget if kind.window is None else smallest(budget, kind.window))

"""gpt-oss: learned attention sinks, windows in every other layer, experts with biases in one tensor a projection.

The published files hold the experts in MXFP4: blocks of 32 four-bit floats with a shared power of two.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxinfer.checkpoint.families.common import (
    EMBED,
    NORMS,
    QUERY_AND_KEY,
    VALUE_AND_OUTPUT,
    biases,
    decoder_fields,
    gguf_decoder,
    hf_decoder,
    layer,
    window_fields,
    windowed,
)
from jaxinfer.checkpoint.families.rope import rope_group, rope_of
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapped import Bounds
from jaxinfer.checkpoint.mapping import Family, Part, Rule, Tensor, Tensors
from jaxinfer.config import LayerKind, ModelConfig, MoE, Rope

# Configurations leave these out: transformers fills them in.
_YARN = dict(rope_type="yarn", factor=32.0, truncate=False, original_max_position_embeddings=4096)
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # OCP MX, E2M1


def _config(fields: Fields) -> ModelConfig:
    n_layers = fields.integer("num_hidden_layers")
    if rope_group(fields) is None:
        fields = replace(fields, values=fields.values | {"rope_parameters": _YARN})
    types = fields.listed("layer_types", n_layers, ("sliding_attention", "full_attention"), None)
    if types is None:
        types = ["full_attention" if n % 2 else "sliding_attention" for n in range(n_layers)]
    fields.require("swiglu_alpha", 1.702)
    fields.require("swiglu_limit", 7.0)
    experts, top_k = fields.integer("num_local_experts", 128), fields.integer("num_experts_per_tok", 4)
    moe = MoE(experts, top_k, fields.integer("intermediate_size"), router="topk", bias=True)
    bias = fields.flag("attention_bias", True)
    settings = dict(attention_bias=bias, output_bias=bias, sinks=True, activation="swiglu_clamped")
    eps = fields.positive("rms_norm_eps", 1e-5)
    kinds = windowed(fields, types, n_layers, moe, window=128, rope=rope_of(fields, 150_000.0))
    return hf_decoder(fields, "gpt_oss", kinds=kinds, norm_eps=eps, head_dim=fields.integer("head_dim", 64), **settings)


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    """Read a GGUF file. What it lacks is as published: windows in even layers, YaRN's blend of unrounded dimensions."""
    window, width = fields.integer("attention.sliding_window"), fields.integer("feed_forward_length")
    d_ff = fields.integer("expert_feed_forward_length", width)
    experts, top_k = fields.integer("expert_count"), fields.integer("expert_used_count")
    moe = MoE(experts, top_k, d_ff, router="topk", bias=True)

    def kinds(rope: Rope, n: int) -> list[LayerKind]:
        if rope.scaling:
            rope = replace(rope, scaling=replace(rope.scaling, truncate=False))
        local, everything = LayerKind("local", rope, window, moe), LayerKind("global", rope, moe=moe)
        return [everything if i % 2 else local for i in range(n)]

    settings = dict(attention_bias=True, output_bias=True, sinks=True, activation="swiglu_clamped")
    return gguf_decoder(fields, tensors, "gpt_oss", kinds=kinds, **settings)


def _fields(cfg: ModelConfig) -> dict[str, Any]:
    moe = cfg.kinds[0].moe
    assert moe is not None
    return decoder_fields(cfg) | {
        **window_fields(cfg),
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.d_ff,
    }


def _half(start: int, axis: int):
    """Return the part of a tensor in which gate and up come in turn, one column each."""
    return lambda cfg: Part(start, 1, 2, cfg.kinds[0].moe.d_ff, axis)


def _experts(param: str, hf: str, axes: str, gguf_axes: str, part=None) -> Rule:
    projection, _, bias = param.partition("_")
    gguf = f"blk.{{n}}.ffn_{projection}_exps.{bias or 'weight'}"
    hf = f"model.layers.{{n}}.mlp.experts.{hf}"
    return Rule(f"moe/{param}", hf, gguf, axes, gguf_axes=gguf_axes, part=part, gguf_part=None)


def unpacked(tensors: Tensors) -> Tensors:
    """Return the file's tensors, with each pair `*_blocks`, `*_scales` as the one tensor that it packs."""
    found = {name: x for name, x in tensors.items() if not name.endswith(("_blocks", "_scales"))}
    for name, blocks in tensors.items():
        stem = name.removesuffix("_blocks")
        if stem != name and f"{stem}_scales" in tensors:
            found[stem] = _mxfp4(blocks, tensors[f"{stem}_scales"])
    return found


def _mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Widen blocks uint8[E, out, in / 32, 16], two numbers a byte, low half first, by scales uint8[E, out, in / 32]."""
    experts, n_out, groups, half = blocks.shape

    def boxes(bounds: Bounds) -> np.ndarray:
        part, (start, stop), outputs = bounds
        first, last = start // (2 * half), -(-stop // (2 * half))
        packed = blocks.box((part, outputs, (first, last), (0, half)))
        numbers = np.stack([_FP4[packed & 15], _FP4[packed >> 4]], axis=-1)
        powers = scales.box((part, outputs, (first, last))).astype(np.int32) - 127
        whole = np.ldexp(numbers.reshape(*packed.shape[:3], 2 * half), powers[..., None])
        whole = whole.reshape(*packed.shape[:2], -1)[..., start - first * 2 * half : stop - first * 2 * half]
        return whole.swapaxes(1, 2)

    shape = (experts, groups * 2 * half, n_out)
    return Tensor(shape, lambda start, stop: boxes(((start, stop), (0, shape[1]), (0, n_out))), boxes=boxes)


GPT_OSS = Family(
    name="gpt_oss",
    rules=(
        *EMBED,
        NORMS[0],
        layer("mlp_norm/scale", "post_attention_layernorm", "post_attention_norm", "d -> d"),
        NORMS[2],
        *QUERY_AND_KEY,
        *VALUE_AND_OUTPUT,
        *biases(*QUERY_AND_KEY, *VALUE_AND_OUTPUT),
        Rule("attention/sinks", "model.layers.{n}.self_attn.sinks", "blk.{n}.attn_sinks.weight", "n -> n"),
        layer("moe/router/kernel", "mlp.router", "ffn_gate_inp", "e d -> e d"),
        Rule("moe/router/bias", "model.layers.{n}.mlp.router.bias", "blk.{n}.ffn_gate_inp.bias", "e -> e"),
        _experts("gate", "gate_up_proj", "e f d -> e d f", "e f d -> e f d", _half(0, 2)),
        _experts("up", "gate_up_proj", "e f d -> e d f", "e f d -> e f d", _half(1, 2)),
        _experts("down", "down_proj", "e d f -> e f d", "e d f -> e d f"),
        _experts("gate_bias", "gate_up_proj_bias", "e f -> e f", "e f -> e f", _half(0, 1)),
        _experts("up_bias", "gate_up_proj_bias", "e f -> e f", "e f -> e f", _half(1, 1)),
        _experts("down_bias", "down_proj_bias", "e d -> e d", "e d -> e d"),
    ),
    hf_types=("gpt_oss",),
    hf_defaults=dict(max_position_embeddings=131_072, num_key_value_heads=8),
    hf_config=_config,
    hf_fields=_fields,
    gguf_arch="gpt-oss",
    gguf_config=_from_gguf,
    hf_tensors=unpacked,
    hf_packing="mxfp4",
    ignore=r"lm_head\.weight",
)

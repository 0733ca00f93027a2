"""gpt-oss: learned attention sinks, windows in every other layer, experts with biases in one tensor a projection.

The published files hold the experts in MXFP4: blocks of 32 four-bit floats with a shared power of two.
"""

from typing import Any

import numpy as np

from jaxinfer.checkpoint.families.common import (
    EMBED,
    NORMS,
    QUERY_AND_KEY,
    VALUE_AND_OUTPUT,
    biases,
    decoder_fields,
    hf_decoder,
    layer,
    window_fields,
    windowed,
)
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Part, Rule, Tensor, Tensors
from jaxinfer.config import ModelConfig, MoE

_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # OCP MX, E2M1


def _config(fields: Fields) -> ModelConfig:
    n_layers = fields.integer("num_hidden_layers")
    types = fields.get("layer_types", None)
    if types is None:
        types = ["full_attention" if n % 2 else "sliding_attention" for n in range(n_layers)]
    fields.require("swiglu_alpha", 1.702)
    fields.require("swiglu_limit", 7.0)
    moe = MoE(
        experts=fields.integer("num_local_experts", 128),
        top_k=fields.integer("num_experts_per_tok", 4),
        d_ff=fields.integer("intermediate_size"),
        router="topk",
        bias=True,
    )
    bias = fields.flag("attention_bias", True)
    settings = dict(attention_bias=bias, output_bias=bias, sinks=True, activation="swiglu_clamped")
    eps = fields.number("rms_norm_eps", 1e-5)
    kinds = windowed(fields, types, n_layers, moe)
    return hf_decoder(fields, "gpt_oss", kinds=kinds, norm_eps=eps, head_dim=fields.integer("head_dim", 64), **settings)


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
    """Gate and up come in turn, one column each."""
    return lambda cfg: Part(start, 1, 2, cfg.kinds[0].moe.d_ff, axis)


def _experts(param: str, hf: str, axes: str, part=None) -> Rule:
    return Rule(f"moe/{param}", f"model.layers.{{n}}.mlp.experts.{hf}", None, axes, part=part)


def unpacked(tensors: Tensors) -> Tensors:
    """The file's tensors, with each pair `*_blocks`, `*_scales` as the one tensor that it is packed of."""
    found = {name: x for name, x in tensors.items() if not name.endswith(("_blocks", "_scales"))}
    for name, blocks in tensors.items():
        stem = name.removesuffix("_blocks")
        if stem != name and f"{stem}_scales" in tensors:
            found[stem] = _mxfp4(blocks, tensors[f"{stem}_scales"])
    return found


def _mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks uint8[E, out, in / 32, 16], two numbers a byte, the low half first; scales uint8[E, out, in / 32]."""
    experts, n_out, groups, half = blocks.shape

    def rows(start: int, stop: int) -> np.ndarray:
        packed = blocks.rows(start, stop)
        numbers = np.stack([_FP4[packed & 15], _FP4[packed >> 4]], axis=-1)
        powers = scales.rows(start, stop).astype(np.int32) - 127
        whole = np.ldexp(numbers.reshape(*packed.shape[:3], 2 * half), powers[..., None])
        return whole.reshape(stop - start, n_out, -1).swapaxes(1, 2)

    return Tensor((experts, groups * 2 * half, n_out), rows)


GPT_OSS = Family(
    name="gpt_oss",
    rules=(
        *EMBED,
        *NORMS,
        *QUERY_AND_KEY,
        *VALUE_AND_OUTPUT,
        *biases(*QUERY_AND_KEY, *VALUE_AND_OUTPUT),
        Rule("attention/sinks", "model.layers.{n}.self_attn.sinks", None, "n -> n"),
        layer("moe/router/kernel", "mlp.router", None, "e d -> e d"),
        Rule("moe/router/bias", "model.layers.{n}.mlp.router.bias", None, "e -> e"),
        _experts("gate", "gate_up_proj", "e f d -> e d f", _half(0, 2)),
        _experts("up", "gate_up_proj", "e f d -> e d f", _half(1, 2)),
        _experts("down", "down_proj", "e d f -> e f d"),
        _experts("gate_bias", "gate_up_proj_bias", "e f -> e f", _half(0, 1)),
        _experts("up_bias", "gate_up_proj_bias", "e f -> e f", _half(1, 1)),
        _experts("down_bias", "down_proj_bias", "e d -> e d"),
    ),
    hf_types=("gpt_oss",),
    hf_config=_config,
    hf_fields=_fields,
    hf_tensors=unpacked,
    hf_packing="mxfp4",
    ignore=r"lm_head\.weight",
)

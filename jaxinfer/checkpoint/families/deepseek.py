"""DeepSeek-V2 and V3: latent attention, many small experts in groups, experts that all tokens share."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    NORMS,
    VALUE_AND_OUTPUT,
    decoder_fields,
    gguf_decoder,
    hf_decoder,
    layer,
)
from jaxinfer.checkpoint.families.moe import experts, shared_experts
from jaxinfer.checkpoint.families.rope import rope_group, rope_of, yarn_growth
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Part, Rule, Tensor, Tensors
from jaxinfer.config import MLA, LayerKind, ModelConfig, MoE, Rope
from jaxinfer.errors import InputError, shown


def _latent(fields: Fields) -> MLA:
    return MLA(
        kv_rank=fields.integer("kv_lora_rank", 512),
        nope_dim=fields.integer("qk_nope_head_dim", 128),
        rope_dim=fields.integer("qk_rope_head_dim", 64),
        v_dim=fields.integer("v_head_dim", 128),
        q_rank=fields.integer("q_lora_rank", None),
    )


def _decoder(fields: Fields, family: str, moe: MoE | None, first: int, interleaved: bool) -> ModelConfig:
    """Read a decoder: `first` layers without experts, then layers with them."""
    mla = _latent(fields)
    rope = rope_of(fields, width=mla.rope_dim, interleaved=interleaved)
    n_layers = fields.integer("num_hidden_layers")
    plain, sparse = LayerKind("dense", rope), LayerKind("sparse", rope, moe=moe)
    head_dim = mla.nope_dim + mla.rope_dim
    bias = fields.flag("attention_bias", False)
    return hf_decoder(
        fields,
        family,
        kinds=[plain if n < first else sparse for n in range(n_layers)],
        mla=mla,
        head_dim=head_dim,
        n_kv_heads=fields.integer("num_attention_heads"),
        query_scale=head_dim**-0.5 * _growth(fields) ** 2,
        attention_bias=bias,
        output_bias=bias,
    )


def _growth(fields: Fields) -> float:
    """Return what YaRN multiplies q and k by in all dimensions, those without rotation included."""
    scaling = rope_group(fields)
    weight = scaling.number("mscale_all_dim", 0.0) if scaling else 0.0
    factor = scaling.positive("factor", 1.0) if scaling else 1.0
    return yarn_growth(factor, weight)


def _mixture(fields: Fields, **settings: Any) -> MoE:
    d_ff = fields.integer("moe_intermediate_size")
    return MoE(
        experts=fields.integer("n_routed_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        d_ff=d_ff,
        scale=fields.positive("routed_scaling_factor", 1.0),
        shared_d_ff=d_ff * fields.integer("n_shared_experts", 1),
        **settings,
    )


def _v2(fields: Fields) -> ModelConfig:
    fields.refuse("norm_topk_prob", "gates that are made to sum to one are not supported for this family")
    method = fields.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise InputError(f"{fields.file}: topk_method={shown(method)} must be greedy or group_limited_greedy")
    groups = {}
    if method == "group_limited_greedy":
        groups = dict(groups=fields.integer("n_group"), top_groups=fields.integer("topk_group"))
    return _decoder(fields, "deepseek_v2", _mixture(fields, **groups), fields.count("first_k_dense_replace", 0), True)


def _v3(fields: Fields) -> ModelConfig:
    moe = _mixture(
        fields,
        router="sigmoid",
        normalize=fields.flag("norm_topk_prob", True),
        groups=fields.integer("n_group", 8),
        top_groups=fields.integer("topk_group", 4),
    )
    interleaved = fields.flag("rope_interleave", True)
    return _decoder(fields, "deepseek_v3", moe, fields.count("first_k_dense_replace", 3), interleaved)


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    """Read V2 or V3, which share an architecture in GGUF files: V3's experts have sigmoids (`expert_gating_func` 2)."""
    n_heads, rope_dim = fields.integer("attention.head_count"), fields.integer("rope.dimension_count")
    # Files of the current layout describe the latent attention as one head, and what it stands for beside it.
    key = fields.integer("attention.key_length_mla", fields.integer("attention.key_length"))
    mla = MLA(
        kv_rank=fields.integer("attention.kv_lora_rank"),
        nope_dim=key - rope_dim,
        rope_dim=rope_dim,
        v_dim=fields.integer("attention.value_length_mla", fields.integer("attention.value_length")),
        q_rank=fields.integer("attention.q_lora_rank", None),
    )
    moe, first = _gguf_mixture(fields), int(fields.number("leading_dense_block_count", 0))
    # The converter multiplies mscale_all_dim by 0.1, and llama.cpp divides by it for this architecture alone.
    all_dims = 10 * fields.number("rope.scaling.yarn_log_multiplier", 0.0)

    def kinds(rope: Rope, n: int) -> list[LayerKind]:
        scaling = replace(rope.scaling, magnitude=1.0) if rope.scaling and all_dims else rope.scaling
        rope = replace(rope, scaling=scaling, width=rope_dim, interleaved=True)
        plain, sparse = LayerKind("dense", rope), LayerKind("sparse", rope, moe=moe)
        return [plain if i < first else sparse for i in range(n)]

    return gguf_decoder(
        fields,
        tensors,
        "deepseek_v2" if moe.router == "softmax" else "deepseek_v3",
        kinds=kinds,
        mla=mla,
        head_dim=key,
        n_kv_heads=n_heads,
        query_scale=key**-0.5 * yarn_growth(fields.number("rope.scaling.factor", 1.0), all_dims) ** 2,
    )


def _gguf_mixture(fields: Fields) -> MoE:
    gating = fields.integer("expert_gating_func", 1)
    if gating not in (1, 2):
        raise InputError(f"{fields.file}: expert_gating_func={gating} must be 1 (softmax) or 2 (sigmoid)")
    n_groups, d_ff = fields.integer("expert_group_count", 1), fields.integer("expert_feed_forward_length")
    return MoE(
        experts=fields.integer("expert_count"),
        top_k=fields.integer("expert_used_count"),
        d_ff=d_ff,
        router="softmax" if gating == 1 else "sigmoid",
        normalize=fields.flag("expert_weights_norm", False),
        scale=fields.number("expert_weights_scale", 1.0),
        groups=n_groups if n_groups > 1 else None,
        top_groups=fields.integer("expert_group_used_count") if n_groups > 1 else 1,
        shared_d_ff=d_ff * fields.integer("expert_shared_count", 1),
    )


def _from_gguf_tensors(cfg: ModelConfig, tensors: Tensors) -> Tensors:
    """Split keys and values of the latent, which are one tensor in older files, into the two of newer ones."""
    found = {}
    for name, x in tensors.items():
        stem, _, old = name.partition("attn_kv_b.")
        if not old:
            found[name] = x
            continue
        k, v = (_expanded(start)(cfg).share(x) for start in (True, False))
        found[f"{stem}attn_k_b.{old}"] = _by_heads(k, cfg.n_heads, (0, 2, 1))
        found[f"{stem}attn_v_b.{old}"] = _by_heads(v, cfg.n_heads, (0, 1, 2))
    return found


def _by_heads(matrix: Tensor, n_heads: int, axes: tuple[int, int, int]) -> Tensor:
    """Return a tensor (n h) r as n h r, its axes reordered; the heads stay first."""
    width, rank = matrix.shape[0] // n_heads, matrix.shape[1]
    shape = (n_heads, width, rank)

    def rows(start: int, stop: int) -> np.ndarray:
        return matrix.rows(start * width, stop * width).reshape(-1, width, rank).transpose(axes)

    return Tensor((n_heads, shape[axes[1]], shape[axes[2]]), rows)


def _fields(cfg: ModelConfig) -> dict[str, Any]:
    mla, moe = cfg.mla, next(kind.moe for kind in cfg.kinds if kind.moe)
    rope = cfg.kinds[0].rope
    assert mla is not None
    assert moe.shared_d_ff is not None
    assert rope is not None
    fields = decoder_fields(cfg)
    growth = math.sqrt((cfg.query_scale or cfg.head_dim**-0.5) * cfg.head_dim**0.5)
    if rope.scaling and growth != 1.0:
        fields["rope_parameters"]["mscale_all_dim"] = (growth - 1) / (0.1 * math.log(rope.scaling.factor))
    fields["rope_parameters"].pop("partial_rotary_factor", None)
    return fields | {
        "head_dim": mla.rope_dim,
        "kv_lora_rank": mla.kv_rank,
        "q_lora_rank": mla.q_rank,
        "qk_nope_head_dim": mla.nope_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "rope_interleave": rope.interleaved,
        "first_k_dense_replace": sum(not kind.moe for kind in cfg.layers),
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.d_ff,
        "n_shared_experts": moe.shared_d_ff // moe.d_ff,
        "routed_scaling_factor": moe.scale,
        "norm_topk_prob": moe.normalize,
        "topk_method": "group_limited_greedy" if moe.groups else "greedy",
        "n_group": moe.groups,
        "topk_group": moe.top_groups if moe.groups else None,
    }


def _compressed(start: bool):
    """Return the part of a tensor that holds the latent first, then the key that turns: units of their common width."""

    def part(cfg: ModelConfig) -> Part:
        mla = cfg.mla
        assert mla is not None
        return _two(mla.kv_rank, mla.rope_dim, start)

    return part


def _expanded(start: bool):
    """Return the part of a tensor that holds each head's key, then its value."""

    def part(cfg: ModelConfig) -> Part:
        mla = cfg.mla
        assert mla is not None
        return _two(mla.nope_dim, mla.v_dim, start, cfg.n_heads)

    return part


def _two(first: int, second: int, start: bool, groups: int = 1) -> Part:
    unit = math.gcd(first, second)
    total = (first + second) // unit
    return Part(0, first // unit, total, groups) if start else Part(first // unit, second // unit, total, groups)


def _up(which: str, gguf_axes: str, part: Callable[[ModelConfig], Part]) -> Rule:
    """Return the rule of keys or values from the latent: one tensor in Hugging Face's files, two in GGUF files."""
    names = "self_attn.kv_b_proj", f"attn_{which}_b"
    return layer(f"attention/{which}_up", *names, "n h r -> (n h) r", gguf_axes=gguf_axes, part=part, gguf_part=None)


_KV_DOWN = "self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"
_KV_BIAS = f"model.layers.{{n}}.{_KV_DOWN[0]}.bias"

_RULES = (
    *EMBED,
    *NORMS,
    layer("attention/q/kernel", "self_attn.q_proj", "attn_q", "n h d -> (n h) d"),
    layer("attention/q_down/kernel", "self_attn.q_a_proj", "attn_q_a", "r d -> r d"),
    Rule("attention/q_down/bias", "model.layers.{n}.self_attn.q_a_proj.bias", None, "r -> r"),
    layer("attention/q_norm/scale", "self_attn.q_a_layernorm", "attn_q_a_norm", "r -> r"),
    layer("attention/q_up/kernel", "self_attn.q_b_proj", "attn_q_b", "n h r -> (n h) r"),
    layer("attention/kv_down/kernel", *_KV_DOWN, "r d -> r d", part=_compressed(True)),
    layer("attention/k_rope/kernel", *_KV_DOWN, "one h d -> (one h) d", part=_compressed(False)),
    Rule("attention/kv_down/bias", _KV_BIAS, None, "r -> r", part=_compressed(True)),
    Rule("attention/k_rope/bias", _KV_BIAS, None, "one h -> (one h)", part=_compressed(False)),
    layer("attention/kv_norm/scale", "self_attn.kv_a_layernorm", "attn_kv_a_norm", "r -> r"),
    _up("k", "n h r -> n r h", _expanded(True)),
    _up("v", "n h r -> n h r", _expanded(False)),
    VALUE_AND_OUTPUT[1],
    Rule("attention/o/bias", "model.layers.{n}.self_attn.o_proj.bias", None, "d -> d"),
    *GATED_MLP,
    *experts("mlp", "gate_proj", "up_proj", "down_proj"),
    *shared_experts("mlp.shared_experts"),
    Rule("moe/correction", "model.layers.{n}.mlp.gate.e_score_correction_bias", "blk.{n}.exp_probs_b.bias", "e -> e"),
)

_LAYER = re.compile(r"model\.layers\.([0-9]{1,9})\.")
_IGNORE = r"lm_head\.weight|mtp\..*|.*\.rotary_emb\.inv_freq"


def _modules_apart(tensors: Tensors) -> Tensors:
    """Name modules apart that V3's files number as layers after the last: mtp.0, mtp.1 (heads/mtp.py)."""
    found = {name: _LAYER.match(name) for name in tensors}
    numbers = sorted(int(at[1]) for name, at in found.items() if at and name.endswith(".eh_proj.weight"))
    renamed = {}
    for name, tensor in tensors.items():
        at = found[name]
        if at and int(at[1]) in numbers:
            name = f"mtp.{numbers.index(int(at[1]))}.{name[at.end() :]}"
        renamed[name] = tensor
    return renamed


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    rules=_RULES,
    hf_types=("deepseek_v2",),
    hf_defaults=dict(n_shared_experts=2, q_lora_rank=1536),
    hf_config=_v2,
    hf_fields=_fields,
    gguf_arch="deepseek2",
    gguf_config=_from_gguf,
    gguf_tensors=_from_gguf_tensors,
    ignore=_IGNORE,
)
DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    rules=_RULES,
    hf_types=("deepseek_v3",),
    hf_defaults=dict(max_position_embeddings=4096, q_lora_rank=1536, routed_scaling_factor=2.5),
    hf_config=_v3,
    hf_fields=_fields,
    hf_tensors=_modules_apart,
    gguf_tensors=_from_gguf_tensors,
    ignore=_IGNORE,
)

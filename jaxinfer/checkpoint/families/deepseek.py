"""DeepSeek-V2 and V3: latent attention, many small experts in groups, experts that all tokens share."""

import math
from typing import Any

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    NORMS,
    VALUE_AND_OUTPUT,
    decoder_fields,
    hf_decoder,
    layer,
)
from jaxinfer.checkpoint.families.moe import experts, shared_experts
from jaxinfer.checkpoint.families.rope import rope_of
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Part, Rule
from jaxinfer.config import MLA, LayerKind, ModelConfig, MoE
from jaxinfer.errors import InputError


def _latent(fields: Fields) -> MLA:
    return MLA(
        kv_rank=fields.integer("kv_lora_rank", 512),
        nope_dim=fields.integer("qk_nope_head_dim", 128),
        rope_dim=fields.integer("qk_rope_head_dim", 64),
        v_dim=fields.integer("v_head_dim", 128),
        q_rank=fields.integer("q_lora_rank", None),
    )


def _decoder(fields: Fields, family: str, moe: MoE | None, first: int, interleaved: bool) -> ModelConfig:
    """`first` layers without experts, then layers with them."""
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
    """What YaRN multiplies q and k by in all dimensions, those without rotation included."""
    scaling = fields.group("rope_parameters") or fields.group("rope_scaling")
    weight = scaling.number("mscale_all_dim", 0.0) if scaling else 0.0
    factor = scaling.number("factor", 1.0) if scaling else 1.0
    return 0.1 * weight * math.log(factor) + 1.0 if weight and factor > 1 else 1.0


def _mixture(fields: Fields, **settings: Any) -> MoE:
    d_ff = fields.integer("moe_intermediate_size")
    return MoE(
        experts=fields.integer("n_routed_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        d_ff=d_ff,
        scale=fields.number("routed_scaling_factor", 1.0),
        shared_d_ff=d_ff * fields.integer("n_shared_experts", 1),
        **settings,
    )


def _v2(fields: Fields) -> ModelConfig:
    fields.refuse("norm_topk_prob", "gates that are made to sum to one are not supported for this family")
    method = fields.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise InputError(f"{fields.file}: topk_method={method!r} must be greedy or group_limited_greedy")
    groups = {}
    if method == "group_limited_greedy":
        groups = dict(groups=fields.integer("n_group"), top_groups=fields.integer("topk_group"))
    return _decoder(
        fields, "deepseek_v2", _mixture(fields, **groups), int(fields.number("first_k_dense_replace", 0)), True
    )


def _v3(fields: Fields) -> ModelConfig:
    moe = _mixture(
        fields,
        router="sigmoid",
        normalize=fields.flag("norm_topk_prob", True),
        groups=fields.integer("n_group", 8),
        top_groups=fields.integer("topk_group", 4),
    )
    interleaved = fields.flag("rope_interleave", True)
    return _decoder(fields, "deepseek_v3", moe, int(fields.number("first_k_dense_replace", 3)), interleaved)


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
    """The tensor holds the latent first, then the key that turns: units of their common width."""

    def part(cfg: ModelConfig) -> Part:
        mla = cfg.mla
        assert mla is not None
        return _two(mla.kv_rank, mla.rope_dim, start)

    return part


def _expanded(start: bool):
    """The tensor holds each head's key, then its value."""

    def part(cfg: ModelConfig) -> Part:
        mla = cfg.mla
        assert mla is not None
        return _two(mla.nope_dim, mla.v_dim, start, cfg.n_heads)

    return part


def _two(first: int, second: int, start: bool, groups: int = 1) -> Part:
    unit = math.gcd(first, second)
    total = (first + second) // unit
    return Part(0, first // unit, total, groups) if start else Part(first // unit, second // unit, total, groups)


_BIASES = (
    ("kv_down", "kv_a_proj_with_mqa", "r -> r", _compressed(True)),
    (
        "k_rope",
        "kv_a_proj_with_mqa",
        "one h -> (one h)",
        _compressed(False),
    ),
)

_KV_DOWN = "model.layers.{n}.self_attn.kv_a_proj_with_mqa"

_RULES = (
    *EMBED,
    *NORMS,
    layer("attention/q/kernel", "self_attn.q_proj", None, "n h d -> (n h) d"),
    layer("attention/q_down/kernel", "self_attn.q_a_proj", None, "r d -> r d"),
    Rule("attention/q_down/bias", "model.layers.{n}.self_attn.q_a_proj.bias", None, "r -> r"),
    layer("attention/q_norm/scale", "self_attn.q_a_layernorm", None, "r -> r"),
    layer("attention/q_up/kernel", "self_attn.q_b_proj", None, "n h r -> (n h) r"),
    Rule("attention/kv_down/kernel", f"{_KV_DOWN}.weight", None, "r d -> r d", part=_compressed(True)),
    Rule("attention/k_rope/kernel", f"{_KV_DOWN}.weight", None, "one h d -> (one h) d", part=_compressed(False)),
    Rule("attention/kv_down/bias", f"{_KV_DOWN}.bias", None, "r -> r", part=_compressed(True)),
    Rule("attention/k_rope/bias", f"{_KV_DOWN}.bias", None, "one h -> (one h)", part=_compressed(False)),
    layer("attention/kv_norm/scale", "self_attn.kv_a_layernorm", None, "r -> r"),
    layer("attention/k_up", "self_attn.kv_b_proj", None, "n h r -> (n h) r", part=_expanded(True)),
    layer("attention/v_up", "self_attn.kv_b_proj", None, "n h r -> (n h) r", part=_expanded(False)),
    VALUE_AND_OUTPUT[1],
    Rule("attention/o/bias", "model.layers.{n}.self_attn.o_proj.bias", None, "d -> d"),
    *GATED_MLP,
    *experts("mlp", "gate_proj", "up_proj", "down_proj"),
    *shared_experts("mlp.shared_experts"),
    Rule("moe/correction", "model.layers.{n}.mlp.gate.e_score_correction_bias", None, "e -> e"),
)

# V3's files hold a 62nd layer, which predicts a second token.
_IGNORE = r"lm_head\.weight|model\.layers\.61\..*|.*\.rotary_emb\.inv_freq"

DEEPSEEK_V2 = Family(
    name="deepseek_v2", rules=_RULES, hf_types=("deepseek_v2",), hf_config=_v2, hf_fields=_fields, ignore=_IGNORE
)
DEEPSEEK_V3 = Family(
    name="deepseek_v3", rules=_RULES, hf_types=("deepseek_v3",), hf_config=_v3, hf_fields=_fields, ignore=_IGNORE
)

"""Mixtures of experts: Mixtral, the MoEs of Qwen 2 and 3, OLMoE."""

from typing import Any

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    NORMS,
    QUERY_AND_KEY,
    TURNED_QUERY_AND_KEY,
    VALUE_AND_OUTPUT,
    biases,
    decoder_fields,
    gguf_decoder,
    hf_decoder,
    layer,
)
from jaxinfer.checkpoint.families.rope import rope_of
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Rule, Tensors
from jaxinfer.config import LayerKind, ModelConfig, MoE, Rope

_ATTENTION = (*EMBED, *NORMS, *QUERY_AND_KEY, *VALUE_AND_OUTPUT)


def experts(block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Return the rows of a router and of experts that are tensors of their own."""
    return (
        layer("moe/router/kernel", f"{block}.gate", "ffn_gate_inp", "e d -> e d"),
        layer("moe/gate", f"{block}.experts.{{e}}.{gate}", "ffn_gate_exps", "f d -> f d", gguf_axes="e f d -> e f d"),
        layer("moe/up", f"{block}.experts.{{e}}.{up}", "ffn_up_exps", "f d -> f d", gguf_axes="e f d -> e f d"),
        layer("moe/down", f"{block}.experts.{{e}}.{down}", "ffn_down_exps", "d f -> d f", gguf_axes="e d f -> e d f"),
    )


def shared_experts(block: str) -> tuple[Rule, ...]:
    """Return the rows of the expert that all tokens share."""
    return (
        layer("moe/shared/gate/kernel", f"{block}.gate_proj", "ffn_gate_shexp", "f d -> f d"),
        layer("moe/shared/up/kernel", f"{block}.up_proj", "ffn_up_shexp", "f d -> f d"),
        layer("moe/shared/down/kernel", f"{block}.down_proj", "ffn_down_shexp", "d f -> d f"),
    )


_EXPERTS = experts("mlp", "gate_proj", "up_proj", "down_proj")
_SHARED = (
    *shared_experts("mlp.shared_expert"),
    layer("moe/shared_gate/kernel", "mlp.shared_expert_gate", "ffn_gate_inp_shexp", "o d -> o d"),
)
_HEAD_NORMS = (
    layer("attention/q_norm/scale", "self_attn.q_norm", "attn_q_norm", "h -> h"),
    layer("attention/k_norm/scale", "self_attn.k_norm", "attn_k_norm", "h -> h"),
)
_ALL_NORMS = (
    layer("attention/q_norm/scale", "self_attn.q_norm", "attn_q_norm", "n h -> (n h)"),
    layer("attention/k_norm/scale", "self_attn.k_norm", "attn_k_norm", "n h -> (n h)"),
)


def _mixtral(fields: Fields) -> ModelConfig:
    moe = MoE(
        experts=fields.integer("num_local_experts", 8),
        top_k=fields.integer("num_experts_per_tok", 2),
        d_ff=fields.integer("intermediate_size"),
        router="topk",
    )
    window = fields.integer("sliding_window", None)
    kind = LayerKind("local" if window else "global", rope_of(fields, 1_000_000.0), window, moe)
    return hf_decoder(fields, "mixtral", kinds=[kind] * fields.integer("num_hidden_layers"))


def _sparse_kinds(fields: Fields, moe: MoE) -> list[LayerKind]:
    """Put experts into every `decoder_sparse_step`-th layer, save those that `mlp_only_layers` lists."""
    fields.refuse("use_sliding_window", "windows are not supported for this family yet")
    rope, step = rope_of(fields), fields.integer("decoder_sparse_step", 1)
    without = fields.listed("mlp_only_layers", None, default=[])
    dense, sparse = LayerKind("dense", rope), LayerKind("sparse", rope, moe=moe)
    layers = range(fields.integer("num_hidden_layers"))
    return [sparse if (n + 1) % step == 0 and n not in without else dense for n in layers]


def _qwen2(fields: Fields) -> ModelConfig:
    moe = MoE(
        experts=fields.integer("num_experts", 60),
        top_k=fields.integer("num_experts_per_tok", 4),
        d_ff=fields.integer("moe_intermediate_size"),
        normalize=fields.flag("norm_topk_prob", False),
        shared_d_ff=fields.integer("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    return hf_decoder(fields, "qwen2_moe", kinds=_sparse_kinds(fields, moe), attention_bias=True)


def _qwen3(fields: Fields) -> ModelConfig:
    moe = MoE(
        experts=fields.integer("num_experts", fields.integer("num_local_experts", 128)),
        top_k=fields.integer("num_experts_per_tok", 8),
        d_ff=fields.integer("moe_intermediate_size"),
        normalize=fields.flag("norm_topk_prob", False),
    )
    bias = fields.flag("attention_bias", False)
    settings = dict(head_dim=fields.integer("head_dim", 128), attention_bias=bias, output_bias=bias, qk_norm="head")
    return hf_decoder(fields, "qwen3_moe", kinds=_sparse_kinds(fields, moe), **settings)


def _olmoe(fields: Fields) -> ModelConfig:
    fields.refuse("clip_qkv", "clipped projections are not supported")
    moe = MoE(
        experts=fields.integer("num_experts", 64),
        top_k=fields.integer("num_experts_per_tok", 8),
        d_ff=fields.integer("intermediate_size"),
        normalize=fields.flag("norm_topk_prob", False),
    )
    kind = LayerKind("global", rope_of(fields), moe=moe)
    eps = fields.positive("rms_norm_eps", 1e-5)
    kinds = [kind] * fields.integer("num_hidden_layers")
    return hf_decoder(fields, "olmoe", kinds=kinds, qk_norm="whole", norm_eps=eps)


def _gguf(family: str, d_ff: str, of_moe: dict[str, Any], name: str = "sparse", **settings: Any):
    """Make a reader of GGUF metadata: experts in every layer, of the width in field `d_ff`; `name`: of their kind."""

    def read(fields: Fields, tensors: Tensors) -> ModelConfig:
        shared = "expert_shared_feed_forward_length"
        own: dict[str, Any] = (
            {"shared_d_ff": fields.integer(shared), "shared_gate": True} if family == "qwen2_moe" else {}
        )
        moe = MoE(
            experts=fields.integer("expert_count"),
            top_k=fields.integer("expert_used_count"),
            d_ff=fields.integer(d_ff),
            **of_moe,
            **own,
        )

        def kinds(rope: Rope, n: int) -> list[LayerKind]:
            return [LayerKind(name, rope, moe=moe)] * n

        # How wide the MLP of a layer without experts would be: none is, and the field may be missing.
        width = fields.integer("feed_forward_length", moe.d_ff)
        return gguf_decoder(fields, tensors, family, kinds=kinds, d_ff=width, **settings)

    return read


mixtral_from_gguf = _gguf("mixtral", "feed_forward_length", {"router": "topk"}, "global")


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    moe = next(kind.moe for kind in cfg.kinds if kind.moe)
    whole = cfg.family in ("mixtral", "olmoe")  # their intermediate_size is that of an expert
    return decoder_fields(cfg) | {
        "num_local_experts" if cfg.family == "mixtral" else "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.d_ff if whole else cfg.d_ff,
        "moe_intermediate_size": moe.d_ff,
        "norm_topk_prob": moe.normalize,
        "shared_expert_intermediate_size": moe.shared_d_ff,
        "mlp_only_layers": [n for n, kind in enumerate(cfg.layers) if not kind.moe],
        "sliding_window": cfg.kinds[0].window,
    }


MIXTRAL = Family(
    name="mixtral",
    rules=(*EMBED, *NORMS, *TURNED_QUERY_AND_KEY, *VALUE_AND_OUTPUT, *experts("block_sparse_moe", "w1", "w3", "w2")),
    hf_types=("mixtral",),
    hf_defaults=dict(max_position_embeddings=131_072, num_key_value_heads=8, rms_norm_eps=1e-05),
    hf_config=_mixtral,
    hf_fields=_hf_fields,
    ignore=r"lm_head\.weight",
)

QWEN2_MOE = Family(
    name="qwen2_moe",
    rules=(*_ATTENTION, *biases(*QUERY_AND_KEY, VALUE_AND_OUTPUT[0]), *GATED_MLP, *_EXPERTS, *_SHARED),
    hf_types=("qwen2_moe",),
    hf_defaults=dict(max_position_embeddings=32_768, num_key_value_heads=16),
    hf_config=_qwen2,
    hf_fields=_hf_fields,
    gguf_arch="qwen2moe",
    gguf_config=_gguf("qwen2_moe", "expert_feed_forward_length", {}, attention_bias=True),
    ignore=r"lm_head\.weight",
)

QWEN3_MOE = Family(
    name="qwen3_moe",
    rules=(*_ATTENTION, *biases(*QUERY_AND_KEY, *VALUE_AND_OUTPUT), *_HEAD_NORMS, *GATED_MLP, *_EXPERTS),
    hf_types=("qwen3_moe",),
    hf_defaults=dict(max_position_embeddings=32_768, num_key_value_heads=4),
    hf_config=_qwen3,
    hf_fields=_hf_fields,
    gguf_arch="qwen3moe",
    gguf_config=_gguf("qwen3_moe", "expert_feed_forward_length", {"normalize": True}, qk_norm="head"),
    ignore=r"lm_head\.weight",
)

OLMOE = Family(
    name="olmoe",
    rules=(*_ATTENTION, *_ALL_NORMS, *_EXPERTS),
    hf_types=("olmoe",),
    hf_defaults=dict(max_position_embeddings=4096),
    hf_config=_olmoe,
    hf_fields=_hf_fields,
    gguf_arch="olmoe",
    gguf_config=_gguf("olmoe", "feed_forward_length", {}, "global", qk_norm="whole"),
    ignore=r"lm_head\.weight",
)

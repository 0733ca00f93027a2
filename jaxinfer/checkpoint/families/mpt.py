"""MPT: ALiBi, layer norms without biases."""

from typing import Any

from jaxinfer.checkpoint.families.common import even_share, gguf_decoder, gguf_layer_norm, without_rope
from jaxinfer.checkpoint.families.fused import MLP_AXES, in_turn, named, qkv, whole_model
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Segment
from jaxinfer.errors import InputError

_LAYERS = {
    "attention_norm/scale": "norm_1",
    "mlp_norm/scale": "norm_2",
    "attention/o/kernel": "attn.out_proj",
    "mlp/up/kernel": "ffn.up_proj",
    "mlp/down/kernel": "ffn.down_proj",
}

_BLOCK: dict[str, Any] = dict(norm="layer", activation="gelu", gated=False, alibi=1.0)


def _from_hf(fields: Fields) -> ModelConfig:
    attention = fields.group("attn_config") or Fields(fields.file, {})
    for name in ("clip_qkv", "prefix_lm", "qk_ln"):
        attention.refuse(name, "not supported for this family")
    if not attention.flag("alibi", True) or attention.number("alibi_bias_max", 8) != 8:
        raise InputError(
            f"{fields.file}: attn_config.alibi must be true, with alibi_bias_max=8; others are not supported"
        )
    d_model, n_heads = fields.integer("d_model"), fields.integer("n_heads")
    return ModelConfig(
        family="mpt",
        vocab_size=fields.integer("vocab_size"),
        d_model=d_model,
        d_ff=fields.integer("expansion_ratio", 4) * d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=even_share(fields, d_model, n_heads),
        segments=(Segment((LayerKind("global", None),), fields.integer("n_layers")),),
        max_positions=fields.integer("max_seq_len", 2048),
        norm_eps=fields.positive("layer_norm_epsilon", 1e-5),
        **_BLOCK,
        query_scale=attention.positive("softmax_scale", None),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    fields.refuse("attention.clamp_kqv", "not supported for this family")
    fields.require("attention.max_alibi_bias", 8.0)
    return gguf_decoder(fields, tensors, "mpt", norm_eps=gguf_layer_norm(fields), kinds=without_rope, **_BLOCK)


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "d_model": cfg.d_model,
        "expansion_ratio": cfg.d_ff // cfg.d_model,
        "n_heads": cfg.n_heads,
        "n_layers": cfg.n_layers,
        "max_seq_len": cfg.max_positions,
        "layer_norm_epsilon": cfg.norm_eps,
        "attn_config": {"softmax_scale": cfg.query_scale},
        "tie_word_embeddings": cfg.tie_embeddings,
    }


MPT = Family(
    name="mpt",
    rules=(
        *whole_model("transformer.wte", "lm_head", "transformer.norm_f"),
        *qkv("transformer.blocks.{n}.attn.Wqkv", in_turn, bias=False),
        *named("transformer.blocks", _LAYERS, MLP_AXES),
    ),
    hf_types=("mpt",),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    gguf_arch="mpt",
    gguf_config=_from_gguf,
    ignore=r"lm_head\.weight",
)

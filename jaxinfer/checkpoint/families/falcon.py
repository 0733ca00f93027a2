"""Falcon: multi-query (7B), grouped-query (40B, 180B) and multi-head attention (RW, with ALiBi)."""

from typing import Any

from jaxinfer.checkpoint.families.common import HF_ACTIVATIONS, activation, even_share, gguf_decoder, gguf_layer_norm
from jaxinfer.checkpoint.families.fused import MLP_AXES, grouped, named, qkv, whole_model, with_biases
from jaxinfer.checkpoint.families.rope import context, rope_fields, rope_of, trained_context
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Rope, Segment

_LAYERS = {
    "attention_norm/scale": "input_layernorm",
    "mlp_norm/scale": "post_attention_layernorm",
    "attention/o/kernel": "self_attention.dense",
    "mlp/up/kernel": "mlp.dense_h_to_4h",
    "mlp/down/kernel": "mlp.dense_4h_to_h",
}


def _from_hf(fields: Fields) -> ModelConfig:
    d_model, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    new = fields.flag("new_decoder_architecture", False)
    alibi, bias = fields.flag("alibi", False), fields.flag("bias", False)
    without_groups = 1 if fields.flag("multi_query", True) else n_heads
    n_kv_heads = fields.integer("num_kv_heads", n_heads) if new else without_groups
    parallel = new or fields.flag("parallel_attn", True)
    return ModelConfig(
        family="falcon",
        vocab_size=fields.integer("vocab_size"),
        d_model=d_model,
        d_ff=fields.integer("ffn_hidden_size", 4 * d_model),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=even_share(fields, d_model, n_heads),
        segments=(
            Segment((LayerKind("global", None if alibi else rope_of(fields)),), fields.integer("num_hidden_layers")),
        ),
        max_positions=context(fields, 2048),
        norm="layer",
        norm_bias=True,
        norm_eps=fields.positive("layer_norm_epsilon", 1e-5),
        activation=activation(fields, "activation", "gelu"),
        gated=False,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        parallel=parallel,
        shared_norm=parallel and (not new or fields.integer("num_ln_in_parallel_attn", 2) == 1),
        alibi=even_share(fields, d_model, n_heads) ** -0.5 if alibi else None,  # scores and slopes are scaled together
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    """Read a GGUF file, which is no Falcon RW: nothing has biases, and attention is beside the MLP."""
    return gguf_decoder(
        fields,
        tensors,
        "falcon",
        norm="layer",
        norm_bias=True,
        norm_eps=gguf_layer_norm(fields),
        activation="gelu",
        gated=False,
        parallel=True,
        shared_norm=f"blk.0.{_SECOND_NORM}.weight" not in tensors,
    )


_SECOND_NORM = "attn_norm_2"  # where it is there, it is that of attention, and attn_norm that of the MLP


def _from_gguf_names(cfg: ModelConfig, tensors: Tensors) -> Tensors:
    if cfg.shared_norm:
        return tensors
    of_mlp = {name.replace(".attn_norm.", ".ffn_norm."): x for name, x in tensors.items()}
    return {name.replace(f".{_SECOND_NORM}.", ".attn_norm."): x for name, x in of_mlp.items()}


def _is_new(cfg: ModelConfig) -> bool:
    """Tell whether this is the architecture of the 40B model: groups of queries, or two norms side by side."""
    return cfg.n_kv_heads not in (1, cfg.n_heads) or (cfg.parallel and not cfg.shared_norm)


def _written(cfg: ModelConfig, name: str) -> str:
    """Name the two norms of the 40B architecture, which have names of their own."""
    if not _is_new(cfg) or cfg.shared_norm:
        return name
    return name.replace(".input_layernorm.", ".ln_attn.").replace(".post_attention_layernorm.", ".ln_mlp.")


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "ffn_hidden_size": cfg.d_ff,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_kv_heads": cfg.n_kv_heads,
        "multi_query": cfg.n_kv_heads == 1,
        "new_decoder_architecture": _is_new(cfg),
        "num_ln_in_parallel_attn": 2 if _is_new(cfg) and not cfg.shared_norm else None,
        "parallel_attn": cfg.parallel,
        "bias": cfg.mlp_bias,
        "alibi": cfg.alibi is not None,
        "activation": HF_ACTIVATIONS[cfg.activation],
        "max_position_embeddings": trained_context(cfg),
        "layer_norm_epsilon": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "rope_parameters": rope_fields(cfg.kinds[0].rope or Rope(), cfg.head_dim),
    }


FALCON = Family(
    name="falcon",
    rules=(
        *whole_model("transformer.word_embeddings", "lm_head", "transformer.ln_f"),
        *qkv("transformer.h.{n}.self_attention.query_key_value", grouped),
        *named("transformer.h", with_biases(_LAYERS), MLP_AXES),
    ),
    hf_types=("falcon", "RefinedWeb", "RefinedWebModel"),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    gguf_arch="falcon",
    gguf_config=_from_gguf,
    gguf_tensors=_from_gguf_names,
    ignore=r"lm_head\.weight",
    hf_written=_written,
    hf_renames=((r"\.ln_attn\.", ".input_layernorm."), (r"\.ln_mlp\.", ".post_attention_layernorm.")),
)

"""BLOOM: ALiBi, a norm after the embedding, layer norms with biases."""

from typing import Any

from jaxinfer.checkpoint.families.common import even_share, gguf_decoder, gguf_layer_norm, without_rope
from jaxinfer.checkpoint.families.fused import MLP_AXES, grouped, named, qkv, whole_model, with_biases
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Rule, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Segment

_LAYERS = {
    "attention_norm/scale": "input_layernorm",
    "mlp_norm/scale": "post_attention_layernorm",
    "attention/o/kernel": "self_attention.dense",
    "mlp/up/kernel": "mlp.dense_h_to_4h",
    "mlp/down/kernel": "mlp.dense_4h_to_h",
}
_EMBED_NORM = "transformer.word_embeddings_layernorm"


def _either(fields: Fields, *names: str) -> int:
    """Return the first of several names for a field that the file has."""
    return fields.integer(next((name for name in names if fields.get(name, None) is not None), names[0]))


_BLOCK: dict[str, Any] = dict(
    norm="layer",
    norm_bias=True,
    activation="gelu_tanh",
    gated=False,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    embed_norm=True,
    alibi=1.0,
)


def _from_hf(fields: Fields) -> ModelConfig:
    fields.refuse("apply_residual_connection_post_layernorm", "residuals after the norm are not supported")
    d_model, n_heads = _either(fields, "hidden_size", "n_embed"), _either(fields, "n_head", "num_attention_heads")
    return ModelConfig(
        family="bloom",
        vocab_size=fields.integer("vocab_size"),
        d_model=d_model,
        d_ff=4 * d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=even_share(fields, d_model, n_heads),
        segments=(Segment((LayerKind("global", None),), _either(fields, "n_layer", "num_hidden_layers")),),
        max_positions=fields.integer("seq_length", 2048),
        norm_eps=fields.positive("layer_norm_epsilon", 1e-5),
        **_BLOCK,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    return gguf_decoder(fields, tensors, "bloom", norm_eps=gguf_layer_norm(fields), kinds=without_rope, **_BLOCK)


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "n_head": cfg.n_heads,
        "n_layer": cfg.n_layers,
        "seq_length": cfg.max_positions,
        "layer_norm_epsilon": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


BLOOM = Family(
    name="bloom",
    rules=(
        *whole_model("transformer.word_embeddings", "lm_head", "transformer.ln_f"),
        Rule("embed/norm/scale", f"{_EMBED_NORM}.weight", "token_embd_norm.weight", "d -> d"),
        Rule("embed/norm/bias", f"{_EMBED_NORM}.bias", "token_embd_norm.bias", "d -> d"),
        *qkv("transformer.h.{n}.self_attention.query_key_value", grouped),
        *named("transformer.h", with_biases(_LAYERS), MLP_AXES),
    ),
    hf_types=("bloom",),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    gguf_arch="bloom",
    gguf_config=_from_gguf,
    ignore=r"lm_head\.weight",
    hf_prefixes=(
        ("word_embeddings", "transformer.word_embeddings"),
        ("h.", "transformer.h."),
        ("ln_f.", "transformer.ln_f."),
    ),
)

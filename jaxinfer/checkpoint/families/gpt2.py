"""GPT-2: learned absolute positions. Its files hold weights as [in, out]."""

from typing import Any

from jaxinfer.checkpoint.families.common import (
    HF_ACTIVATIONS,
    activation,
    even_share,
    gguf_decoder,
    gguf_layer_norm,
    without_rope,
)
from jaxinfer.checkpoint.families.fused import in_turn, named, qkv, whole_model, with_biases
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Rule, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Segment

_LAYERS = {
    "attention_norm/scale": "ln_1",
    "mlp_norm/scale": "ln_2",
    "attention/o/kernel": "attn.c_proj",
    "mlp/up/kernel": "mlp.c_fc",
    "mlp/down/kernel": "mlp.c_proj",
}
_AXES = {
    "attention/o/kernel": "d n h -> (n h) d",
    "mlp/up/kernel": "f d -> d f",
    "mlp/up/bias": "f -> f",
    "mlp/down/kernel": "d f -> f d",
}

_BLOCK: dict[str, Any] = dict(
    norm="layer",
    norm_bias=True,
    gated=False,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    absolute_positions="learned",
)


def _from_hf(fields: Fields) -> ModelConfig:
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        fields.refuse(name, "not supported for this family")
    d_model, n_heads = fields.integer("n_embd", 768), fields.integer("n_head", 12)
    return ModelConfig(
        family="gpt2",
        vocab_size=fields.integer("vocab_size"),
        d_model=d_model,
        d_ff=fields.integer("n_inner", 4 * d_model),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=even_share(fields, d_model, n_heads),
        segments=(Segment((LayerKind("global", None),), fields.integer("n_layer", 12)),),
        max_positions=fields.integer("n_positions", 1024),
        norm_eps=fields.positive("layer_norm_epsilon", 1e-5),
        **_BLOCK,
        activation=activation(fields, "activation_function", "gelu_new"),
        query_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    settings = dict(_BLOCK, norm_eps=gguf_layer_norm(fields), activation="gelu_tanh")
    return gguf_decoder(fields, tensors, "gpt2", kinds=without_rope, **settings)


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "n_embd": cfg.d_model,
        "n_inner": cfg.d_ff,
        "n_head": cfg.n_heads,
        "n_layer": cfg.n_layers,
        "n_positions": cfg.max_positions,
        "layer_norm_epsilon": cfg.norm_eps,
        "activation_function": HF_ACTIVATIONS[cfg.activation],
        "scale_attn_weights": cfg.query_scale is None,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


GPT2 = Family(
    name="gpt2",
    rules=(
        *whole_model("transformer.wte", "lm_head", "transformer.ln_f"),
        Rule("embed/positions", "transformer.wpe.weight", "position_embd.weight", "p d -> p d"),
        *qkv("transformer.h.{n}.attn.c_attn", in_turn, axis=1),
        *named("transformer.h", with_biases(_LAYERS), _AXES),
    ),
    hf_types=("gpt2",),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    gguf_arch="gpt2",
    gguf_config=_from_gguf,
    ignore=r".*\.attn\.(bias|masked_bias)|lm_head\.weight",
    hf_prefixes=tuple((name, f"transformer.{name}") for name in ("wte.", "wpe.", "h.", "ln_f.")),
)

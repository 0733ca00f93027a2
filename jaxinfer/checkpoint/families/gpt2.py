"""GPT-2: learned absolute positions. Its files hold weights as [in, out]."""

from typing import Any

from jaxinfer.checkpoint.families.common import HF_ACTIVATIONS, activation
from jaxinfer.checkpoint.families.fused import in_turn, named, qkv, with_biases
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Rule
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
        head_dim=d_model // n_heads,
        segments=(Segment((LayerKind("global", None),), fields.integer("n_layer", 12)),),
        max_positions=fields.integer("n_positions", 1024),
        norm="layer",
        norm_bias=True,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        activation=activation(fields, "activation_function", "gelu_new"),
        gated=False,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        query_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
        absolute_positions="learned",
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


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
        Rule("embed/embedding", "transformer.wte.weight", None, "v d -> v d"),
        Rule("embed/positions", "transformer.wpe.weight", None, "p d -> p d"),
        Rule("head/kernel", "lm_head.weight", None, "v d -> v d"),
        Rule("final_norm/scale", "transformer.ln_f.weight", None, "d -> d"),
        Rule("final_norm/bias", "transformer.ln_f.bias", None, "d -> d"),
        *qkv("transformer.h.{n}.attn.c_attn", in_turn, axis=1),
        *named("transformer.h", with_biases(_LAYERS), _AXES),
    ),
    hf_types=("gpt2",),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    ignore=r".*\.attn\.(bias|masked_bias)|lm_head\.weight",
    hf_prefixes=tuple((name, f"transformer.{name}") for name in ("wte.", "wpe.", "h.", "ln_f.")),
)

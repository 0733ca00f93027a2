"""OPT: learned absolute positions, ReLU."""

from typing import Any

from jaxinfer.checkpoint.families.common import HF_ACTIVATIONS, activation, even_share
from jaxinfer.checkpoint.families.fused import GGUF_AXES, named, whole_model, with_biases
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Part, Rule
from jaxinfer.config import LayerKind, ModelConfig, Segment
from jaxinfer.errors import InputError

_LAYERS = {
    "attention_norm/scale": "self_attn_layer_norm",
    "mlp_norm/scale": "final_layer_norm",
    "attention/q/kernel": "self_attn.q_proj",
    "attention/k/kernel": "self_attn.k_proj",
    "attention/v/kernel": "self_attn.v_proj",
    "attention/o/kernel": "self_attn.out_proj",
    "mlp/up/kernel": "fc1",
    "mlp/down/kernel": "fc2",
}
_OFFSET = 2  # rows of the position table that stand before the first position


def _from_hf(fields: Fields) -> ModelConfig:
    d_model, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if not fields.flag("do_layer_norm_before", True) or fields.integer("word_embed_proj_dim", d_model) != d_model:
        raise InputError(
            f"{fields.file}: norms after the residual and projected embeddings (OPT-350m) are not supported"
        )
    bias = fields.flag("enable_bias", True)
    return ModelConfig(
        family="opt",
        vocab_size=fields.integer("vocab_size"),
        d_model=d_model,
        d_ff=fields.integer("ffn_dim"),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=even_share(fields, d_model, n_heads),
        segments=(Segment((LayerKind("global", None),), fields.integer("num_hidden_layers")),),
        max_positions=fields.integer("max_position_embeddings", 2048),
        norm="layer",
        norm_bias=True,
        activation=activation(fields, "activation_function", "relu"),
        gated=False,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        absolute_positions="learned",
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _after_offset(cfg: ModelConfig) -> Part:
    return Part(_OFFSET, cfg.max_positions, cfg.max_positions + _OFFSET)


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "word_embed_proj_dim": cfg.d_model,
        "ffn_dim": cfg.d_ff,
        "num_attention_heads": cfg.n_heads,
        "num_hidden_layers": cfg.n_layers,
        "max_position_embeddings": cfg.max_positions,
        "activation_function": HF_ACTIVATIONS[cfg.activation],
        "enable_bias": cfg.mlp_bias,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


OPT = Family(
    name="opt",
    rules=(
        *whole_model("model.decoder.embed_tokens", "lm_head", "model.decoder.final_layer_norm"),
        Rule("embed/positions", "model.decoder.embed_positions.weight", None, "p d -> p d", part=_after_offset),
        *named("model.decoder.layers", with_biases(_LAYERS), GGUF_AXES),
    ),
    hf_types=("opt",),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    ignore=r"lm_head\.weight",
    hf_prefixes=(("decoder.", "model.decoder."),),
)

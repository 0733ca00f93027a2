"""Gemma 1, and Gemma 2: windows in every other layer, norms after as well as before, caps on scores and logits."""

import math
from typing import Any

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    HF_ACTIVATIONS,
    QUERY_AND_KEY,
    VALUE_AND_OUTPUT,
    activation,
    decoder_fields,
    gguf_decoder,
    hf_decoder,
    layer,
    window_fields,
    windowed,
)
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Rule, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Rope

# Hugging Face files hold the norms as w, and the model multiplies by 1 + w; GGUF files hold the sum.
_ONE: dict[str, Any] = {"hf_offset": 1.0}

_RULES = (
    *EMBED,
    *QUERY_AND_KEY,
    *VALUE_AND_OUTPUT,
    *GATED_MLP,
    layer("attention_norm/scale", "input_layernorm", "attn_norm", "d -> d", **_ONE),
    Rule("final_norm/scale", "model.norm.weight", "output_norm.weight", "d -> d", **_ONE),
)


def _settings(fields: Fields) -> dict[str, Any]:
    fields.refuse("attention_bias", "biases are not supported for this family")
    fields.refuse("use_bidirectional_attention", "only causal attention is supported")
    name = "hidden_activation" if fields.get("hidden_activation", None) else "hidden_act"
    # Gemma 1 says "gelu" and means the approximation by tanh (transformers, modeling_gemma.py).
    approximate = fields.get(name, "gelu") == "gelu"
    return dict(
        head_dim=fields.integer("head_dim", 256),
        activation="gelu_tanh" if approximate else activation(fields, name, "gelu_pytorch_tanh"),
        embed_scale=math.sqrt(fields.integer("hidden_size")),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _gemma2(fields: Fields) -> ModelConfig:
    n_layers = fields.integer("num_hidden_layers")
    types = fields.listed("layer_types", n_layers, ("sliding_attention", "full_attention"), None)
    if types is None:
        types = ["full_attention" if n % 2 else "sliding_attention" for n in range(n_layers)]
    return hf_decoder(
        fields,
        "gemma2",
        kinds=windowed(fields, types, n_layers, window=4096),
        post_norms=True,
        query_scale=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=fields.positive("attn_logit_softcapping", None),
        logit_softcap=fields.positive("final_logit_softcapping", None),
        **_settings(fields),
    )


def _gguf_settings(fields: Fields) -> dict[str, Any]:
    return dict(activation="gelu_tanh", embed_scale=math.sqrt(fields.integer("embedding_length")))


def _gemma2_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    window = fields.integer("attention.sliding_window", 4096)
    n_layers, n_heads = fields.integer("block_count"), fields.integer("attention.head_count")
    # The metadata lacks it: the 27B model alone (46 layers) scales by d_model / n_heads, as in llama.cpp.
    width = fields.integer("embedding_length") // n_heads if n_layers == 46 else fields.integer("attention.key_length")

    def kinds(rope: Rope, n: int) -> list[LayerKind]:
        local, globl = LayerKind("local", rope, window), LayerKind("global", rope)
        return [globl if i % 2 else local for i in range(n)]

    return gguf_decoder(
        fields,
        tensors,
        "gemma2",
        kinds=kinds,
        post_norms=True,
        query_scale=width**-0.5,
        attention_softcap=fields.positive("attn_logit_softcapping", None),
        logit_softcap=fields.positive("final_logit_softcapping", None),
        **_gguf_settings(fields),
    )


def _gemma2_fields(cfg: ModelConfig) -> dict[str, Any]:
    return decoder_fields(cfg) | {
        **window_fields(cfg),
        "hidden_activation": HF_ACTIVATIONS[cfg.activation],
        "query_pre_attn_scalar": round((cfg.query_scale or cfg.head_dim**-0.5) ** -2),
        "attn_logit_softcapping": cfg.attention_softcap,
        "final_logit_softcapping": cfg.logit_softcap,
    }


GEMMA = Family(
    name="gemma",
    rules=(*_RULES, layer("mlp_norm/scale", "post_attention_layernorm", "ffn_norm", "d -> d", **_ONE)),
    hf_types=("gemma",),
    hf_defaults=dict(max_position_embeddings=8192, num_key_value_heads=16),
    hf_config=lambda fields: hf_decoder(fields, "gemma", **_settings(fields)),
    hf_fields=decoder_fields,
    gguf_arch="gemma",
    gguf_config=lambda fields, tensors: gguf_decoder(fields, tensors, "gemma", **_gguf_settings(fields)),
    ignore=r"lm_head\.weight",
)

GEMMA2 = Family(
    name="gemma2",
    rules=(
        *_RULES,
        layer("attention_post_norm/scale", "post_attention_layernorm", "post_attention_norm", "d -> d", **_ONE),
        layer("mlp_norm/scale", "pre_feedforward_layernorm", "ffn_norm", "d -> d", **_ONE),
        layer("mlp_post_norm/scale", "post_feedforward_layernorm", "post_ffw_norm", "d -> d", **_ONE),
    ),
    hf_types=("gemma2",),
    hf_defaults=dict(
        max_position_embeddings=8192, num_key_value_heads=4, attn_logit_softcapping=50.0, final_logit_softcapping=30.0
    ),
    hf_config=_gemma2,
    hf_fields=_gemma2_fields,
    gguf_arch="gemma2",
    gguf_config=_gemma2_gguf,
    ignore=r"lm_head\.weight",
)

"""Qwen 2 and 2.5 (biases on q, k and v) and Qwen 3 (a norm on each head of q and k instead)."""

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    NORMS,
    QUERY_AND_KEY,
    VALUE_AND_OUTPUT,
    biases,
    decoder_fields,
    gguf_decoder,
    hf_decoder,
    layer,
    window_fields,
    windowed,
)
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family
from jaxinfer.config import LayerKind, ModelConfig

_RULES = (*EMBED, *NORMS, *QUERY_AND_KEY, *VALUE_AND_OUTPUT, *GATED_MLP)


def _kinds(fields: Fields) -> list[LayerKind]:
    n_layers = fields.integer("num_hidden_layers")
    types = fields.listed("layer_types", n_layers, ("sliding_attention", "full_attention"), None)
    if types is None and fields.flag("use_sliding_window", False):
        whole = fields.integer("max_window_layers", n_layers)  # the layers below it see everything
        types = ["full_attention" if n < whole else "sliding_attention" for n in range(n_layers)]
    return windowed(fields, types, n_layers, window=4096)


def _qwen2(fields: Fields) -> ModelConfig:
    return hf_decoder(fields, "qwen2", kinds=_kinds(fields), attention_bias=True)


def _qwen3(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    width = fields.integer("head_dim", 128)
    settings = dict(head_dim=width, attention_bias=bias, output_bias=bias)
    return hf_decoder(fields, "qwen3", kinds=_kinds(fields), qk_norm="head", **settings)


QWEN2 = Family(
    name="qwen2",
    rules=(*_RULES, *biases(*QUERY_AND_KEY, VALUE_AND_OUTPUT[0])),
    hf_types=("qwen2",),
    hf_defaults=dict(max_position_embeddings=32_768, num_key_value_heads=32),
    hf_config=_qwen2,
    hf_fields=lambda cfg: decoder_fields(cfg) | window_fields(cfg),
    gguf_arch="qwen2",
    gguf_config=lambda fields, tensors: gguf_decoder(fields, tensors, "qwen2", attention_bias=True),
    ignore=r"lm_head\.weight",
)

QWEN3 = Family(
    name="qwen3",
    rules=(
        *_RULES,
        *biases(*QUERY_AND_KEY, *VALUE_AND_OUTPUT),
        layer("attention/q_norm/scale", "self_attn.q_norm", "attn_q_norm", "h -> h"),
        layer("attention/k_norm/scale", "self_attn.k_norm", "attn_k_norm", "h -> h"),
    ),
    hf_types=("qwen3",),
    hf_defaults=dict(max_position_embeddings=32_768, num_key_value_heads=32),
    hf_config=_qwen3,
    hf_fields=lambda cfg: decoder_fields(cfg) | window_fields(cfg),
    gguf_arch="qwen3",
    gguf_config=lambda fields, tensors: gguf_decoder(fields, tensors, "qwen3", qk_norm="head"),
    ignore=r"lm_head\.weight",
)

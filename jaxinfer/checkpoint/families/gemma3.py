"""Gemma 3, its text part: five layers of sliding-window attention to one of global attention."""

import math
from typing import Any

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    HF_ACTIVATIONS,
    VALUE_AND_OUTPUT,
    activation,
    decoder_fields,
    gguf_vocab_size,
    layer,
    shortest_segments,
    window_fields,
)
from jaxinfer.checkpoint.families.rope import gguf_rope, hf_rope, rope_fields
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Rule, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Rope

# Hugging Face files hold the norms as w, and the model multiplies by 1 + w; GGUF files hold the sum.
_ONE: dict[str, Any] = {"hf_offset": 1.0}

_RULES = (
    *EMBED,
    layer("attention_norm/scale", "input_layernorm", "attn_norm", "d -> d", **_ONE),
    layer("attention/q/kernel", "self_attn.q_proj", "attn_q", "n h d -> (n h) d"),
    layer("attention/k/kernel", "self_attn.k_proj", "attn_k", "n h d -> (n h) d"),
    layer("attention/q_norm/scale", "self_attn.q_norm", "attn_q_norm", "h -> h", **_ONE),
    layer("attention/k_norm/scale", "self_attn.k_norm", "attn_k_norm", "h -> h", **_ONE),
    *VALUE_AND_OUTPUT,
    layer("attention_post_norm/scale", "post_attention_layernorm", "post_attention_norm", "d -> d", **_ONE),
    layer("mlp_norm/scale", "pre_feedforward_layernorm", "ffn_norm", "d -> d", **_ONE),
    *GATED_MLP,
    layer("mlp_post_norm/scale", "post_feedforward_layernorm", "post_ffw_norm", "d -> d", **_ONE),
    Rule("final_norm/scale", "model.norm.weight", "output_norm.weight", "d -> d", **_ONE),
)

_KINDS = {"sliding_attention": "local", "full_attention": "global"}


def _config(local: LayerKind, globl: LayerKind, types: list[str], query_width: float, **sizes) -> ModelConfig:
    kinds = [{"local": local, "global": globl}[name] for name in types]
    return ModelConfig(
        family="gemma3",
        segments=shortest_segments(kinds),
        qk_norm="head",
        post_norms=True,
        embed_scale=math.sqrt(sizes["d_model"]),
        query_scale=None if query_width == sizes["head_dim"] else query_width**-0.5,
        **sizes,
    )


def _alternating(n_layers: int, period: int) -> list[str]:
    """Make every `period`-th layer global."""
    return ["local" if (n + 1) % period else "global" for n in range(n_layers)]


def _layer_types(fields: Fields, n_layers: int) -> list[str]:
    types = fields.listed("layer_types", n_layers, _KINDS, None)
    if types is None:
        return _alternating(n_layers, fields.integer("sliding_window_pattern", 6))
    return [_KINDS[name] for name in types]


def _from_hf(fields: Fields) -> ModelConfig:
    fields = fields.group("text_config") or fields  # the multimodal models wrap it
    fields.refuse("attention_bias", "biases are not supported for this family yet")
    fields.refuse("use_bidirectional_attention", "only causal attention is supported")
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        fields.refuse(name, "softcapping is not supported for this family yet")
    n_layers = fields.integer("num_hidden_layers")
    by_type = fields.group("rope_parameters") or Fields(fields.file, {})
    # Scaling reaches the global layers only; a config of transformers 4 holds it in rope_scaling.
    globl = hf_rope(
        by_type.group("full_attention") or fields.group("rope_scaling"),
        fields.positive("rope_theta", 1_000_000.0),
        fields,
    )
    local = hf_rope(by_type.group("sliding_attention"), fields.positive("rope_local_base_freq", 10_000.0))
    return _config(
        types=_layer_types(fields, n_layers),
        local=LayerKind("local", local, fields.integer("sliding_window", 4096)),
        globl=LayerKind("global", globl),
        query_width=fields.positive("query_pre_attn_scalar", 256.0),
        # What configs on the hub leave out is what transformers takes for Gemma 3 by default.
        vocab_size=fields.integer("vocab_size", 262_208),
        d_model=fields.integer("hidden_size"),
        d_ff=fields.integer("intermediate_size"),
        n_heads=fields.integer("num_attention_heads", 8),
        n_kv_heads=fields.integer("num_key_value_heads", 4),
        head_dim=fields.integer("head_dim", 256),
        max_positions=fields.integer("max_position_embeddings", 131_072),
        norm_eps=fields.positive("rms_norm_eps", 1e-6),
        activation=activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    n_layers, d_model = fields.integer("block_count"), fields.integer("embedding_length")
    n_heads, width = fields.integer("attention.head_count"), fields.integer("attention.key_length")
    globl = gguf_rope(fields, tensors, fields.number("rope.freq_base", 1_000_000.0), width)
    local = Rope(fields.number("rope.freq_base_swa", 10_000.0))
    return _config(
        types=_alternating(n_layers, fields.integer("attention.sliding_window_pattern", 6)),
        local=LayerKind("local", local, fields.integer("attention.sliding_window")),
        globl=LayerKind("global", globl),
        # The metadata lacks it: the 27B model alone (62 layers) scales by d_model / n_heads, as in llama.cpp.
        query_width=d_model // n_heads if n_layers == 62 else width,
        vocab_size=gguf_vocab_size(fields, tensors),
        d_model=d_model,
        d_ff=fields.integer("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("attention.head_count_kv"),
        head_dim=width,
        max_positions=fields.integer("context_length"),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        activation="gelu_tanh",
        tie_embeddings="output.weight" not in tensors,
    )


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    ropes = {name: kind.rope for name in _KINDS for kind in cfg.kinds if kind.name == _KINDS[name] and kind.rope}
    return decoder_fields(cfg) | {
        **window_fields(cfg),
        "max_position_embeddings": cfg.max_positions,  # what their scaling reaches, unlike in other families
        "hidden_activation": HF_ACTIVATIONS[cfg.activation],
        "query_pre_attn_scalar": round((cfg.query_scale or cfg.head_dim**-0.5) ** -2),
        "rope_parameters": {name: rope_fields(rope, cfg.head_dim) for name, rope in ropes.items()},
    }


GEMMA3 = Family(
    name="gemma3",
    rules=_RULES,
    hf_types=("gemma3_text", "gemma3"),
    gguf_arch="gemma3",
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    gguf_config=_from_gguf,
    ignore=r"lm_head\.weight|(model\.)?(vision_tower|multi_modal_projector)\..*",
    hf_prefixes=(
        ("language_model.model.", "model."),
        ("model.language_model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ),
)

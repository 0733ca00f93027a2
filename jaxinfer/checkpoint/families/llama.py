"""Llama 1 to 3.2, SmolLM2, and others of the same architecture."""

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    VALUE_AND_OUTPUT,
    activation,
    gguf_rope,
    gguf_vocab_size,
    head_dim,
    hf_rope,
    layer,
)
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Rule, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Segment

# GGUF files of this architecture hold q and k for the interleaved RoPE: the two halves of a head, element by element.
_INTERLEAVED = "n (two half) d -> (n half two) d"

_RULES = (
    *EMBED,
    layer("attention_norm/scale", "input_layernorm", "attn_norm", "d -> d"),
    layer("attention/q/kernel", "self_attn.q_proj", "attn_q", "n h d -> (n h) d", gguf_axes=_INTERLEAVED),
    layer("attention/k/kernel", "self_attn.k_proj", "attn_k", "n h d -> (n h) d", gguf_axes=_INTERLEAVED),
    *VALUE_AND_OUTPUT,
    layer("mlp_norm/scale", "post_attention_layernorm", "ffn_norm", "d -> d"),
    *GATED_MLP,
    Rule("final_norm/scale", "model.norm.weight", "output_norm.weight", "d -> d"),
)


def _from_hf(fields: Fields) -> ModelConfig:
    for name in ("attention_bias", "mlp_bias"):
        fields.refuse(name, "biases are not supported for this family yet")
    d_model, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    rope = fields.group("rope_parameters") or fields.group("rope_scaling")
    kind = LayerKind("global", hf_rope(rope, fields.number("rope_theta", 10_000.0)))
    return ModelConfig(
        family="llama",
        vocab_size=fields.integer("vocab_size"),
        d_model=d_model,
        d_ff=fields.integer("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("num_key_value_heads", n_heads),
        head_dim=head_dim(fields, "head_dim", d_model, n_heads),
        segments=(Segment((kind,), fields.integer("num_hidden_layers")),),
        max_positions=fields.integer("max_position_embeddings", 2048),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        activation=activation(fields, "hidden_act", "silu"),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
    )


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    fields.refuse("expert_count", "mixtures of experts are not supported for this family yet")
    d_model, n_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    width = head_dim(fields, "attention.key_length", d_model, n_heads)
    rope = gguf_rope(fields, tensors, fields.number("rope.freq_base", 10_000.0), width)
    return ModelConfig(
        family="llama",
        vocab_size=gguf_vocab_size(fields, tensors),
        d_model=d_model,
        d_ff=fields.integer("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("attention.head_count_kv", n_heads),
        head_dim=width,
        segments=(Segment((LayerKind("global", rope),), fields.integer("block_count")),),
        max_positions=fields.integer("context_length"),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in tensors,
    )


LLAMA = Family(
    name="llama",
    rules=_RULES,
    hf_types=("llama",),
    gguf_arch="llama",
    hf_config=_from_hf,
    gguf_config=_from_gguf,
    # RoPE's frequencies follow from the configuration. Some files repeat the tied head.
    ignore=r"rope_freqs\.weight|.*\.rotary_emb\.inv_freq|lm_head\.weight",
)

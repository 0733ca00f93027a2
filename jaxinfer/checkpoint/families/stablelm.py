"""StableLM: layer norms with biases, RoPE on a quarter of each head, and for some sizes attention beside the MLP."""

from typing import Any

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    NORMS,
    QUERY_AND_KEY,
    VALUE_AND_OUTPUT,
    biases,
    decoder_fields,
    gguf_decoder,
    gguf_layer_norm,
    hf_decoder,
    norm_biases,
)
from jaxinfer.checkpoint.families.common import head_dim as width_of_head
from jaxinfer.checkpoint.families.rope import partial_width, rope_of
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Rope
from jaxinfer.errors import InputError


def _from_hf(fields: Fields) -> ModelConfig:
    fields.refuse("qk_layernorm", "norms of their own for each head are not supported")
    d_model, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    width = width_of_head(fields, "head_dim", d_model, n_heads)
    rope = rope_of(fields, width=partial_width(fields, "partial_rotary_factor", width, 0.25))
    parallel = fields.flag("use_parallel_residual", False)
    return hf_decoder(
        fields,
        "stablelm",
        kinds=[LayerKind("global", rope)] * fields.integer("num_hidden_layers"),
        norm="layer",
        norm_bias=True,
        norm_eps=fields.positive("layer_norm_eps", 1e-5),
        attention_bias=fields.flag("use_qkv_bias", False),
        parallel=parallel,
        shared_norm=parallel,
    )


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    if "blk.0.attn_q_norm.weight" in tensors:
        raise InputError(f"{fields.file}: tensor 'blk.0.attn_q_norm.weight': norms for each head are not supported")
    parallel = (
        "blk.0.ffn_norm.weight" not in tensors
    )  # as llama.cpp decides: some files say use_parallel_residual amiss
    return gguf_decoder(
        fields,
        tensors,
        "stablelm",
        partial=True,
        norm="layer",
        norm_bias=True,
        norm_eps=gguf_layer_norm(fields),
        attention_bias="blk.0.attn_q.bias" in tensors,
        parallel=parallel,
        shared_norm=parallel,
    )


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    rope = cfg.kinds[0].rope or Rope()
    return decoder_fields(cfg) | {
        "layer_norm_eps": cfg.norm_eps,
        "use_qkv_bias": cfg.attention_bias,
        "use_parallel_residual": cfg.parallel,
        "partial_rotary_factor": (rope.width or cfg.head_dim) / cfg.head_dim,
    }


STABLELM = Family(
    name="stablelm",
    rules=(
        *EMBED,
        *NORMS,
        *norm_biases(*NORMS),
        *QUERY_AND_KEY,
        *VALUE_AND_OUTPUT,
        *biases(*QUERY_AND_KEY, VALUE_AND_OUTPUT[0]),
        *GATED_MLP,
    ),
    hf_types=("stablelm",),
    hf_defaults=dict(max_position_embeddings=4096, num_key_value_heads=32),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    gguf_arch="stablelm",
    gguf_config=_from_gguf,
    ignore=r".*\.rotary_emb\.inv_freq|lm_head\.weight",
)

"""Llama 1 to 3.2, SmolLM2, and others of the same architecture."""

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    NORMS,
    TURNED_QUERY_AND_KEY,
    VALUE_AND_OUTPUT,
    biases,
    decoder_fields,
    gguf_decoder,
    hf_decoder,
)
from jaxinfer.checkpoint.families.moe import mixtral_from_gguf
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Tensors
from jaxinfer.config import ModelConfig

_RULES = (
    *EMBED,
    *NORMS,
    *TURNED_QUERY_AND_KEY,
    *VALUE_AND_OUTPUT,
    *GATED_MLP,
)


def _from_hf(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    mlp_bias = fields.flag("mlp_bias", False)
    return hf_decoder(fields, "llama", attention_bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    """Read a GGUF file of Llama, or of Mixtral, whose files call themselves llama too."""
    if fields.get("expert_count", 0):
        return mixtral_from_gguf(fields, tensors)
    biased = {"attention_bias": "attn_q", "output_bias": "attn_output", "mlp_bias": "ffn_up"}
    settings = {name: f"blk.0.{tensor}.bias" in tensors for name, tensor in biased.items()}
    return gguf_decoder(fields, tensors, "llama", **settings)


LLAMA = Family(
    name="llama",
    rules=(*_RULES, *biases(*(rule for rule in _RULES if rule.per_layer and rule.param.endswith("kernel")))),
    hf_types=("llama",),
    gguf_arch="llama",
    hf_config=_from_hf,
    hf_fields=decoder_fields,
    gguf_config=_from_gguf,
    # RoPE's frequencies follow from the configuration. Some files repeat the tied head.
    ignore=r"rope_freqs\.weight|.*\.rotary_emb\.inv_freq|lm_head\.weight",
)

"""Granite 3: Llama with multipliers on the embedding, the residuals, the scores and the logits."""

from typing import Any

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
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Tensors
from jaxinfer.config import ModelConfig


def _from_hf(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    return hf_decoder(
        fields,
        "granite",
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        embed_scale=fields.positive("embedding_multiplier", 1.0),
        residual_scale=fields.positive("residual_multiplier", 1.0),
        query_scale=fields.positive("attention_multiplier", 1.0),
        logit_scale=1.0 / fields.positive("logits_scaling", 1.0),
    )


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    return gguf_decoder(
        fields,
        tensors,
        "granite",
        embed_scale=fields.number("embedding_scale", 1.0),
        residual_scale=fields.number("residual_scale", 1.0),
        query_scale=fields.number("attention.scale", None),
        logit_scale=1.0 / fields.positive("logit_scale", 1.0),
    )


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    return decoder_fields(cfg) | {
        "embedding_multiplier": cfg.embed_scale,
        "residual_multiplier": cfg.residual_scale,
        "attention_multiplier": cfg.query_scale,
        "logits_scaling": 1.0 / cfg.logit_scale,
    }


GRANITE = Family(
    name="granite",
    rules=(
        *EMBED,
        *NORMS,
        *TURNED_QUERY_AND_KEY,
        *VALUE_AND_OUTPUT,
        *GATED_MLP,
        *biases(*TURNED_QUERY_AND_KEY, *VALUE_AND_OUTPUT, *GATED_MLP),
    ),
    hf_types=("granite",),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    gguf_arch="granite",
    gguf_config=_from_gguf,
    ignore=r"rope_freqs\.weight|lm_head\.weight",
)

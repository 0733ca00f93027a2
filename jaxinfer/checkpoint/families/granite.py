"""Granite 3: Llama with multipliers on the embedding, the residuals, the scores and the logits."""

from typing import Any

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    NORMS,
    QUERY_AND_KEY,
    VALUE_AND_OUTPUT,
    biases,
    decoder_fields,
    hf_decoder,
)
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family
from jaxinfer.config import ModelConfig


def _from_hf(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    return hf_decoder(
        fields,
        "granite",
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        embed_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        query_scale=fields.number("attention_multiplier", 1.0),
        logit_scale=1.0 / fields.number("logits_scaling", 1.0),
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
        *QUERY_AND_KEY,
        *VALUE_AND_OUTPUT,
        *GATED_MLP,
        *biases(*QUERY_AND_KEY, *VALUE_AND_OUTPUT, *GATED_MLP),
    ),
    hf_types=("granite",),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    ignore=r"lm_head\.weight",
)

"""Mistral 7B and its successors: Llama with a window in every layer, or in none."""

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    NORMS,
    QUERY_AND_KEY,
    VALUE_AND_OUTPUT,
    decoder_fields,
    hf_decoder,
)
from jaxinfer.checkpoint.families.rope import rope_of
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family
from jaxinfer.config import LayerKind, ModelConfig


def _from_hf(fields: Fields) -> ModelConfig:
    window = fields.integer("sliding_window", None)
    kind = LayerKind("local" if window else "global", rope_of(fields), window)
    return hf_decoder(fields, "mistral", kinds=[kind] * fields.integer("num_hidden_layers"))


MISTRAL = Family(  # their GGUF files say "llama"
    name="mistral",
    rules=(*EMBED, *NORMS, *QUERY_AND_KEY, *VALUE_AND_OUTPUT, *GATED_MLP),
    hf_types=("mistral",),
    hf_defaults=dict(max_position_embeddings=131_072, num_key_value_heads=8, sliding_window=4096),
    hf_config=_from_hf,
    hf_fields=lambda cfg: decoder_fields(cfg) | {"sliding_window": cfg.kinds[0].window},
    ignore=r".*\.rotary_emb\.inv_freq|lm_head\.weight",
)

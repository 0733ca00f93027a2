"""SmolLM3: Llama without positions in every fourth layer (NoPE)."""

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
from jaxinfer.checkpoint.families.rope import rope_of
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family
from jaxinfer.config import LayerKind, ModelConfig, Rope


def _from_hf(fields: Fields) -> ModelConfig:
    fields.refuse("use_sliding_window", "windows are not supported for this family")
    n_layers, interval = fields.integer("num_hidden_layers"), fields.integer("no_rope_layer_interval", 4)
    turned = fields.listed("no_rope_layers", n_layers, (0, 1), None)  # in spite of its name: 1 where there is RoPE
    if turned is None:
        turned = [int((n + 1) % interval != 0) for n in range(n_layers)]
    rope = LayerKind("global", rope_of(fields, 2_000_000.0))
    bias = fields.flag("attention_bias", False)
    return hf_decoder(
        fields,
        "smollm3",
        kinds=[rope if turn else LayerKind("nope", None) for turn in turned],
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _kinds(rope: Rope, n_layers: int) -> list[LayerKind]:
    """Make every fourth layer one without positions, as llama.cpp does: GGUF files do not say which have none."""
    plain, nope = LayerKind("global", rope), LayerKind("nope", None)
    return [plain if (n + 1) % 4 else nope for n in range(n_layers)]


SMOLLM3 = Family(
    name="smollm3",
    rules=(
        *EMBED,
        *NORMS,
        *TURNED_QUERY_AND_KEY,
        *VALUE_AND_OUTPUT,
        *GATED_MLP,
        *biases(*TURNED_QUERY_AND_KEY, *VALUE_AND_OUTPUT, *GATED_MLP),
    ),
    hf_types=("smollm3",),
    hf_defaults=dict(max_position_embeddings=32_768, num_key_value_heads=4),
    hf_config=_from_hf,
    hf_fields=lambda cfg: decoder_fields(cfg) | {"no_rope_layers": [int(kind.rope is not None) for kind in cfg.layers]},
    gguf_arch="smollm3",
    gguf_config=lambda fields, tensors: gguf_decoder(fields, tensors, "smollm3", kinds=_kinds),
    ignore=r"lm_head\.weight",
)

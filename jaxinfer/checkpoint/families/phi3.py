"""Phi-3: Llama with q, k and v in one tensor, and gate and up in another."""

from typing import Any

from jaxinfer.checkpoint.families.common import (
    EMBED,
    GATED_MLP,
    NORMS,
    VALUE_AND_OUTPUT,
    decoder_fields,
    gguf_decoder,
    hf_decoder,
    layer,
)
from jaxinfer.checkpoint.families.common import head_dim as width_of_head
from jaxinfer.checkpoint.families.fused import in_turn, qkv
from jaxinfer.checkpoint.families.rope import partial_width, rope_of
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Part, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Rope
from jaxinfer.errors import InputError


def _from_hf(fields: Fields) -> ModelConfig:
    d_model, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    width = width_of_head(fields, "head_dim", d_model, n_heads)
    rope = rope_of(fields, width=partial_width(fields, "partial_rotary_factor", width, 1.0))
    window = fields.integer("sliding_window", None)
    kind = LayerKind("local" if window else "global", rope, window)
    return hf_decoder(fields, "phi3", kinds=[kind] * fields.integer("num_hidden_layers"))


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        if name in tensors:
            raise InputError(f"{fields.file}: tensor {name!r}: longrope in GGUF files is not supported")
    window = fields.integer("attention.sliding_window", None)

    def kinds(rope: Rope, n: int) -> list[LayerKind]:
        return [LayerKind("local" if window else "global", rope, window)] * n

    return gguf_decoder(fields, tensors, "phi3", kinds=kinds, partial=True)


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    rope = cfg.kinds[0].rope or Rope()
    if rope.scaling and rope.scaling.kind not in ("longrope", "ntk"):  # ntk: a base, and no scaling in the file
        raise InputError(f"transformers has no {rope.scaling.kind} scaling of this family's positions")
    original = rope.scaling.original_max_positions if rope.scaling else cfg.max_positions
    return decoder_fields(cfg) | {
        "sliding_window": cfg.kinds[0].window,
        "original_max_position_embeddings": original,
        "partial_rotary_factor": (rope.width or cfg.head_dim) / cfg.head_dim,
    }


PHI3 = Family(
    name="phi3",
    rules=(
        *EMBED,
        *NORMS,
        *qkv("model.layers.{n}.self_attn.qkv_proj", in_turn, bias=False),
        VALUE_AND_OUTPUT[1],
        layer("mlp/gate/kernel", "mlp.gate_up_proj", "ffn_up", "f d -> f d", part=lambda cfg: Part(0, 1, 2)),
        layer("mlp/up/kernel", "mlp.gate_up_proj", "ffn_up", "f d -> f d", part=lambda cfg: Part(1, 1, 2)),
        GATED_MLP[2],
    ),
    hf_types=("phi3",),
    hf_defaults=dict(max_position_embeddings=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-05),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    gguf_arch="phi3",
    gguf_config=_from_gguf,
    ignore=r".*\.rotary_emb\.inv_freq|lm_head\.weight",
)

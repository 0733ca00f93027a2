"""OLMo 2: norms after attention and MLP, none before; q and k are normalized over all heads as one."""

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
    hf_decoder,
    layer,
)
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family
from jaxinfer.config import ModelConfig

_NORMS: dict[str, Any] = dict(pre_norms=False, post_norms=True, qk_norm="whole")


def _from_hf(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    return hf_decoder(fields, "olmo2", attention_bias=bias, output_bias=bias, **_NORMS)


OLMO2 = Family(
    name="olmo2",
    rules=(
        *EMBED,
        *QUERY_AND_KEY,
        *VALUE_AND_OUTPUT,
        *biases(*QUERY_AND_KEY, *VALUE_AND_OUTPUT),
        *GATED_MLP,
        layer("attention/q_norm/scale", "self_attn.q_norm", "attn_q_norm", "n h -> (n h)"),
        layer("attention/k_norm/scale", "self_attn.k_norm", "attn_k_norm", "n h -> (n h)"),
        layer("attention_post_norm/scale", "post_attention_layernorm", "post_attention_norm", "d -> d"),
        layer("mlp_post_norm/scale", "post_feedforward_layernorm", "post_ffw_norm", "d -> d"),
        NORMS[-1],
    ),
    hf_types=("olmo2",),
    hf_defaults=dict(rms_norm_eps=1e-05),
    hf_config=_from_hf,
    hf_fields=decoder_fields,
    gguf_arch="olmo2",
    gguf_config=lambda fields, tensors: gguf_decoder(fields, tensors, "olmo2", **_NORMS),
    ignore=r"lm_head\.weight",
)

"""GPT-NeoX and Pythia: attention beside the MLP, each with a norm of its own; RoPE on a quarter of each head."""

from typing import Any

from jaxinfer.checkpoint.families.common import decoder_fields, even_share, gguf_decoder, gguf_layer_norm, hf_decoder
from jaxinfer.checkpoint.families.fused import MLP_AXES, grouped, named, qkv, whole_model, with_biases
from jaxinfer.checkpoint.families.rope import partial_width, rope_of
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Tensors
from jaxinfer.config import LayerKind, ModelConfig, Rope

_LAYERS = {
    "attention_norm/scale": "input_layernorm",
    "mlp_norm/scale": "post_attention_layernorm",
    "attention/o/kernel": "attention.dense",
    "mlp/up/kernel": "mlp.dense_h_to_4h",
    "mlp/down/kernel": "mlp.dense_4h_to_h",
}


def _from_hf(fields: Fields) -> ModelConfig:
    width = even_share(fields, fields.integer("hidden_size"), fields.integer("num_attention_heads"))
    turning = partial_width(fields, "rotary_pct", width, 0.25)
    rope = rope_of(fields, fields.positive("rotary_emb_base", 10_000.0), turning)
    bias = fields.flag("attention_bias", True)
    return hf_decoder(
        fields,
        "gpt_neox",
        kinds=[LayerKind("global", rope)] * fields.integer("num_hidden_layers"),
        n_kv_heads=fields.integer("num_attention_heads"),
        norm="layer",
        norm_bias=True,
        norm_eps=fields.positive("layer_norm_eps", 1e-5),
        gated=False,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        parallel=fields.flag("use_parallel_residual", True),
    )


def _from_gguf(fields: Fields, tensors: Tensors) -> ModelConfig:
    bias = "blk.0.attn_qkv.bias" in tensors
    return gguf_decoder(
        fields,
        tensors,
        "gpt_neox",
        partial=True,
        norm="layer",
        norm_bias=True,
        norm_eps=gguf_layer_norm(fields),
        activation="gelu",  # Pythia's; the metadata does not say that GPT-NeoX 20B has the tanh approximation
        gated=False,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        parallel=fields.flag("use_parallel_residual", True),
    )


def _hf_fields(cfg: ModelConfig) -> dict[str, Any]:
    return decoder_fields(cfg) | {
        "layer_norm_eps": cfg.norm_eps,
        "use_parallel_residual": cfg.parallel,
        "rotary_pct": ((cfg.kinds[0].rope or Rope()).width or cfg.head_dim) / cfg.head_dim,
    }


GPT_NEOX = Family(
    name="gpt_neox",
    rules=(
        *whole_model("gpt_neox.embed_in", "embed_out", "gpt_neox.final_layer_norm"),
        *qkv("gpt_neox.layers.{n}.attention.query_key_value", grouped),
        *named("gpt_neox.layers", with_biases(_LAYERS), MLP_AXES),
    ),
    hf_types=("gpt_neox",),
    hf_defaults=dict(hidden_act="gelu"),
    hf_config=_from_hf,
    hf_fields=_hf_fields,
    gguf_arch="gptneox",
    gguf_config=_from_gguf,
    ignore=r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|embed_out\.weight",
)

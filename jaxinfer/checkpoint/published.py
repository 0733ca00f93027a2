"""The published config.json of well-known models: the fields that a family's reader takes, by the id on the hub.

What a file says of training (dropout, initialization), of tokens and of transformers itself is left out.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """The config.json of one model."""

    repo: str  # on the Hugging Face hub
    fields: dict[str, Any]


def _sizes(d_model: int, d_ff: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": d_model,
        "intermediate_size": d_ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


_LLAMA = dict(model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=False)
_LLAMA2 = dict(_LLAMA, vocab_size=32_000, max_position_embeddings=4096)
_LLAMA3 = dict(_LLAMA, vocab_size=128_256, max_position_embeddings=8192, rope_theta=500_000.0)
_LLAMA3_ROPE = dict(
    rope_type="llama3",
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
_LLAMA31 = dict(_LLAMA3, max_position_embeddings=131_072, rope_scaling=dict(_LLAMA3_ROPE, factor=8.0))
_LLAMA32 = dict(_LLAMA31, rope_scaling=dict(_LLAMA3_ROPE, factor=32.0), tie_word_embeddings=True)

_MISTRAL = dict(
    hidden_act="silu",
    rms_norm_eps=1e-5,
    vocab_size=32_000,
    max_position_embeddings=32_768,
    tie_word_embeddings=False,
)
_MIXTRAL = dict(
    _MISTRAL,
    model_type="mixtral",
    num_local_experts=8,
    num_experts_per_tok=2,
    rope_theta=1_000_000.0,
    sliding_window=None,
)

_QWEN25 = dict(
    model_type="qwen2",
    hidden_act="silu",
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    vocab_size=152_064,
    max_position_embeddings=131_072,
    use_sliding_window=False,
    tie_word_embeddings=False,
)
_QWEN25_TIED = dict(_QWEN25, vocab_size=151_936, tie_word_embeddings=True)

_QWEN3 = dict(
    model_type="qwen3",
    hidden_act="silu",
    head_dim=128,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    vocab_size=151_936,
    max_position_embeddings=40_960,
    attention_bias=False,
    use_sliding_window=False,
    tie_word_embeddings=False,
)
_QWEN3_TIED = dict(_QWEN3, tie_word_embeddings=True)
_QWEN3_MOE = dict(
    _QWEN3,
    model_type="qwen3_moe",
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    decoder_sparse_step=1,
    mlp_only_layers=[],
)

_GEMMA3 = dict(
    model_type="gemma3_text",
    hidden_activation="gelu_pytorch_tanh",
    vocab_size=262_144,
    head_dim=256,
    query_pre_attn_scalar=256,
    sliding_window=512,
    max_position_embeddings=32_768,
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    rms_norm_eps=1e-6,
)
_GEMMA3_LONG = dict(  # the text part of the multimodal models
    _GEMMA3,
    vocab_size=262_208,
    sliding_window=1024,
    max_position_embeddings=131_072,
    rope_scaling=dict(rope_type="linear", factor=8.0),
)

_GPT_OSS = dict(
    model_type="gpt_oss",
    hidden_act="silu",
    vocab_size=201_088,
    head_dim=64,
    num_experts_per_tok=4,
    sliding_window=128,
    max_position_embeddings=131_072,
    attention_bias=True,
    swiglu_limit=7.0,
    rms_norm_eps=1e-5,
    rope_theta=150_000.0,
    rope_scaling=dict(
        rope_type="yarn",
        factor=32.0,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=False,
        original_max_position_embeddings=4096,
    ),
    tie_word_embeddings=False,
)

_DEEPSEEK_V3 = dict(
    model_type="deepseek_v3",
    hidden_act="silu",
    vocab_size=129_280,
    moe_intermediate_size=2048,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    n_group=8,
    topk_group=4,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    first_k_dense_replace=3,
    max_position_embeddings=163_840,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    rope_scaling=dict(
        type="yarn",
        factor=40,
        beta_fast=32,
        beta_slow=1,
        mscale=1.0,
        mscale_all_dim=1.0,
        original_max_position_embeddings=4096,
    ),
    attention_bias=False,
    tie_word_embeddings=False,
)

_SMOLLM2 = dict(_LLAMA, vocab_size=49_152, max_position_embeddings=8192, rope_theta=100_000.0, tie_word_embeddings=True)
_FALCON = dict(model_type="falcon", vocab_size=65_024, alibi=False, bias=False, parallel_attn=True)
_MAMBA = dict(model_type="mamba", vocab_size=50_280, state_size=16, conv_kernel=4, expand=2, use_bias=False)


def _layer_types(layers: int) -> list[str]:
    return ["full_attention" if n % 2 else "sliding_attention" for n in range(layers)]


def _opt(size: str, d_model: int, layers: int, heads: int) -> Published:
    sizes = dict(hidden_size=d_model, ffn_dim=4 * d_model, num_hidden_layers=layers, num_attention_heads=heads)
    positions = dict(max_position_embeddings=2048, word_embed_proj_dim=d_model, do_layer_norm_before=True)
    settings = dict(model_type="opt", vocab_size=50_272, activation_function="relu")
    return Published(f"facebook/opt-{size}", settings | sizes | positions)


def _gpt_oss(size: str, layers: int, experts: int) -> Published:
    sizes = _sizes(2880, 2880, layers, 64, 8)
    own = dict(num_local_experts=experts, layer_types=_layer_types(layers))
    return Published(f"openai/gpt-oss-{size}", _GPT_OSS | sizes | own)


PUBLISHED: dict[str, Published] = {
    "llama-2-7b": Published("meta-llama/Llama-2-7b-hf", _LLAMA2 | _sizes(4096, 11_008, 32, 32, 32)),
    "llama-2-13b": Published("meta-llama/Llama-2-13b-hf", _LLAMA2 | _sizes(5120, 13_824, 40, 40, 40)),
    "llama-2-70b": Published("meta-llama/Llama-2-70b-hf", _LLAMA2 | _sizes(8192, 28_672, 80, 64, 8)),
    "llama-3-8b": Published("meta-llama/Meta-Llama-3-8B", _LLAMA3 | _sizes(4096, 14_336, 32, 32, 8)),
    "llama-3-70b": Published("meta-llama/Meta-Llama-3-70B", _LLAMA3 | _sizes(8192, 28_672, 80, 64, 8)),
    "llama-3.1-8b": Published("meta-llama/Llama-3.1-8B", _LLAMA31 | _sizes(4096, 14_336, 32, 32, 8)),
    "llama-3.1-70b": Published("meta-llama/Llama-3.1-70B", _LLAMA31 | _sizes(8192, 28_672, 80, 64, 8)),
    "llama-3.1-405b": Published("meta-llama/Llama-3.1-405B", _LLAMA31 | _sizes(16_384, 53_248, 126, 128, 8)),
    "llama-3.2-1b": Published("meta-llama/Llama-3.2-1B", _LLAMA32 | _sizes(2048, 8192, 16, 32, 8)),
    "llama-3.2-3b": Published("meta-llama/Llama-3.2-3B", _LLAMA32 | _sizes(3072, 8192, 28, 24, 8)),
    "mistral-7b": Published(
        "mistralai/Mistral-7B-v0.1",
        _MISTRAL | dict(model_type="mistral", sliding_window=4096) | _sizes(4096, 14_336, 32, 32, 8),
    ),
    "mixtral-8x7b": Published("mistralai/Mixtral-8x7B-v0.1", _MIXTRAL | _sizes(4096, 14_336, 32, 32, 8)),
    "mixtral-8x22b": Published(
        "mistralai/Mixtral-8x22B-v0.1",
        _MIXTRAL | dict(max_position_embeddings=65_536) | _sizes(6144, 16_384, 56, 48, 8),
    ),
    "qwen2.5-0.5b": Published(
        "Qwen/Qwen2.5-0.5B", _QWEN25_TIED | dict(max_position_embeddings=32_768) | _sizes(896, 4864, 24, 14, 2)
    ),
    "qwen2.5-1.5b": Published("Qwen/Qwen2.5-1.5B", _QWEN25_TIED | _sizes(1536, 8960, 28, 12, 2)),
    "qwen2.5-3b": Published(
        "Qwen/Qwen2.5-3B", _QWEN25_TIED | dict(max_position_embeddings=32_768) | _sizes(2048, 11_008, 36, 16, 2)
    ),
    "qwen2.5-7b": Published("Qwen/Qwen2.5-7B", _QWEN25 | _sizes(3584, 18_944, 28, 28, 4)),
    "qwen2.5-14b": Published("Qwen/Qwen2.5-14B", _QWEN25 | dict(rms_norm_eps=1e-5) | _sizes(5120, 13_824, 48, 40, 8)),
    "qwen2.5-32b": Published("Qwen/Qwen2.5-32B", _QWEN25 | dict(rms_norm_eps=1e-5) | _sizes(5120, 27_648, 64, 40, 8)),
    "qwen2.5-72b": Published("Qwen/Qwen2.5-72B", _QWEN25 | dict(rms_norm_eps=1e-5) | _sizes(8192, 29_568, 80, 64, 8)),
    "qwen3-0.6b": Published("Qwen/Qwen3-0.6B", _QWEN3_TIED | _sizes(1024, 3072, 28, 16, 8)),
    "qwen3-1.7b": Published("Qwen/Qwen3-1.7B", _QWEN3_TIED | _sizes(2048, 6144, 28, 16, 8)),
    "qwen3-4b": Published("Qwen/Qwen3-4B", _QWEN3_TIED | _sizes(2560, 9728, 36, 32, 8)),
    "qwen3-8b": Published("Qwen/Qwen3-8B", _QWEN3 | _sizes(4096, 12_288, 36, 32, 8)),
    "qwen3-14b": Published("Qwen/Qwen3-14B", _QWEN3 | _sizes(5120, 17_408, 40, 40, 8)),
    "qwen3-32b": Published("Qwen/Qwen3-32B", _QWEN3 | _sizes(5120, 25_600, 64, 64, 8)),
    "qwen3-30b-a3b": Published(
        "Qwen/Qwen3-30B-A3B", _QWEN3_MOE | dict(moe_intermediate_size=768) | _sizes(2048, 6144, 48, 32, 4)
    ),
    "qwen3-235b-a22b": Published(
        "Qwen/Qwen3-235B-A22B", _QWEN3_MOE | dict(moe_intermediate_size=1536) | _sizes(4096, 12_288, 94, 64, 4)
    ),
    "gemma3-270m": Published("google/gemma-3-270m", _GEMMA3 | _sizes(640, 2048, 18, 4, 1)),
    "gemma3-1b": Published("google/gemma-3-1b-pt", _GEMMA3 | _sizes(1152, 6912, 26, 4, 1)),
    "gemma3-4b": Published("google/gemma-3-4b-pt", _GEMMA3_LONG | _sizes(2560, 10_240, 34, 8, 4)),
    "gemma3-12b": Published("google/gemma-3-12b-pt", _GEMMA3_LONG | _sizes(3840, 15_360, 48, 16, 8)),
    "gemma3-27b": Published(
        "google/gemma-3-27b-pt",
        _GEMMA3_LONG | dict(head_dim=128, query_pre_attn_scalar=168) | _sizes(5376, 21_504, 62, 32, 16),
    ),
    "opt-125m": _opt("125m", 768, 12, 12),
    "opt-1.3b": _opt("1.3b", 2048, 24, 32),
    "opt-2.7b": _opt("2.7b", 2560, 32, 32),
    "opt-6.7b": _opt("6.7b", 4096, 32, 32),
    "opt-13b": _opt("13b", 5120, 40, 40),
    "opt-30b": _opt("30b", 7168, 48, 56),
    "opt-66b": _opt("66b", 9216, 64, 72),
    "falcon-7b": Published(
        "tiiuae/falcon-7b",
        _FALCON
        | dict(hidden_size=4544, num_hidden_layers=32, num_attention_heads=71)
        | dict(multi_query=True, new_decoder_architecture=False),
    ),
    "falcon-40b": Published(
        "tiiuae/falcon-40b",
        _FALCON
        | dict(hidden_size=8192, num_hidden_layers=60, num_attention_heads=128)
        | dict(num_kv_heads=8, new_decoder_architecture=True),
    ),
    "gpt-oss-20b": _gpt_oss("20b", 24, 32),
    "gpt-oss-120b": _gpt_oss("120b", 36, 128),
    "deepseek-v3": Published("deepseek-ai/DeepSeek-V3", _DEEPSEEK_V3 | _sizes(7168, 18_432, 61, 128, 128)),
    "smollm2-135m": Published("HuggingFaceTB/SmolLM2-135M", _SMOLLM2 | _sizes(576, 1536, 30, 9, 3)),
    "smollm2-360m": Published("HuggingFaceTB/SmolLM2-360M", _SMOLLM2 | _sizes(960, 2560, 32, 15, 5)),
    "smollm2-1.7b": Published(
        "HuggingFaceTB/SmolLM2-1.7B", _SMOLLM2 | dict(rope_theta=130_000.0) | _sizes(2048, 8192, 24, 32, 32)
    ),
    "mamba-2.8b": Published("state-spaces/mamba-2.8b-hf", _MAMBA | dict(hidden_size=2560, num_hidden_layers=64)),
}
"""By the names that `random:NAME` and `--model` take."""

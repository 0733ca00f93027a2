"""Makes the golden files: one small random model of each family, and what transformers computes with it.

    python tests/golden/make.py [CASE ...]

A file holds config.json, every tensor under the name that transformers gives it, prompts, the logits of each prompt and
the tokens that greedy decoding continues it with. Weights are multiples of 1/64, so that a byte holds one exactly. The
files of a family take at most 200 kB together: where it has several, they are of smaller models.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

transformers.utils.logging.disable_progress_bar()

HERE = Path(__file__).parent
STEP = 64  # weights are multiples of 1 / STEP
LENGTHS = (11, 1, 40, 23)  # beyond the windows of 8, and below
# Beyond the bound of 8 from the start: a cache is not filled anew where a text crosses it (tests/test_rope_lengths.py).
LENGTHS_OF = {"phi3-longrope": (11, 9, 40, 23)}
NEW = 32
CLEAR = 1e-3  # a greedy choice is ahead by that share of the largest logit: rounding cannot decide it

SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
HEAD = dict(head_dim=16)
FOUR = dict(SIZES, num_hidden_layers=4)
ALTERNATING = ["sliding_attention", "full_attention"] * 2
SMALL = dict(vocab_size=97, bos_token_id=None, eos_token_id=None, pad_token_id=None)
FALCON = dict(SMALL, hidden_size=48, ffn_hidden_size=96, num_hidden_layers=2, num_attention_heads=4)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=10_000.0)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
    rope_theta=50_000.0,
)
LONGROPE = dict(
    rope_type="longrope",
    short_factor=[1.0, 1.5, 1.5, 2.0],
    long_factor=[1.0, 2.0, 4.0, 8.0],
    rope_theta=10_000.0,
    original_max_position_embeddings=8,
)
EXPERTS = dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=32)
QWEN2_MOE = SIZES | EXPERTS | dict(moe_intermediate_size=24, shared_expert_intermediate_size=32)

DEEPSEEK = SIZES | dict(
    num_key_value_heads=6,
    kv_lora_rank=24,
    q_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    moe_intermediate_size=20,
    num_experts_per_tok=3,
    num_hidden_layers=3,
    first_k_dense_replace=1,
)
DEEPSEEK2 = DEEPSEEK | dict(moe_intermediate_size=8, intermediate_size=32)
GROUPS = dict(n_routed_experts=8, n_group=4, topk_group=2)

CASES = {
    "llama": ("LlamaConfig", SIZES),
    "llama-biases": ("LlamaConfig", dict(SIZES, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3)),
    "llama-yarn": ("LlamaConfig", dict(SIZES, rope_parameters=YARN, tie_word_embeddings=True)),
    "mistral": ("MistralConfig", dict(SIZES, sliding_window=8, **HEAD)),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen2-window": ("Qwen2Config", dict(SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "qwen3": ("Qwen3Config", dict(SIZES, **HEAD)),
    "gemma": ("GemmaConfig", dict(SIZES, **HEAD)),
    "gemma2": ("Gemma2Config", dict(FOUR, sliding_window=8, query_pre_attn_scalar=24, **HEAD)),
    "gemma3": (
        "Gemma3TextConfig",
        dict(FOUR, sliding_window=8, query_pre_attn_scalar=24, layer_types=ALTERNATING, **HEAD),
    ),
    "phi3": ("Phi3Config", SIZES),
    "phi3-longrope": ("Phi3Config", dict(SIZES, rope_parameters=LONGROPE, original_max_position_embeddings=8)),
    "olmo2": ("Olmo2Config", SIZES),
    "smollm3": ("SmolLM3Config", dict(FOUR, no_rope_layer_interval=4)),
    "granite": (
        "GraniteConfig",
        dict(
            SIZES,
            embedding_multiplier=3.0,
            residual_multiplier=0.4,
            attention_multiplier=0.2,
            logits_scaling=2.0,
        ),
    ),
    "stablelm": ("StableLmConfig", dict(SIZES, use_qkv_bias=True, partial_rotary_factor=0.5)),
    "stablelm-parallel": ("StableLmConfig", dict(SIZES, use_parallel_residual=True)),
    "falcon-7b": ("FalconConfig", FALCON),
    "falcon-40b": ("FalconConfig", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2)),
    "falcon-rw": (
        "FalconConfig",
        dict(FALCON, multi_query=False, parallel_attn=False, alibi=True, bias=True),
    ),
    "mpt": ("MptConfig", dict(SMALL, d_model=48, n_heads=6, n_layers=2, max_seq_len=256)),
    "bloom": ("BloomConfig", dict(SMALL, hidden_size=48, n_head=6, n_layer=2)),
    "gpt2": ("GPT2Config", dict(SMALL, n_embd=48, n_head=6, n_layer=2, n_positions=256)),
    "gpt-neox": ("GPTNeoXConfig", NEOX),
    "gpt-neox-serial": ("GPTNeoXConfig", dict(NEOX, use_parallel_residual=False, rotary_pct=0.5)),
    "mixtral": ("MixtralConfig", dict(SIZES, num_local_experts=5, num_experts_per_tok=2, intermediate_size=40)),
    "qwen2-moe": ("Qwen2MoeConfig", QWEN2_MOE),
    "qwen2-moe-mixed": ("Qwen2MoeConfig", dict(QWEN2_MOE, mlp_only_layers=[1])),
    "qwen3-moe": ("Qwen3MoeConfig", dict(SIZES, **EXPERTS, norm_topk_prob=True, **HEAD)),
    "olmoe": ("OlmoeConfig", dict(SIZES, num_experts=6, num_experts_per_tok=3, intermediate_size=40)),
    "gpt-oss": (
        "GptOssConfig",
        dict(
            FOUR,
            sliding_window=8,
            intermediate_size=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters=YARN,
            **HEAD,
        ),
    ),
    "deepseek-v2": ("DeepseekV2Config", dict(DEEPSEEK2, n_routed_experts=6, q_lora_rank=None)),
    "deepseek-v2-groups": (
        "DeepseekV2Config",
        dict(DEEPSEEK2, **GROUPS, num_hidden_layers=2, topk_method="group_limited_greedy", routed_scaling_factor=1.7),
    ),
    "deepseek-v3": ("DeepseekV3Config", dict(DEEPSEEK, **GROUPS, rope_parameters=dict(YARN, mscale_all_dim=0.7))),
    "mamba": ("MambaConfig", dict(SMALL, hidden_size=48, num_hidden_layers=2, state_size=8)),
    "mamba2": (
        "Mamba2Config",
        dict(
            SMALL,
            hidden_size=48,
            num_hidden_layers=2,
            state_size=8,
            num_heads=6,
            head_dim=16,
            n_groups=2,
            chunk_size=16,
        ),
    ),
    "opt": (
        "OPTConfig",
        dict(NEOX, ffn_dim=64, word_embed_proj_dim=48, pad_token_id=None),
    ),
}


def random_model(name: str, seed: int) -> torch.nn.Module:
    """A model of this case with every parameter drawn at random, on the grid."""
    architecture, settings = CASES[name]
    torch.manual_seed(seed)
    settings = {key: value for key, value in settings.items() if name != "opt" or key != "intermediate_size"}
    config = getattr(transformers, architecture)(**settings)
    config._attn_implementation = attention(name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for path, weight in model.state_dict().items():
            around = 1.0 if "norm" in path and path.endswith("weight") and "gemma" not in name else 0.0
            drawn = around + 0.2 * torch.randn(weight.shape)
            weight.copy_(torch.round(drawn * STEP).clamp(-127, 127) / STEP)
    return model


def attention(name: str) -> str:
    """Eager attention is the one that caps scores; but in Falcon it adds ALiBi's slopes twice (transformers 5.23)."""
    return "sdpa" if "falcon" in name else "eager"


def logits_of(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """float32[T, V] of one row, alone and without a cache."""
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def greedy(model: torch.nn.Module, ids: list[int]) -> list[int] | None:
    """NEW tokens; None if two candidates are too close for the choice to be clear."""
    ids = list(ids)
    for _ in range(NEW):
        last = logits_of(model, ids)[-1]
        second, first = np.sort(last)[-2:]
        if first - second < CLEAR * np.abs(last).max():
            return None
        ids.append(int(last.argmax()))
    return ids[-NEW:]


def make(name: str) -> None:
    """Write one file, with the first seed whose greedy choices are all clear."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 97, length).tolist() for length in LENGTHS_OF.get(name, LENGTHS)]
    for seed in range(100):
        model = random_model(name, seed)
        new = [greedy(model, ids) for ids in prompts]
        if all(new):
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear choices")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = (Path(folder) / "config.json").read_text()
        tensors = load_file(Path(folder) / "model.safetensors")
    arrays = {f"tensor:{key}": np.round(x * STEP).astype(np.int8) for key, x in tensors.items()}
    assert all((arrays[f"tensor:{key}"].astype(np.float32) / STEP == x).all() for key, x in tensors.items())
    for i, ids in enumerate(prompts):
        arrays |= {f"prompt:{i}": np.array(ids, np.uint8), f"logits:{i}": logits_of(model, ids)}
    arrays["new"] = np.array(new, np.uint8)
    arrays["config"] = np.array(json.dumps(json.loads(config) | {"transformers_version": None}))
    file = HERE / f"{name}.npz"
    np.savez_compressed(file, **arrays)
    print(f"{name}: seed {seed}, {file.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case)

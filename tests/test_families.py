"""Every family against transformers: small random models, saved by it, loaded by us."""

import numpy as np
import pytest

import jaxinfer
from jaxinfer.checkpoint import load_checkpoint, save_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (11, 1, 40, 23)  # beyond the windows of 8, and below
NEW = 32

SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
HEAD = dict(head_dim=16)
TWO, FOUR = dict(SIZES, num_hidden_layers=2), dict(SIZES, num_hidden_layers=4)
ALTERNATING = ["sliding_attention", "full_attention"] * 2
SMALL = dict(vocab_size=97, bos_token_id=None, eos_token_id=None, pad_token_id=None)
FALCON = dict(SMALL, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
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

CASES = {
    "llama": ("LlamaConfig", SIZES),
    "llama-biases": ("LlamaConfig", dict(SIZES, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3)),
    "llama-yarn": ("LlamaConfig", dict(SIZES, rope_parameters=YARN, tie_word_embeddings=True)),
    "mistral": ("MistralConfig", dict(SIZES, sliding_window=8, **HEAD)),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen2-window": ("Qwen2Config", dict(TWO, use_sliding_window=True, sliding_window=8, max_window_layers=1)),
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
    "smollm3": ("SmolLM3Config", dict(FOUR, no_rope_layer_interval=2)),
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
    "mixtral": ("MixtralConfig", dict(SIZES, num_local_experts=5, num_experts_per_tok=2)),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        dict(TWO, **EXPERTS, shared_expert_intermediate_size=48, mlp_only_layers=[1]),
    ),
    "qwen3-moe": ("Qwen3MoeConfig", dict(SIZES, **EXPERTS, norm_topk_prob=True, **HEAD)),
    "olmoe": ("OlmoeConfig", dict(SIZES, num_experts=6, num_experts_per_tok=3)),
    "opt": (
        "OPTConfig",
        dict(NEOX, ffn_dim=80, word_embed_proj_dim=48, pad_token_id=None),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """One family: our model, and the one in torch that it was read from, with every parameter drawn at random."""
    name, settings = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    settings = {key: value for key, value in settings.items() if name != "OPTConfig" or key != "intermediate_size"}
    config = getattr(transformers, name)(**settings)
    # Eager attention is the one that caps scores; but in Falcon it adds ALiBi's slopes twice (transformers 5.23).
    config._attn_implementation = "sdpa" if "falcon" in request.param else "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            around = 1.0 if "norm" in path and path.endswith("weight") and "gemma" not in request.param else 0.0
            weight.copy_(around + 0.2 * torch.randn(weight.shape))
    model.save_pretrained(folder)
    return jaxinfer.load(str(folder), dtype="float32"), model, folder


@pytest.fixture(scope="module")
def prompts(pair):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 97, length).tolist() for length in LENGTHS]


def reference_logits(model, ids):
    """float32[T, V] of one row, alone and without a cache."""
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def test_logits(pair, prompts):
    """Rows are padded on the right; what follows a token must not reach it."""
    ours, theirs, _ = pair
    found = np.asarray(ours.logits([ids + [0] * (max(LENGTHS) - len(ids)) for ids in prompts]))
    for row, ids in zip(found, prompts, strict=True):
        expected = reference_logits(theirs, ids)
        assert np.abs(row[: len(ids)] - expected).max() < 1e-4 * np.abs(expected).max()


def test_greedy(pair, prompts):
    """Under our tokens so far, each of our tokens is torch's most likely one, up to rounding: random logits can tie."""
    ours, theirs, _ = pair
    for prompt, new in zip(prompts, ours.generate(prompts, max_new_tokens=NEW).tokens, strict=True):
        assert len(new) == NEW
        expected = reference_logits(theirs, prompt + new)[len(prompt) - 1 : -1]
        gap = expected.max(axis=1) - expected[np.arange(NEW), new]
        assert gap.max() < 1e-4 * np.abs(expected).max()


def test_export(pair, prompts, tmp_path):
    """transformers reads what we write, and finds in it the weights that it wrote, and the same logits."""
    _, theirs, folder = pair
    save_folder(load_checkpoint(folder), tmp_path / "out", shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    attention = theirs.config._attn_implementation
    options = dict(dtype=torch.float32, attn_implementation=attention, output_loading_info=True)
    back, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    found, expected = back.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        # Gemma's norms lose a bit in 1 + w; OPT's first two positions stand for no token.
        skipped = 2 if name.endswith("embed_positions.weight") else 0
        np.testing.assert_allclose(found[name][skipped:], weight[skipped:], rtol=0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        reference_logits(back.eval(), prompts[2]), reference_logits(theirs, prompts[2]), rtol=1e-4, atol=1e-4
    )

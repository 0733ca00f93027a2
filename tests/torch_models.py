"""The two real models in transformers on torch: the reference that logits, texts and perplexities are held to.

Nothing of `jaxinfer.checkpoint`'s mapping is used. The configurations are written out below, the tensors' names and
layouts are those of llama.cpp's converter, and the numbers come from the gguf package's dequantization. (The result is
what transformers' own GGUF loader gives, to the bit; but that one takes two minutes over Gemma's vocabulary.)
"""

from collections.abc import Callable, Iterator

import gguf
import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from jaxinfer.checkpoint.gguf_header import read_header
from jaxinfer.checkpoint.sources import builtin_path

BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def smollm2() -> torch.nn.Module:
    """SmolLM2 135M. llama.cpp interleaves the two halves of each head of q and k: put them back."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )

    def convert(name: str, x: np.ndarray) -> np.ndarray:
        if name in ("attn_q", "attn_k"):
            return x.reshape(-1, 32, 2, 576).swapaxes(1, 2).reshape(-1, 576)
        return x

    names = {**BLOCK, "ffn_norm": "post_attention_layernorm"}
    return _filled(LlamaForCausalLM, config, "smollm2-135m", names, convert)


def gemma3() -> torch.nn.Module:
    """Gemma 3 270M. llama.cpp stores norms as 1 + w: take the one off again."""
    layers = (["sliding_attention"] * 5 + ["full_attention"]) * 3
    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        query_pre_attn_scalar=256,
        sliding_window=512,
        layer_types=layers,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        tie_word_embeddings=True,
    )
    names = {
        **BLOCK,
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    return _filled(
        Gemma3ForCausalLM, config, "gemma3-270m", names, lambda name, x: x - 1 if name.endswith("norm") else x
    )


def _filled(
    architecture: type, config, builtin: str, names: dict[str, str], convert: Callable[[str, np.ndarray], np.ndarray]
) -> torch.nn.Module:
    """A model of this architecture that holds the file's weights in float32, each of them exactly once."""
    with torch.device("meta"):
        model = architecture(config)
    model = model.to_empty(device="cpu").eval()
    # What `to_empty` leaves undefined and no file holds: rotary frequencies, and Gemma's embedding scale.
    fresh = dict(architecture(config.__class__(**{**config.to_dict(), "vocab_size": 8})).named_buffers())
    for name, buffer in model.named_buffers():
        buffer.data.copy_(fresh[name])
    state = {}
    for name, tensor in _tensors(builtin):
        if name in OUTSIDE:
            target, short = OUTSIDE[name], name.split(".")[0]
        else:
            _, n, short, _ = name.split(".")
            target = f"model.layers.{n}.{names[short]}.weight"
        state[target] = torch.from_numpy(np.array(convert(short, tensor)))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model


def _tensors(builtin: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a built-in model's file, dequantized to float32."""
    header = read_header(builtin_path(builtin))
    for name, info in header.tensors.items():
        kind = gguf.GGMLQuantizationType(info.type)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = np.frombuffer(header.data, np.uint8, int(np.prod(info.shape)) // block * size, info.start)
        yield name, gguf.dequantize(raw.reshape(1, -1), kind).reshape(info.shape)

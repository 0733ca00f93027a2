"""Rows of the tables and pieces of the configuration readers that families share."""

import math

import numpy as np

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Rule, Tensors
from jaxinfer.config import Activation, LayerKind, Rope, RopeScaling, Segment, segments_of
from jaxinfer.errors import InputError


def layer(param: str, hf: str, gguf: str, axes: str, **options) -> Rule:
    """The row of a weight inside the layers, with the prefixes and suffix that both formats put around its name."""
    return Rule(param, f"model.layers.{{n}}.{hf}.weight", f"blk.{{n}}.{gguf}.weight", axes, **options)


EMBED = (
    Rule("embed/embedding", "model.embed_tokens.weight", "token_embd.weight", "v d -> v d"),
    Rule("head/kernel", "lm_head.weight", "output.weight", "v d -> v d"),
)

VALUE_AND_OUTPUT = (
    layer("attention/v/kernel", "self_attn.v_proj", "attn_v", "n h d -> (n h) d"),
    layer("attention/o/kernel", "self_attn.o_proj", "attn_output", "d n h -> d (n h)"),
)

GATED_MLP = (
    layer("mlp/gate/kernel", "mlp.gate_proj", "ffn_gate", "f d -> f d"),
    layer("mlp/up/kernel", "mlp.up_proj", "ffn_up", "f d -> f d"),
    layer("mlp/down/kernel", "mlp.down_proj", "ffn_down", "d f -> d f"),
)

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}


def activation(fields: Fields, name: str, default: str) -> Activation:
    """ModelConfig's name for the activation that a field names."""
    value = fields.text(name, default)
    if value not in _ACTIVATIONS:
        raise InputError(f"{fields.file}: {name}={value!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def head_dim(fields: Fields, name: str, d_model: int, n_heads: int) -> int:
    """The width of a head: what the field says, or d_model / n_heads where that is a whole number."""
    return fields.integer(name) if d_model % n_heads else fields.integer(name, d_model // n_heads)


def periodic_segments(kinds: list[LayerKind]) -> tuple[Segment, ...]:
    """Segments of the shortest pattern that the layers repeat."""
    period = next(p for p in range(1, len(kinds) + 1) if all(k == kinds[n % p] for n, k in enumerate(kinds)))
    return segments_of(kinds, period)


def hf_rope(fields: Fields | None, theta: float) -> Rope:
    """RoPE from `rope_scaling` (without its own theta) or from `rope_parameters` (with it)."""
    if fields is None:
        return Rope(theta)
    theta = fields.number("rope_theta", theta)
    kind = fields.text("rope_type", fields.text("type", "default"))
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, RopeScaling("linear", fields.number("factor")))
    if kind == "llama3":
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        original = fields.integer("original_max_position_embeddings")
        return Rope(theta, RopeScaling("llama3", fields.number("factor"), low, high, original))
    raise InputError(f"{fields.file}: rope type {kind!r} is not supported; supported: default, linear, llama3")


def gguf_rope(fields: Fields, tensors: Tensors, theta: float, head_dim: int) -> Rope:
    """RoPE from `rope.*`. Llama 3's scaling is not in the metadata but in the tensor `rope_freqs.weight`."""
    if "rope_freqs.weight" in tensors:
        return Rope(theta, _llama3_scaling(fields, tensors["rope_freqs.weight"].rows(0, head_dim // 2), theta))
    kind = fields.text("rope.scaling.type", "none")
    if kind == "none":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, RopeScaling("linear", fields.number("rope.scaling.factor")))
    raise InputError(f"{fields.file}: rope.scaling.type={kind!r} is not supported; supported: none, linear")


def _llama3_scaling(fields: Fields, divisors: np.ndarray, theta: float) -> RopeScaling:
    """The scaling whose frequency divisors a GGUF file holds: with the constants of Llama 3.1, or not at all."""
    scaling = RopeScaling("llama3", round(float(divisors.max()), 4))
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi * theta ** (np.arange(len(divisors)) / len(divisors))
    blend = np.clip((scaling.original_max_positions / wavelength - low) / (high - low), 0, 1)
    if not np.allclose(divisors, 1 / ((1 - blend) / scaling.factor + blend), rtol=1e-4):
        raise InputError(f"{fields.file}: tensor 'rope_freqs.weight' does not hold the RoPE scaling of Llama 3.1")
    return scaling


def gguf_vocab_size(fields: Fields, tensors: Tensors) -> int:
    """The rows of the embedding: metadata often lacks the vocabulary's size."""
    if "token_embd.weight" not in tensors:
        raise InputError(f"{fields.file}: tensor 'token_embd.weight' is missing")
    return tensors["token_embd.weight"].shape[0]

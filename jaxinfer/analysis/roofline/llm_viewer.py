"""The arithmetic of LLM-Viewer at commit 472f71f, to the digit: what published figures of that tool can be held to.

No scales, no causal halving, a bare multiply for the head (one operation a multiply-add), an activation over the model
width, and heads that share the model's width evenly. `network` has what this leaves out.
"""

from dataclasses import replace
from typing import Any

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.roofline.arithmetic import Number, ceil, largest, smallest, where_at_most
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.analysis.roofline.setting import Setting
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError

CONSTANTS = {
    "a6000": (768e9, 154.8385e12, 309.7e12, 21504e3),
    "a100-40gb": (1555e9, 312e12, 624e12, 27648e3),
    "a100-80gb": (2039e9, 312e12, 624e12, 27648e3),
    "h100-sxm": (3072e9, 989.5e12, 1979e12, 33792e3),
    "h100-pcie": (2048e9, 756.5e12, 1513e12, 33792e3),
}
"""That tool's own figures of devices: bytes/s, operations/s in 16 and in 8 bits, bytes on the chip."""


def as_there(hardware: Hardware) -> Hardware:
    """Give a device the constants that it has in LLM-Viewer; one that is not there keeps its own."""
    if hardware.name not in CONSTANTS:
        return hardware
    bandwidth, half, eight, on_chip = CONSTANTS[hardware.name]
    flops = {"float32": half, "bfloat16": half, "int8": eight}
    return replace(hardware, bandwidth=bandwidth, flops=flops, on_chip=on_chip)


def operators(config: ModelConfig, setting: Setting, stage: str, on_chip: Number) -> list[Operator]:
    """Give the operators of one layer, and the head, as LLM-Viewer counts them. Raises InputError where it cannot."""
    check(config, setting)
    b, s, d = setting.batch, setting.prompt, config.d_model
    t = 1 if stage == "decode" else s
    n_h, n_k, h = config.n_heads, config.n_kv_heads, config.d_model // config.n_heads
    w, a, k = (_bits(x) / 8 for x in (setting.weights, setting.activations, setting.kv))
    bits = largest(*(_bits(x) for x in (setting.weights, setting.activations, setting.kv)))
    bits = where_at_most(bits, 8, 8, 16)
    layers = config.n_layers

    def linear(name: str, ic: int, oc: int) -> Operator:
        to_kv = name in ("k_proj", "v_proj")
        return Operator(
            name,
            "linear",
            layers,
            ops=ic * oc * b * t * 2,
            weights=ic * oc * w,
            read=ic * b * t * a,
            written=0 if to_kv else oc * b * t * a,
            kv_written=oc * b * t * k if to_kv else 0,
            bits=bits,
        )

    made = [linear("q_proj", d, n_h * h), linear("k_proj", d, n_k * h), linear("v_proj", d, n_k * h)]
    made += [linear("out_proj", n_h * h, d), linear("gate_proj", d, config.d_ff), linear("up_proj", d, config.d_ff)]
    made.append(linear("down_proj", config.d_ff, d))

    products, softmax = 2 * t * s * h * n_h * b, 5 * b * n_h * s * t
    scores = t * s * b * n_h * a
    if setting.flash:
        rows = smallest(ceil(on_chip / (k * h)), h)
        times = ceil(t / rows)
        made.append(
            Operator(
                "fused_attention",
                "attention",
                layers,
                ops=2 * products + softmax,
                read=t * h * b * n_h * a,
                written=scores * 2,
                kv_read=times * s * h * b * n_h * k * 2,
                bits=bits,
            )
        )
    else:
        queries = n_h if stage == "decode" else n_k
        keys = s * h * b * n_k * k
        made += [
            Operator("qk_matmul", "attention", layers, products, 0, t * h * b * queries * a, scores, keys, bits=bits),
            Operator("sv_matmul", "attention", layers, products, 0, scores, t * h * b * n_h * a, keys, bits=bits),
            Operator("softmax", "attention", layers, softmax, 0, scores, scores, bits=bits),
        ]
    row = b * d * t * a
    made += [
        Operator(f"{name}_norm", "norm", layers, 7 * b * d * t, 0, row, row, bits=bits) for name in ("attn", "mlp")
    ]
    made += [
        Operator(f"{name}_add", "elementwise", layers, b * d * t, 0, row, row, bits=bits) for name in ("attn", "mlp")
    ]
    made.append(Operator("mlp_act", "elementwise", layers, 2 * b * d * t, 0, 2 * row, row, bits=bits))
    v = config.vocab_size
    made.append(Operator("lm_head", "head", 1, b * d * v, d * v * w, d * a, v * a, bits=bits))
    return made


def memory(config: ModelConfig, setting: Setting, made: list[Operator]) -> dict[str, Number]:
    """Count bytes as LLM-Viewer does: weights of the layers, the prompt's cache, and what one layer stores."""
    layer = [operator for operator in made if operator.kind != "head"]
    keys = setting.prompt * (config.d_model // config.n_heads) * setting.batch * config.n_kv_heads
    weights: Number = 0
    stored: Number = 0
    for one in layer:
        weights, stored = weights + one.weights * one.layers, stored + one.written
    kv = 2 * keys * _bits(setting.kv) / 8 * config.n_layers
    return {"weights": weights, "kv": kv, "activations": stored, "total": weights + kv + stored}


def check(config: ModelConfig, setting: Setting) -> None:
    """Raise InputError for what LLM-Viewer has no arithmetic for."""
    plain = all(kind.moe is None and kind.mixer is None for kind in config.kinds) and not config.mla
    if not plain or not config.gated:
        raise InputError(
            f"compat='llm-viewer': its arithmetic is that of Llama's layers, which {config.family} has not"
        )
    for name in ("width", "tensor", "pipeline", "data", "expert"):
        if getattr(setting, name) != 1:
            raise InputError(f"compat='llm-viewer': {name}={getattr(setting, name)} must be 1: it knows nothing else")
    if setting.kv_budget is not None or (setting.depth, setting.active) != (1.0, 1.0):
        raise InputError("compat='llm-viewer': it knows no kv_budget, depth or active; leave them out")


def _bits(stored: Any) -> Number:
    return stored.bits if hasattr(stored, "bits") else stored

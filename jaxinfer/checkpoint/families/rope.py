"""Rotary positions as configurations describe them."""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxinfer.checkpoint.fields import Fields, is_finite
from jaxinfer.checkpoint.mapping import Tensors
from jaxinfer.config import ModelConfig, Rope, RopeScaling
from jaxinfer.errors import InputError, shown
from jaxinfer.layers.position import ntk_theta


def rope_of(fields: Fields, theta: float = 10_000.0, width: int | None = None, interleaved: bool = False) -> Rope:
    """Read a config.json's RoPE, in the words of transformers 4 or 5. `width`: of the part of a head that turns."""
    rope = hf_rope(rope_group(fields), fields.positive("rope_theta", theta), fields)
    return dataclasses.replace(rope, width=width, interleaved=interleaved)


def rope_group(fields: Fields) -> Fields | None:
    """Read a config.json's RoPE, in the words of transformers 4 or 5: where it has both, 4's come first."""
    old, new = fields.group("rope_scaling"), fields.group("rope_parameters")
    return old if old and old.values else new


def partial_width(fields: Fields, name: str, head_dim: int, default: float) -> int | None:
    """Return the width of the part of a head that turns, from the share of it that the field gives."""
    group = rope_group(fields) or Fields(fields.file, {})
    width = int(head_dim * group.positive("partial_rotary_factor", fields.positive(name, default)))
    return None if width == head_dim else width


def hf_rope(fields: Fields | None, theta: float, config: Fields | None = None) -> Rope:
    """Read RoPE from `rope_scaling` (without its own theta) or from `rope_parameters` (with it).

    `config`: the whole file, where some kinds of scaling have what they need.
    """
    if fields is None:
        return Rope(theta)
    theta = fields.positive("rope_theta", theta)
    kind = fields.text("rope_type", fields.text("type", "default"))
    config = config or Fields(fields.file, {})
    if kind == "default":
        return Rope(theta)
    if kind not in SUPPORTED:
        raise InputError(f"{fields.file}: rope type {shown(kind)} is not supported; supported: {', '.join(SUPPORTED)}")
    if kind == "linear":
        return Rope(theta, RopeScaling("linear", fields.positive("factor")))
    if kind == "dynamic":
        trained = config.integer("max_position_embeddings")
        return Rope(theta, RopeScaling("dynamic", fields.positive("factor"), original_max_positions=trained))
    original = _original(fields, config, kind)
    if kind == "llama3":
        low, high = fields.positive("low_freq_factor"), fields.positive("high_freq_factor")
        return Rope(theta, RopeScaling("llama3", fields.positive("factor"), low, high, original))
    if kind == "yarn":
        return Rope(theta, _yarn(fields, original))
    return Rope(theta, _longrope(fields, config, original))


SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")


def _original(fields: Fields, config: Fields, kind: str) -> int:
    """Read the trained length: first what the file says beside the RoPE, then what it says of it (transformers 5)."""
    name = "original_max_position_embeddings"
    original = config.integer(name, fields.integer(name, config.integer("max_position_embeddings", None)))
    if original is None:
        raise InputError(f"{fields.file}: field {name!r} is missing, and {kind} needs it")
    return original


def rope_fields(rope: Rope, head_dim: int) -> dict[str, Any]:
    """Return the inverse of `hf_rope`: what transformers 5 calls `rope_parameters`."""
    fields: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.width is not None:
        fields["partial_rotary_factor"] = rope.width / head_dim
    scaling = rope.scaling
    if scaling is None:
        return fields
    if scaling.kind == "ntk":
        return fields | {"rope_theta": ntk_theta(rope, head_dim)}
    fields |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind not in ("linear", "dynamic"):
        fields["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "llama3":
        fields |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        fields |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    if scaling.kind == "longrope":
        short = scaling.short_divisors or scaling.divisors
        fields |= {"short_factor": list(short), "long_factor": list(scaling.divisors)}
    if scaling.kind in ("yarn", "longrope"):
        fields["attention_factor"] = scaling.magnitude
    return fields


def context(fields: Fields, default: int) -> int:
    """Count the positions that a configuration allows.

    Of `max_position_embeddings`, linear and dynamic scaling make `factor` times as many. YaRN has `factor` times the
    length that it was trained for, which some files say (131,072 of 32,768) and some do not (Qwen says 32,768 of
    32,768). Files with llama3 and longrope say what the scaling reaches. (So does vLLM count.)
    """
    trained = fields.integer("max_position_embeddings", default)
    group = rope_group(fields)
    kind = group.text("rope_type", group.text("type", "default")) if group else "default"
    if group is None or kind not in ("linear", "dynamic", "yarn"):
        return trained
    factor = group.positive("factor")
    if kind == "yarn":
        return max(trained, int(_original(group, fields, kind) * factor))
    return max(1, int(trained * factor))


def trained_context(cfg: ModelConfig) -> int:
    """Return the inverse of `context`."""
    scalings = [kind.rope.scaling for kind in cfg.kinds if kind.rope and kind.rope.scaling]
    for scaling in scalings:
        if scaling.kind == "dynamic":
            return scaling.original_max_positions
        if scaling.kind == "linear":
            return max(1, math.ceil(cfg.max_positions / scaling.factor - 1e-9 * cfg.max_positions))
    return cfg.max_positions


def yarn_growth(factor: float, weight: float) -> float:
    """Return what YaRN multiplies q and k by, where the context grows by `factor`."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn(fields: Fields, original: int) -> RopeScaling:
    """Read YaRN, section 3.4: q and k grow by 0.1 ln(factor) + 1, or by what the file says."""
    factor = fields.positive("factor")
    magnitude = fields.positive("attention_factor", None)
    if magnitude is None:
        all_dims = fields.number("mscale_all_dim", 0.0)
        mscale = fields.number("mscale", 0.0)
        own, others = (mscale, all_dims) if mscale and all_dims else (1.0, 0.0)
        magnitude = yarn_growth(factor, own) / yarn_growth(factor, others)
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=original,
        beta_fast=fields.positive("beta_fast", 32.0),
        beta_slow=fields.positive("beta_slow", 1.0),
        truncate=fields.flag("truncate", True),
        magnitude=magnitude,
    )


def _longrope(fields: Fields, config: Fields, original: int) -> RopeScaling:
    """Read LongRoPE: the divisors for long texts only if the context is longer than the trained one."""

    def divisors(name: str) -> tuple[float, ...]:
        found = fields.get(name)
        if not isinstance(found, list) or not found or not all(_is_divisor(x) for x in found):
            raise InputError(
                f"{fields.file}: field {name!r} must be a list of positive numbers, one for each frequency"
            )
        return tuple(float(x) for x in found)

    longest = config.integer("max_position_embeddings", original)
    short = divisors("short_factor")
    long = divisors("long_factor") if longest > original else ()
    factor = fields.positive("factor", longest / original)
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if min(factor, original) > 1 else 1.0
    magnitude = fields.positive("attention_factor", grown)
    return RopeScaling(
        "longrope",
        factor,
        original_max_positions=original,
        magnitude=magnitude,
        divisors=long or short,
        short_divisors=short if long else (),
    )


def _is_divisor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value) and value > 0


def gguf_rope(fields: Fields, tensors: Tensors, theta: float, head_dim: int) -> Rope:
    """Read RoPE from `rope.*`. Llama 3's scaling is not in the metadata but in the tensor `rope_freqs.weight`."""
    if "rope_freqs.weight" in tensors:
        return Rope(theta, _llama3_scaling(fields, tensors["rope_freqs.weight"].rows(0, head_dim // 2), theta))
    # A factor without a type is linear, in llama.cpp; the files of 2023 call it by another key.
    factor = fields.positive("rope.scaling.factor", fields.positive("rope.scale_linear", None))
    kind = fields.text("rope.scaling.type", "none" if factor is None or factor == 1 else "linear")
    if kind == "none":
        return Rope(theta)
    if kind == "linear":
        if factor is None:
            fields.positive("rope.scaling.factor")
        return Rope(theta, RopeScaling("linear", factor))
    if kind == "yarn":
        return Rope(theta, _gguf_yarn(fields))
    raise InputError(f"{fields.file}: rope.scaling.type={kind!r} is not supported; supported: none, linear, yarn")


def _gguf_yarn(fields: Fields) -> RopeScaling:
    factor = fields.number("rope.scaling.factor")
    original = fields.integer("rope.scaling.original_context_length", None)
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=fields.integer("context_length") if original is None else original,
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        magnitude=yarn_growth(factor, 1.0) * fields.number("rope.scaling.attn_factor", 1.0),
    )


def _llama3_scaling(fields: Fields, divisors: np.ndarray, theta: float) -> RopeScaling:
    """Return the scaling whose frequency divisors a GGUF file holds: with the constants of Llama 3.1, or not at all."""
    scaling = RopeScaling("llama3", round(float(divisors.max()), 4))
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi * theta ** (np.arange(len(divisors)) / len(divisors))
    blend = np.clip((scaling.original_max_positions / wavelength - low) / (high - low), 0, 1)
    if not np.allclose(divisors, 1 / ((1 - blend) / scaling.factor + blend), rtol=1e-4):
        raise InputError(f"{fields.file}: tensor 'rope_freqs.weight' does not hold the RoPE scaling of Llama 3.1")
    return scaling

"""Rotary positions as configurations describe them."""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Tensors
from jaxinfer.config import ModelConfig, Rope, RopeScaling
from jaxinfer.errors import InputError
from jaxinfer.layers.position import ntk_theta


def rope_of(fields: Fields, theta: float = 10_000.0, width: int | None = None, interleaved: bool = False) -> Rope:
    """RoPE of a config.json, in the words of transformers 4 or 5. `width`: of the part of a head that turns."""
    group = fields.group("rope_parameters") or fields.group("rope_scaling")
    rope = hf_rope(group, fields.number("rope_theta", theta), fields)
    return dataclasses.replace(rope, width=width, interleaved=interleaved)


def partial_width(fields: Fields, name: str, head_dim: int, default: float) -> int | None:
    """The width of the part of a head that turns, from the share of it that the field gives."""
    group = fields.group("rope_parameters") or Fields(fields.file, {})
    width = int(head_dim * group.number("partial_rotary_factor", fields.number(name, default)))
    return None if width == head_dim else width


def hf_rope(fields: Fields | None, theta: float, config: Fields | None = None) -> Rope:
    """RoPE from `rope_scaling` (without its own theta) or from `rope_parameters` (with it).

    `config`: the whole file, where some kinds of scaling have what they need.
    """
    if fields is None:
        return Rope(theta)
    theta = fields.number("rope_theta", theta)
    kind = fields.text("rope_type", fields.text("type", "default"))
    config = config or Fields(fields.file, {})
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, RopeScaling("linear", fields.number("factor")))
    if kind == "dynamic":
        trained = config.integer("max_position_embeddings")
        return Rope(theta, RopeScaling("dynamic", fields.number("factor"), original_max_positions=trained))
    original = fields.integer(
        "original_max_position_embeddings",
        config.integer("original_max_position_embeddings", config.get("max_position_embeddings", None)),
    )
    if original is None:
        raise InputError(f"{fields.file}: field 'original_max_position_embeddings' is missing, and {kind} needs it")
    if kind == "llama3":
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        return Rope(theta, RopeScaling("llama3", fields.number("factor"), low, high, original))
    if kind == "yarn":
        return Rope(theta, _yarn(fields, original))
    if kind in ("longrope", "su"):
        return Rope(theta, _longrope(fields, config, original))
    supported = "default, linear, dynamic, llama3, yarn, longrope"
    raise InputError(f"{fields.file}: rope type {kind!r} is not supported; supported: {supported}")


def rope_fields(rope: Rope, head_dim: int) -> dict[str, Any]:
    """The inverse of `hf_rope`: what transformers 5 calls `rope_parameters`."""
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
    """How many positions a configuration allows: with dynamic scaling, more than `max_position_embeddings` says."""
    trained = fields.integer("max_position_embeddings", default)
    group = fields.group("rope_parameters") or fields.group("rope_scaling")
    dynamic = group and group.text("rope_type", group.text("type", "default")) == "dynamic"
    return int(trained * group.number("factor")) if group and dynamic else trained


def trained_context(cfg: ModelConfig) -> int:
    """The inverse of `context`."""
    scalings = [kind.rope.scaling for kind in cfg.kinds if kind.rope and kind.rope.scaling]
    return next((s.original_max_positions for s in scalings if s.kind == "dynamic"), cfg.max_positions)


def yarn_growth(factor: float, weight: float) -> float:
    """What YaRN multiplies q and k by, where the context grows by `factor`."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn(fields: Fields, original: int) -> RopeScaling:
    """YaRN, section 3.4: q and k grow by 0.1 ln(factor) + 1, or by what the file says."""
    factor = fields.number("factor")
    magnitude = fields.number("attention_factor", None)
    if magnitude is None:
        all_dims = fields.number("mscale_all_dim", 0.0)
        mscale = fields.number("mscale", 0.0)
        own, others = (mscale, all_dims) if mscale and all_dims else (1.0, 0.0)
        magnitude = yarn_growth(factor, own) / yarn_growth(factor, others)
    return RopeScaling(
        "yarn",
        factor,
        original_max_positions=original,
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        truncate=fields.flag("truncate", True),
        magnitude=magnitude,
    )


def _longrope(fields: Fields, config: Fields, original: int) -> RopeScaling:
    """LongRoPE: the divisors for long texts only if the context is longer than the trained one."""

    def divisors(name: str) -> tuple[float, ...]:
        found = fields.get(name)
        if not isinstance(found, list) or not found or not all(isinstance(x, int | float) and x > 0 for x in found):
            raise InputError(
                f"{fields.file}: field {name!r} must be a list of positive numbers, one for each frequency"
            )
        return tuple(float(x) for x in found)

    longest = config.integer("max_position_embeddings", original)
    short = divisors("short_factor")
    long = divisors("long_factor") if longest > original else ()
    factor = fields.number("factor", longest / original)
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    magnitude = fields.number("attention_factor", grown)
    return RopeScaling(
        "longrope",
        factor,
        original_max_positions=original,
        magnitude=magnitude,
        divisors=long or short,
        short_divisors=short if long else (),
    )


def gguf_rope(fields: Fields, tensors: Tensors, theta: float, head_dim: int) -> Rope:
    """RoPE from `rope.*`. Llama 3's scaling is not in the metadata but in the tensor `rope_freqs.weight`."""
    if "rope_freqs.weight" in tensors:
        return Rope(theta, _llama3_scaling(fields, tensors["rope_freqs.weight"].rows(0, head_dim // 2), theta))
    kind = fields.text("rope.scaling.type", "none")
    if kind == "none":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, RopeScaling("linear", fields.number("rope.scaling.factor")))
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
    """The scaling whose frequency divisors a GGUF file holds: with the constants of Llama 3.1, or not at all."""
    scaling = RopeScaling("llama3", round(float(divisors.max()), 4))
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi * theta ** (np.arange(len(divisors)) / len(divisors))
    blend = np.clip((scaling.original_max_positions / wavelength - low) / (high - low), 0, 1)
    if not np.allclose(divisors, 1 / ((1 - blend) / scaling.factor + blend), rtol=1e-4):
        raise InputError(f"{fields.file}: tensor 'rope_freqs.weight' does not hold the RoPE scaling of Llama 3.1")
    return scaling

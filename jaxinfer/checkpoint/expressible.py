"""Checks that a config.json says all of a configuration: reads it back, and compares everything that counts."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family
from jaxinfer.config import LayerKind, ModelConfig, MoE, Rope
from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import shown_error
from jaxinfer.layers.position import rope_frequencies

_NEAR = 1e-6  # of numbers: what a file rounds, as Gemma's query_pre_attn_scalar


def hf_fields(cfg: ModelConfig, family: Family, name: str) -> dict[str, Any]:
    """Return the fields of a config.json of this family. `name`: the model's, for errors.

    Raises InputError, which names the setting, where transformers would read another model from them: contexts that
    are extended in some layers only, other routers, mixtures or norms than the family has.
    """
    try:
        found = family.hf_fields(cfg)
        back = family.from_hf(Fields("config.json", json.loads(json.dumps(found))))
    except InputError as error:
        raise InputError(f"{name} cannot be written as {family.name}: {error}") from None
    except Exception as error:  # a family's table meets layers of another
        raise InputError(
            f"{name} cannot be written as {family.name}, whose layers are others ({shown_error(error)})"
        ) from None
    for setting, ours, theirs in _pairs(cfg, back):
        if not _same(ours, theirs):
            raise InputError(
                f"{name}: {setting}={shown(ours)} cannot be written: a config.json of {family.name} "
                f"would be read as {shown(theirs)}"
            )
    return found


def _pairs(cfg: ModelConfig, back: ModelConfig):
    """List what has to agree: the name of a setting, its value, and what was read back."""
    yield "n_layers", cfg.n_layers, back.n_layers
    scaled = any(kind.rope and kind.rope.scaling for kind in cfg.kinds)
    # No layer reads these: the width of an MLP where all have experts, a bound on positions that scaling has moved.
    unread = {"family", "segments"} | ({"max_positions"} if scaled else set())
    unread |= {"d_ff"} if all(kind.moe or kind.mixer for kind in cfg.kinds) else set()
    ours, theirs = (replace(x, query_scale=x.query_scale or x.head_dim**-0.5) for x in (cfg, back))
    for field in fields(ModelConfig):
        if field.name not in unread:
            yield field.name, getattr(ours, field.name), getattr(theirs, field.name)
    for number, (kind, other) in enumerate(zip(cfg.layers, back.layers, strict=True)):
        ours_of, theirs_of = (_of_layer(x, cfg.head_dim) for x in (kind, other))
        for name in dict.fromkeys([*ours_of, *theirs_of]):
            yield f"layer {number}: {name}", ours_of.get(name), theirs_of.get(name)


def _of_layer(kind: LayerKind, head_dim: int) -> dict[str, Any]:
    """Return the settings of a layer that its outputs depend on."""
    found: dict[str, Any] = {name: getattr(kind, name) is not None for name in ("rope", "moe", "mixer")}
    found |= {"window": kind.window, "mixer.kind": type(kind.mixer).__name__}
    if kind.rope:
        found |= {f"rope.{name}": value for name, value in _of_rope(kind.rope, head_dim).items()}
    if kind.moe:
        found |= {f"moe.{name}": value for name, value in asdict(_of_moe(kind.moe)).items()}
    if kind.mixer:
        found |= {f"mixer.{name}": value for name, value in asdict(kind.mixer).items()}
    return found


def _of_rope(rope: Rope, head_dim: int) -> dict[str, Any]:
    scaling = rope.scaling
    found = {"width": rope.width or head_dim, "interleaved": rope.interleaved}
    if scaling and scaling.follows_length:
        return found | {"theta": rope.theta, **asdict(scaling)}
    label = f"theta {rope.theta:g}" + (f", {scaling.kind} {scaling.factor:g}" if scaling else "")
    frequencies = tuple(np.asarray(rope_frequencies(rope, head_dim), np.float64).tolist())
    return found | {"frequencies": _Frequencies(frequencies, label), "magnitude": scaling.magnitude if scaling else 1.0}


@dataclass(frozen=True, repr=False)
class _Frequencies:
    """Give how fast each pair of dimensions turns; shown by what makes them so."""

    values: tuple[float, ...]
    label: str

    def __repr__(self) -> str:
        return self.label


def _of_moe(moe: MoE) -> MoE:
    """Return the mixture with the settings that it does not use as they are by default."""
    plain = MoE(moe.experts, moe.top_k, moe.d_ff)
    used = replace(moe, dispatch="dropless") if moe.dispatch == "dense" else moe  # the same sums
    if used.dispatch != "capacity" and used.router != "expert_choice":
        used = replace(used, capacity_factor=plain.capacity_factor, priority=plain.priority)
    if not used.looks_around:
        used = replace(used, in_decode=plain.in_decode)
    return used if used.router == "soft" else replace(used, slots=plain.slots)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, _Frequencies) and isinstance(theirs, _Frequencies):
        return _same(ours.values, theirs.values)
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    numbers = [isinstance(x, int | float) and not isinstance(x, bool) for x in (ours, theirs)]
    if all(numbers):
        return ours == theirs or math.isclose(ours, theirs, rel_tol=_NEAR)
    return bool(ours == theirs)

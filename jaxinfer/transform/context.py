"""A longer context without training: rotary frequencies that stretch the trained positions over it."""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

from jaxinfer.config import LayerKind, RopeScaling, Segment
from jaxinfer.errors import InputError, nearest

if TYPE_CHECKING:
    from jaxinfer.api import Model

Kind = Literal["none", "linear", "ntk", "yarn"]
KINDS: tuple[Kind, ...] = ("none", "linear", "ntk", "yarn")


def extend_context(model: "Model", kind: Kind, factor: float) -> "Model":
    """The same model for texts `factor` times as long as its context. See `RopeScaling` for what the kinds do.

    `none` lets positions run on as they are. Layers with a window keep their frequencies: what they see is no longer.
    Raises InputError if the model has no rotary positions, or scaled ones already.
    """
    cfg = model.config
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} must be one of {', '.join(KINDS)}{nearest(str(kind), KINDS)}")
    if not factor >= 1:
        raise InputError(f"factor={factor} must be at least 1")
    if not any(layer.rope for layer in cfg.kinds):
        raise InputError(f"{model.name} has no rotary positions to scale")
    if any(layer.rope and layer.rope.scaling for layer in cfg.kinds):
        raise InputError(f"{model.name} has scaled rotary positions already")
    magnitude = 0.1 * math.log(factor) + 1.0 if kind == "yarn" else 1.0

    def scaled(layer: LayerKind) -> LayerKind:
        if kind == "none" or layer.window or not layer.rope:
            return layer
        scaling = RopeScaling(kind, factor, original_max_positions=cfg.max_positions, magnitude=magnitude)
        return dataclasses.replace(layer, rope=dataclasses.replace(layer.rope, scaling=scaling))

    segments = tuple(Segment(tuple(map(scaled, s.pattern)), s.repeats) for s in cfg.segments)
    config = cfg.replace(segments=segments, max_positions=int(cfg.max_positions * factor))
    return dataclasses.replace(model, config=config, name=f"{model.name}-{kind}{factor:g}")

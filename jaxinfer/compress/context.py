"""A longer context without training: rotary frequencies that stretch the trained positions over it."""

import dataclasses
import math
from typing import Literal

from jaxinfer.api import Model
from jaxinfer.checkpoint.fields import is_finite
from jaxinfer.config import MOST, LayerKind, RopeScaling, Segment
from jaxinfer.errors import InputError, nearest, shown

Kind = Literal["none", "linear", "ntk", "yarn"]
KINDS: tuple[Kind, ...] = ("none", "linear", "ntk", "yarn")


def extend_context(model: Model, kind: Kind, factor: float) -> Model:
    """Return the same model for texts `factor` times as long as its context. See `RopeScaling` for what the kinds do.

    `none` lets positions run on as they are. Layers with a window keep their frequencies: what they see is no longer.
    Raises InputError if the model has no rotary positions, or scaled ones already.
    """
    cfg = model.config
    if kind not in KINDS:
        raise InputError(f"kind={shown(kind)} must be one of {', '.join(KINDS)}{nearest(str(kind), KINDS)}")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not is_finite(factor) or factor < 1:
        raise InputError(f"factor={shown(factor)} must be a number, and at least 1")
    if cfg.max_positions * factor > MOST:
        raise InputError(f"factor={shown(factor)}: a context of {cfg.max_positions} can grow to {MOST} at most")
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

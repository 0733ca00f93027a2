"""Another router or dispatch for the experts that a model has: the same weights."""

import dataclasses
from typing import Any

from jaxinfer.api import Model
from jaxinfer.config import LayerKind, Segment
from jaxinfer.errors import InputError, nearest

SETTINGS = (  # of `jaxinfer.config.MoE`: those that need no other weights
    "router",
    "top_k",
    "normalize",
    "equal_gates",
    "scale",
    "groups",
    "top_groups",
    "dispatch",
    "capacity_factor",
    "priority",
    "in_decode",
)


def reroute(model: Model, **settings: Any) -> Model:
    """Return the same model, with these settings of `jaxinfer.config.MoE` in all its mixtures of experts.

    Raises InputError if it has none, if a setting is not known or would need other weights, or if the mixture makes no
    sense.
    """
    for name in settings:
        if name not in SETTINGS:
            raise InputError(f"{name!r} is not one of {', '.join(SETTINGS)}{nearest(name, SETTINGS)}")
    if not any(kind.moe for kind in model.config.kinds):
        raise InputError(f"{model.name} has no mixture of experts")

    def changed(kind: LayerKind) -> LayerKind:
        if kind.moe is None:
            return kind
        moe = dataclasses.replace(kind.moe, **settings)
        if (
            moe.router in ("sigmoid", "soft") or kind.moe.router in ("sigmoid", "soft")
        ) and moe.router != kind.moe.router:
            raise InputError(f"router={moe.router!r} needs other weights than router={kind.moe.router!r}")
        return dataclasses.replace(kind, moe=moe)

    try:
        segments = tuple(Segment(tuple(map(changed, s.pattern)), s.repeats) for s in model.config.segments)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from None
    return dataclasses.replace(model, config=model.config.replace(segments=segments))

"""The best mesh of one slice, and the smallest slice of a family that holds a model at all."""

import dataclasses

import numpy as np

from jaxinfer.analysis.planning.goal import Goal
from jaxinfer.analysis.planning.option import Option
from jaxinfer.analysis.planning.planner import Predicted, option_of
from jaxinfer.analysis.planning.predicting import limits, predict
from jaxinfer.analysis.planning.slices import Family, Slice
from jaxinfer.analysis.planning.space import space
from jaxinfer.config import ModelConfig


def fastest(
    config: ModelConfig, machines: Family, slice_: Slice, goal: Goal, weights: str, kv: str, price: float = 1.0
) -> Option | None:
    """Find the mesh of a slice with the shortest decode step of those that fit and meet the goal; None: none does.

    The batch is the goal's, or any power of two: then the cheapest a token counts.
    """
    one_slice = dataclasses.replace(machines, slices=(slice_,))
    points = space(config, one_slice, goal)
    if not len(points):
        return None
    found = predict(config, machines.hardware, points, goal, weights, kv, price)
    made = Predicted(weights, kv, found, limits(found, goal, machines.hardware.memory))
    meeting = np.flatnonzero(made.worst <= 1)
    if not len(meeting):
        return None
    column = found.cost if goal.batch is None else found.tpot
    return option_of(one_slice, points, made, int(meeting[column[meeting].argmin()]))


def smallest(config: ModelConfig, machines: Family, goal: Goal, weights: str, kv: str) -> Option | None:
    """Find the smallest slice on which some mesh fits and meets the goal, and its fastest mesh; None: none does."""
    for slice_ in machines.slices:
        found = fastest(config, machines, slice_, goal, weights, kv)
        if found is not None:
            return found
    return None

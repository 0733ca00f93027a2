"""The prediction of a plan: times, bytes and costs of every point of a space at once."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.planning.goal import Goal
from jaxinfer.analysis.planning.space import Space
from jaxinfer.analysis.roofline import Setting
from jaxinfer.analysis.roofline.arithmetic import Number
from jaxinfer.analysis.roofline.formats import kv_storage, weight_storage
from jaxinfer.analysis.roofline.meshes import decode_step, prefill
from jaxinfer.config import ModelConfig
from jaxinfer.decoding.sampling.settings import bucket

HOUR = 3600.0
USABLE = 0.95  # of a device's memory: the program and what the runtime holds take the rest


@dataclass(frozen=True)
class Prediction:
    """Figures of every point, f[P]: seconds, bytes of a chip and what it sends in a step, dollars.

    ttft: until the first token; tpot: from token to token, in the middle of the output; rate: new tokens a second of a
    slice; copies: slices that serve together; cost: dollars a million new tokens.
    """

    ttft: np.ndarray
    tpot: np.ndarray
    rate: np.ndarray
    copies: np.ndarray
    cost: np.ndarray
    weights: np.ndarray
    cache: np.ndarray
    temporaries: np.ndarray
    sent: np.ndarray
    waited: np.ndarray  # seconds of a step that are collectives

    @property
    def bytes(self) -> np.ndarray:
        return self.weights + self.cache + self.temporaries


def predict(
    config: ModelConfig, device: Hardware, points: Space, goal: Goal, weights: str, kv: str, price: float
) -> Prediction:
    """Predict every point in a format of weights and one of the cache. price: dollars a chip and hour.

    Rows of a batch begin and end together, as in `generate`: a generation is the prompts, then the steps, whose time
    grows with the context, so that the step in the middle stands for all. Raises InputError for an unknown format.
    """
    sizes: dict[str, Any] = dict(points.sizes)
    setting = Setting(
        batch=points.batch,
        prompt=goal.prompt,
        generate=bucket(goal.slots) - goal.prompt,  # the slots that `generate` makes: a power of two
        weights=weight_storage(weights),
        kv=kv_storage(kv),
        flash=True,
        microbatches=points.microbatches,
        **sizes,
    )
    reading, chunk = prefill(config, device, setting, points.links)
    middle = decode_step(config, device, setting, points.links, goal.prompt + (goal.output + 1) / 2)
    first = decode_step(config, device, setting, points.links, goal.prompt)
    rate = points.batch * goal.output / (reading + goal.output * middle.seconds)
    copies = np.ones(len(points)) if goal.rate is None else np.ceil(goal.rate / rate)
    served = rate if goal.rate is None else goal.rate
    cost = price / HOUR * points.chips * copies / served * 1e6
    held = (chunk.memory, middle.memory)
    temporaries = np.maximum(*(one.activations + one.logits for one in held))

    def each(value: Number) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, float), (len(points),))

    figures = (reading + first.seconds, middle.seconds, rate, copies, cost)
    memory = (middle.memory.weights, middle.memory.kv, temporaries)
    return Prediction(*map(each, (*figures, *memory, middle.wire, middle.collectives)))


def limits(found: Prediction, goal: Goal, memory: float) -> dict[str, np.ndarray]:
    """Give how many times each limit is reached, f[P] by limit: above 1 it is not met."""
    asked = {"memory": (found.bytes, USABLE * memory), "ttft": (found.ttft, goal.ttft), "tpot": (found.tpot, goal.tpot)}
    return {name: figure / limit for name, (figure, limit) in asked.items() if limit is not None}


def best_of(*columns: np.ndarray) -> np.ndarray:
    """Give the points that no other is as good as in every column and better in one, the smallest first: i[F].

    Of equal ones the first is kept.
    """
    order = np.lexsort(columns[::-1])
    rows = np.stack(columns, axis=-1)[order]
    kept: list[int] = []
    front = np.empty((0, len(columns)))
    for place, row in enumerate(rows):
        if not math.isfinite(row.sum()) or bool((front <= row).all(axis=-1).any()):
            continue
        kept.append(place)
        front = np.vstack([front, row])
    return order[kept]

"""Early exits, from a calibration set: the threshold of `EarlyExit` and its classifier (CALM, Schuster et al. 2022)."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxinfer.api import Model
from jaxinfer.decoding.methods.early_exit import EarlyExit
from jaxinfer.decoding.methods.greedy import Greedy
from jaxinfer.errors import InputError
from jaxinfer.host.token_ids import batch_of
from jaxinfer.network.layerwise import states


@dataclass(frozen=True)
class Point:
    """The result of a threshold on the calibration set."""

    threshold: float
    agreement: float  # with greedy decoding of the whole network: mean over prompts of the share of equal tokens
    layers: float  # mean layers a new token


@dataclass(frozen=True)
class Calibration:
    """The chosen point, and all that were tried, the highest threshold first."""

    chosen: Point
    tried: tuple[Point, ...]


def calibrate(
    model: Model,
    prompts: Sequence[Any],
    method: EarlyExit,
    thresholds: Sequence[float],
    agreement: float,
    max_new_tokens: int = 64,
    error: float | None = None,
) -> Calibration:
    """Find the lowest threshold of a falling sequence up to which the texts agree with those of the whole network.

    Agreement is that of free-running texts, place by place: after a first difference they may part for good.

    Without `error` this is plain measured agreement on these prompts: a statement about no others. With it, Learn then
    Test (Angelopoulos et al. 2021; CALM, section 3.2 and algorithm 1): fixed-sequence testing with p-values by
    Hoeffding's inequality, exp(-2 N (measured - agreement)^2) for N prompts. Then the mean agreement over prompts of
    the same distribution is at least `agreement`, with probability 1 - error over the choice of calibration set. It
    takes many prompts: for agreement 0.9 and error 0.05 at least 150. Where no threshold passes, 1 is chosen: no exits.
    Raises InputError for values out of range.
    """
    values = sorted({float(value) for value in thresholds}, reverse=True)
    if not values or not len(prompts):
        raise InputError("calibrate: give at least one threshold and one prompt")
    for name, value in (("agreement", agreement), ("error", 0.5 if error is None else error)):
        if not 0 < value < 1:
            raise InputError(f"{name}={value} must be above 0 and below 1")
    whole = model.generate(prompts, max_new_tokens=max_new_tokens, method=Greedy()).tokens
    chosen, tried = Point(1.0, 1.0, float(model.config.n_layers)), []
    for value in values:
        one = dataclasses.replace(method, threshold=value)
        result = model.generate(prompts, max_new_tokens=max_new_tokens, method=one)
        measured = float(np.mean([equal(a, b) for a, b in zip(result.tokens, whole, strict=True)]))
        layers = sum(result.stats.figures["layers"]) / max(sum(result.stats.emitted), 1)
        point = Point(value, measured, layers)
        tried.append(point)
        if not passes(measured, agreement, len(whole), error):
            break
        chosen = point
    return Calibration(chosen, tuple(tried))


def passes(measured: float, wanted: float, n: int, error: float | None) -> bool:
    """Tell whether a mean of n values in [0, 1] shows an expectation of `wanted` or more (error None: is it)."""
    if error is None:
        return measured >= wanted
    return math.exp(-2 * n * max(measured - wanted, 0.0) ** 2) <= error


def equal(a: Sequence[int], b: Sequence[int]) -> float:
    """Give the share of places with the same token; where one text is shorter, it has none."""
    return sum(x == y for x, y in zip(a, b, strict=False)) / max(len(a), len(b), 1)


def train_classifier(model: Model, tokens: Any, ridge: float = 1.0, rounds: int = 12) -> dict[str, np.ndarray]:
    """Train a linear classifier for `EarlyExit(measure="classifier")`: {"weight": f32[D], "bias": f32[]}, to attach.

    It says from the hidden state after a layer whether the token that it would give is that of the whole network
    (CALM, section 3.4.3, equation 8, without weights of the layers): one classifier for all layers, logistic regression
    on text int[B, T], by Newton's method. ridge: what is added to the squares of the weights.
    """
    text = batch_of(tokens, model.config.vocab_size)
    hidden, said = (np.asarray(x) for x in states(model.network, model.placed.params, text))
    x = hidden[:-1].reshape(-1, hidden.shape[-1]).astype(np.float64)
    y = (said[:-1] == said[-1]).reshape(-1).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = ridge * np.eye(x.shape[1])
    penalty[-1, -1] = 1e-6
    w = np.zeros(x.shape[1])
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - y) + penalty @ w
        w = w - np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + penalty, gradient)
    return {"weight": w[:-1].astype(np.float32), "bias": np.array(w[-1], np.float32)}

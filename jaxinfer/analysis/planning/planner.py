"""The planner: predict every point, keep what meets the goal and is not beaten, and prove the best few."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxinfer.analysis.planning.goal import Goal, positive
from jaxinfer.analysis.planning.option import Option, Plan
from jaxinfer.analysis.planning.predicting import USABLE, Prediction, best_of, limits, predict
from jaxinfer.analysis.planning.proving import Prover, compiled
from jaxinfer.analysis.planning.slices import Family, family, price_of, prices
from jaxinfer.analysis.planning.space import Space, space
from jaxinfer.analysis.roofline.formats import FLOATS, KV_FORMATS
from jaxinfer.analysis.roofline.shapes import config_of
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.sharding import MeshShape
from jaxinfer.weights.formats import FORMATS

WEIGHTS = ("bfloat16", "int8", "int4")
KV = ("bfloat16", "int8")
SHORT = {"bf16": "bfloat16"}

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Predicted:
    """All points in one pair of formats."""

    weights: str
    kv: str
    found: Prediction
    over: dict[str, np.ndarray]  # by limit: how many times it is reached

    @property
    def worst(self) -> np.ndarray:
        """Give the largest of these, f[P]."""
        return np.max(np.stack(list(self.over.values())), axis=0)


def plan(
    model: str | Path | ModelConfig,
    target: str,
    goal: Goal | None = None,
    weights: Sequence[str] = WEIGHTS,
    kv: Sequence[str] = KV,
    price: float | None = None,
    prove: int = 0,
    prover: Prover = compiled,
    say: Say = lambda text: None,
) -> Plan:
    """Find how to serve a model on a family of targets: slice, mesh, formats and batch.

    model: a shape's name, a checkpoint, or a configuration. target: a family, `v5e`, or one slice of it, `v5e:4x8`.
    price: dollars a chip and hour; None: that of the package. prove: how many of the cheapest are compiled by `prover`.

    Raises InputError for what is not known, and for a goal that nothing meets, with the nearest miss.
    """
    start = time.perf_counter()
    goal = goal or Goal()
    config = model if isinstance(model, ModelConfig) else config_of(model)
    machines = family(target)
    positive("price", price, "plan")
    if isinstance(prove, bool) or not isinstance(prove, int) or prove < 0:
        raise InputError(f"prove={shown(prove)} must be a whole number from 0")
    formats = _formats("weights", weights, (*FLOATS, *FORMATS)), _formats("kv", kv, (*FLOATS, *KV_FORMATS))
    dollars = price_of(machines.name) if price is None else float(price)
    if goal.slots > config.max_positions:
        raise InputError(
            f"goal: {goal.slots} tokens of a request are more than the {config.max_positions} positions of the model"
        )
    points = space(config, machines, goal)
    if not len(points):
        raise InputError(
            f"plan: no slice of {target} can be split for {_named(model, config)} and batch={goal.batch}: the batch "
            "must be a multiple of what its rows are split over"
        )
    made = [
        _predicted(config, machines, points, goal, one, other, dollars) for one in formats[0] for other in formats[1]
    ]
    options = [option for one in made for option in _best(machines, points, one)]
    if not options:
        raise InputError(_nearest_miss(machines, points, goal, made))
    found = Plan(
        model=_named(model, config),
        family=machines.name,
        goal=goal,
        price=dollars,
        source="given" if price is not None else "{source} ({date})".format(**prices()[machines.name]),
        memory=machines.hardware.memory,
        usable=USABLE,
        options=tuple(options),
        points=len(points) * len(made),
        fitting=sum(int((one.over["memory"] <= 1).sum()) for one in made),
        meeting=sum(int((one.worst <= 1).sum()) for one in made),
        seconds=time.perf_counter() - start,
    )
    return proved(found, config, prove, prover, say)


def proved(found: Plan, config: ModelConfig, count: int, prover: Prover, say: Say = lambda text: None) -> Plan:
    """Give the plan with proofs of its cheapest options, as many as are asked for."""
    options = list(found.by_cost)
    for place, one in enumerate(options[:count]):
        say(f"compiling {place + 1} of {min(count, len(options))}: {one.target}, {one.mesh}, batch {one.batch} ...")
        options[place] = dataclasses.replace(one, proof=prover(config, one, found.goal))
    return dataclasses.replace(found, options=tuple(options))


def _named(model: str | Path | ModelConfig, config: ModelConfig) -> str:
    return config.family if isinstance(model, ModelConfig) else str(model)


def _formats(name: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    found = [SHORT.get(one, one) for one in given]
    for one in found:
        if one not in known:
            raise InputError(f"{name}={shown(one)} must be one of {', '.join(known)}{nearest(str(one), known)}")
    if not found:
        raise InputError(f"{name}: give at least one of {', '.join(known)}")
    return list(dict.fromkeys(found))


def _predicted(
    config: ModelConfig, machines: Family, points: Space, goal: Goal, weights: str, kv: str, price: float
) -> Predicted:
    found = predict(config, machines.hardware, points, goal, weights, kv, price)
    return Predicted(weights, kv, found, limits(found, goal, machines.hardware.memory))


def _best(machines: Family, points: Space, one: Predicted) -> list[Option]:
    """Give the options of a pair of formats that no other beats in cost, time to the first token and time a token."""
    meeting = np.flatnonzero(one.worst <= 1)
    if not len(meeting):
        return []
    columns = (one.found.cost, one.found.tpot, one.found.ttft, points.chips)
    order = meeting[np.lexsort([column[meeting] for column in columns[::-1]])]
    kept = order[best_of(*(column[order] for column in columns[:3]))]
    return [option_of(machines, points, one, int(point)) for point in kept]


def option_of(machines: Family, points: Space, one: Predicted, point: int) -> Option:
    """Give one point as an option."""
    found = one.found
    copies = int(found.copies[point])
    return Option(
        target=machines.target(points.slices[points.slice_of[point]]),
        chips=int(points.chips[point]) * copies,
        copies=copies,
        mesh=MeshShape(tuple(points.mesh(point).items())),
        weights=one.weights,
        kv=one.kv,
        batch=int(points.batch[point]),
        microbatches=int(points.microbatches[point]),
        ttft=float(found.ttft[point]),
        tpot=float(found.tpot[point]),
        rate=float(found.rate[point]) * copies,
        cost=float(found.cost[point]),
        bytes={name: float(getattr(found, name)[point]) for name in ("weights", "cache", "temporaries")},
        sent=float(found.sent[point]),
        waited=float(found.waited[point]),
    )


def _nearest_miss(machines: Family, points: Space, goal: Goal, made: Sequence[Predicted]) -> str:
    """Say which option comes closest to the goal, and what it misses, and by how much."""
    fitting = any((one.over["memory"] <= 1).any() for one in made)

    def miss(one: Predicted) -> np.ndarray:
        return np.where(one.over["memory"] <= 1, one.worst, np.inf) if fitting else one.over["memory"]

    closest = min(made, key=lambda one: float(miss(one).min()))
    point = int(miss(closest).argmin())
    option = option_of(machines, points, closest, point)
    where = f"{option.target} with {option.mesh}, weights {option.weights}, kv {option.kv}, batch {option.batch}"
    if not fitting:
        memory = machines.hardware.memory
        return (
            f"plan: nothing fits: the nearest is {where}, which takes {option.total / 2**30:.1f} GiB a chip of the "
            f"{USABLE * memory / 2**30:.1f} that can be used"
        )
    missed = [
        f"{name} {getattr(option, name) * 1e3:.3g} ms of {getattr(goal, name) * 1e3:g} ms ({over[point]:.3g} times)"
        for name, over in closest.over.items()
        if name != "memory" and over[point] > 1
    ]
    return f"plan: nothing meets the goal: the nearest is {where}, with {' and '.join(missed)}"

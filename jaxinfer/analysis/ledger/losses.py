"""Split what a stage takes beyond its bound into named parts, in milliseconds."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxinfer.analysis.ledger.physics import Physics, compulsory
from jaxinfer.analysis.ledger.running import ELSE, Timing

ELEMENTWISE = "norms and other elementwise work"
DISPATCH = "loop and dispatch"
HOST = "host between calls"
BOOKKEEPING = "bookkeeping of the step"

GROUPS = {
    "q, k and v projections": ("q_proj", "k_proj", "v_proj", "q_down_proj", "kv_down_proj", "in_proj", "q_absorb"),
    "attention": ("qk_matmul", "softmax", "sv_matmul", "fused_attention", "attention", "v_absorb"),
    "output projection": ("out_proj",),
    "mlp up, gate and down": ("up_proj", "gate_proj", "down_proj"),
    "experts": ("router", "experts", "experts_up", "experts_gate", "experts_down", "experts_act", "shared_expert"),
    "recurrence": ("mixer", "conv", "scan", "select_proj", "dt_proj", "gate"),
    "head": ("lm_head",),
    "choosing tokens": ("sampling",),
    "proposing": ("propose",),
    "commit to the cache": ("commit",),
    BOOKKEEPING: ("other",),
    "making the cache": (ELSE,),
}
"""The parts that losses are named by, and the operators in each; all others are elementwise work."""
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


@dataclass(frozen=True)
class Loss:
    """A part of what a stage takes beyond its bound. Negative where a part was faster than its share of the bound."""

    name: str
    milliseconds: float
    why: str


def group_of(operator: str) -> str:
    """Name the part that an operator of the roofline or of a program belongs to; `q_proj[global]` as `q_proj`."""
    return _GROUP_OF.get(operator.partition("[")[0], ELEMENTWISE)


def losses(physics: Physics, timing: Timing, calls: str) -> tuple[Loss, ...]:
    """List the parts, the largest first. They add up to the clock's seconds without those of the bound.

    calls: how often the host is asked, in words.
    """
    bounds, moved, ops = _of_operators(physics)
    seconds = _by_group(timing.operators)
    counts = _by_group(timing.counts)
    found = []
    for group in dict.fromkeys([*seconds, *bounds]):
        taken, bound = seconds.get(group, 0.0), bounds.get(group, 0.0)
        why = _why(physics, taken, bound, moved.get(group, 0.0), ops.get(group, 0.0), counts.get(group, 0.0))
        found.append(Loss(group, 1e3 * (taken - bound), why))
    number = sum(timing.counts.values())
    each = 1e6 * timing.between / number if number else 0.0
    why = f"what no instruction accounts for: {number:,.0f} of them, {each:.1f} us between two"
    found.append(Loss(DISPATCH, 1e3 * timing.between, why))
    found.append(Loss(HOST, 1e3 * timing.host, f"outside of programs: {calls}"))
    return tuple(sorted(found, key=lambda loss: -loss.milliseconds))


def _why(physics: Physics, taken: float, bound: float, moved: float, ops: float, number: float) -> str:
    hardware = physics.hardware
    if taken <= 0:
        return "no instruction of its own: fused into others"
    many = f"{number:,.0f} instruction{'' if round(number) == 1 else 's'}"
    if not bound or (bound < 0.05 * taken and number > 1):
        return f"{many}, {1e6 * taken / max(number, 1):.1f} us each"
    if physics.bound == "memory":
        return f"reads at {1e-9 * moved / taken:.1f} of {1e-9 * hardware.bandwidth:.1f} GB/s"
    return f"computes at {1e-9 * ops / taken:.1f} of {1e-9 * ops / bound:.1f} GFLOP/s"


def _of_operators(physics: Physics) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Give, by part, the seconds of the bound, compulsory bytes and operations."""
    bounds: dict[str, float] = {}
    moved: dict[str, float] = {}
    ops: dict[str, float] = {}
    for timed in physics.operators:
        one = timed.operator
        values = (bounds, physics.share(one)), (moved, compulsory(one)), (ops, one.ops * one.layers)
        for sums, value in values:
            group = group_of(one.name)
            sums[group] = sums.get(group, 0.0) + value
    return bounds, moved, ops


def _by_group(values: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        found[group_of(name)] = found.get(group_of(name), 0.0) + value
    return found

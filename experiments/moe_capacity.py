"""What does a capacity factor drop, and what does it cost beside dropless dispatch?

    python experiments/moe_capacity.py configs/moe_capacity.yaml [KEY=VALUE]...

Routing is synthetic: a token's logits are normal, around means that differ between experts as much as `skew` says.
For each number of experts, each skew and each capacity factor: the share of assignments that is dropped, and the load
of the fullest expert over the mean (Switch Transformer, Fedus et al. 2021, section 2.2). Then time and scratch memory
of both dispatches on the same tokens, in alternation.
"""

import dataclasses
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxinfer.analysis.measure import Measure, alternate
from jaxinfer.caching import write_atomic
from jaxinfer.config import MoE
from jaxinfer.errors import InputError
from jaxinfer.experiment import results
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, read_as
from jaxinfer.layers import dispatch, routing


@dataclass(frozen=True)
class Config:
    """What is measured: see configs/moe_capacity.yaml."""

    name: str
    tokens: int = 2048
    d_model: int = 512
    d_ff: int = 256
    experts: tuple[int, ...] = (8, 16, 64)
    top_k: tuple[int, ...] = (1, 2, 6)
    skews: tuple[float, ...] = (0.0, 1.0, 2.0)
    capacity_factors: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0)
    rounds: int = 5
    seed: int = 0
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for the run folder."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def mixtures(self) -> list[MoE]:
        """One for each number of experts, at capacity factor 1. Raises InputError for one that makes no sense."""
        if len(self.experts) != len(self.top_k):
            raise InputError(f"top_k has {len(self.top_k)} values for {len(self.experts)} numbers of experts")
        try:
            return [MoE(n, k, self.d_ff, capacity_factor=1.0) for n, k in zip(self.experts, self.top_k, strict=True)]
        except ValueError as error:
            raise InputError(str(error)) from None


def router_logits(config: Config, moe: MoE, skew: float) -> np.ndarray:
    """float32[tokens, experts]."""
    rng = np.random.default_rng(config.seed)
    noise = rng.standard_normal((config.tokens, moe.experts))
    return (noise + skew * rng.standard_normal(moe.experts)).astype(np.float32)


def drops(config: Config, moe: MoE) -> list[dict[str, float]]:
    """For each skew and capacity factor: what is dropped, and how full the fullest expert would be."""
    found = []
    for skew in config.skews:
        _, chosen = routing.route(jnp.asarray(router_logits(config, moe, skew)), moe)
        slot = np.asarray(dispatch.slots(chosen, moe.experts))
        load = np.bincount(np.asarray(chosen).ravel(), minlength=moe.experts)
        for factor in config.capacity_factors:
            size = dispatch.capacity(config.tokens, dataclasses.replace(moe, capacity_factor=factor))
            dropped = float((slot >= size).mean())
            row = {"experts": moe.experts, "top_k": moe.top_k, "skew": skew, "factor": factor}
            found.append(row | {"dropped": dropped, "fullest": float(load.max() / load.mean())})
    return found


def dispatches(config: Config, moe: MoE, skew: float, factor: float) -> dict[str, float]:
    """Seconds and scratch bytes of both dispatches, on the same tokens."""
    rng = np.random.default_rng(config.seed)
    d, f, n = config.d_model, config.d_ff, moe.experts
    x, up, down = (
        jnp.asarray(rng.standard_normal(s) / np.sqrt(s[-1]), jnp.float32)
        for s in ((config.tokens, d), (n, f, d), (n, d, f))
    )
    gates, chosen = routing.route(jnp.asarray(router_logits(config, moe, skew)), moe)
    size = dispatch.capacity(config.tokens, dataclasses.replace(moe, capacity_factor=factor))

    def dropless(x, gates, chosen, up, down):
        return dispatch.dropless(x, gates, chosen, lambda rows, e: jax.nn.silu(rows @ up[e].T) @ down[e].T, n)

    def capacity(x, gates, chosen, up, down):
        return dispatch.with_capacity(
            x, gates, chosen, lambda rows, e: jax.nn.silu(rows @ up[e].T) @ down[e].T, n, size
        )[0]

    args = (x, gates, chosen, up, down)
    compiled = [jax.jit(call).lower(*args).compile() for call in (dropless, capacity)]

    def timed(call) -> Measure:
        def measure() -> float:
            start = time.perf_counter()
            jax.block_until_ready(call(*args))
            return time.perf_counter() - start

        return measure

    one = alternate("dispatch", ("dropless", "capacity"), *map(timed, compiled), config.rounds)
    memory = [call.memory_analysis().temp_size_in_bytes for call in compiled]
    return {
        "experts": n,
        "top_k": moe.top_k,
        "skew": skew,
        "factor": factor,
        "dropless_seconds": statistics.median(one.first),
        "capacity_seconds": statistics.median(one.second),
        "ratio": one.ratio,
        "dropless_bytes": memory[0],
        "capacity_bytes": memory[1],
        "activation_bytes": x.nbytes,
    }


def drop_table(rows: list[dict[str, float]], factors: tuple[float, ...]) -> Table:
    """Share of assignments dropped, a column for each capacity factor."""
    shown = Table("experts", "top k", "skew", "fullest / mean", *(f"x{factor:g}" for factor in factors), box=None)
    for start in range(0, len(rows), len(factors)):
        group = rows[start : start + len(factors)]
        first = group[0]
        cells = [f"{first['experts']}", f"{first['top_k']}", f"{first['skew']:g}", f"{first['fullest']:.2f}"]
        shown.add_row(*cells, *(f"{row['dropped']:.1%}" for row in group))
    return shown


def time_table(rows: list[dict[str, float]]) -> Table:
    """Both dispatches, side by side."""
    names = ("experts", "top k", "skew", "factor", "dropless", "capacity", "ratio", "scratch", "scratch")
    shown = Table(*names, box=None)
    for row in rows:
        cells = [f"{row['experts']}", f"{row['top_k']}", f"{row['skew']:g}", f"x{row['factor']:g}"]
        times = [f"{1e3 * row[name]:.0f} ms" for name in ("dropless_seconds", "capacity_seconds")]
        memory = [f"{row[name] / 1e6:.1f} MB" for name in ("dropless_bytes", "capacity_bytes")]
        shown.add_row(*cells, *times, f"{row['ratio']:.2f}", *memory)
    return shown


def main(path: str, *overrides: str) -> None:
    """Run the experiment: tables on the terminal, results.json and table.txt in the run folder."""
    config = read_as(Config, path, overrides)
    mixtures = config.mixtures()
    results.check_writable(config.output)
    dropped, timed = [], []
    with Console(stderr=True).status("measuring") as status:
        for moe in mixtures:
            dropped += drops(config, moe)
            for skew in (config.skews[0], config.skews[-1]):
                timed.append(dispatches(config, moe, skew, config.capacity_factors[1 % len(config.capacity_factors)]))
                status.console.print(f"{moe.experts} experts, skew {skew:g}: {timed[-1]['ratio']:.2f}")
    folder = results.new_run(config)
    write_atomic(folder / "results.json", json.dumps({"dropped": dropped, "dispatches": timed}, indent=2) + "\n")
    with Console(record=True, highlight=False) as console:
        console.print(drop_table(dropped, config.capacity_factors))
        console.print(time_table(timed))
    write_atomic(folder / "table.txt", console.export_text())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

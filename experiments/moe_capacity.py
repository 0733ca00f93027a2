"""What does a capacity factor drop, and what does it cost beside dropless dispatch?

    python experiments/moe_capacity.py configs/moe_capacity.yaml [KEY=VALUE]...

Two sources of routing: a real model whose MLPs are split into experts (`jaxinfer.transform.moefy`), on a real text;
and synthetic logits, normal around means that differ between experts as much as `skew` says. For each number of
experts, router and capacity factor: the share of assignments that is dropped, the load of the fullest expert over the
mean (Switch Transformer, Fedus et al. 2021, section 2.2), and for the model what that does to its perplexity. Then time
and scratch memory of both dispatches on the same tokens, in alternation.
"""

import dataclasses
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxinfer
from jaxinfer.analysis.measure import Measure, alternate
from jaxinfer.analysis.quality import token_nll
from jaxinfer.caching import write_atomic
from jaxinfer.config import MoE
from jaxinfer.errors import InputError
from jaxinfer.experiment import lines, load_prompts, results, script
from jaxinfer.experiment.runner import extended
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, ModelSpec, PromptSpec, read_as
from jaxinfer.layers import dispatch, routing
from jaxinfer.transform import moefy

Kind = Literal["softmax", "sinkhorn", "hash", "expert_choice"]


@dataclass(frozen=True)
class Config:
    """What is measured: see configs/moe_capacity.yaml."""

    name: str
    model: ModelSpec | None = None
    text: str | None = None
    text_tokens: int = 1024
    active: float = 0.5
    tokens: int = 2048
    d_model: int = 512
    d_ff: int = 256
    experts: tuple[int, ...] = (8, 16, 64)
    top_k: tuple[int, ...] = (1, 2, 6)
    routers: tuple[Kind, ...] = ("softmax", "sinkhorn", "hash", "expert_choice")
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


def drops(config: Config, moe: MoE) -> list[dict[str, Any]]:
    """For each router, skew and capacity factor: what is dropped, and how full the fullest expert would be.

    Where experts choose, what is dropped is the tokens that none of them took.
    """
    found = []
    for router, skew in itertools.product(config.routers, config.skews):
        kind = dataclasses.replace(moe, router=router)
        logits, tokens = jnp.asarray(router_logits(config, moe, skew)), jnp.arange(config.tokens)
        for factor in config.capacity_factors:
            size = dispatch.capacity(config.tokens, dataclasses.replace(moe, capacity_factor=factor))
            if router == "expert_choice":
                taken = np.asarray(routing.expert_choice(logits, min(size, config.tokens))[1])
                dropped, fullest = 1 - len(np.unique(taken)) / config.tokens, 1.0
            else:
                _, chosen = routing.route(logits, kind, tokens=tokens)
                load = np.bincount(np.asarray(chosen).ravel(), minlength=moe.experts)
                dropped = float((np.asarray(dispatch.slots(chosen, moe.experts)) >= size).mean())
                fullest = float(load.max() / load.mean())
            row = {"experts": moe.experts, "top_k": moe.top_k, "router": router, "skew": skew, "factor": factor}
            rows = size * moe.experts / (config.tokens * moe.top_k)  # computed, for one that is wanted
            found.append(row | {"dropped": dropped, "fullest": fullest, "computed": rows})
    return found


def load(config: Config) -> tuple[jaxinfer.Model, np.ndarray] | None:
    """The model and its text, int32[1, tokens]; None without one. Raises InputError, before anything is measured."""
    if config.model is None:
        return None
    text = (
        script.read_text(config.text, "text") if config.text else "\n".join(p.text for p in load_prompts(PromptSpec()))
    )
    model = extended(
        jaxinfer.load(config.model.source, dtype=config.model.dtype or "float32", weights=config.model.weights),
        config.model,
    )
    if model.tokenizer is None:
        raise InputError(f"model.source: {config.model.source!r} has no tokenizer")
    for experts in config.experts:
        if model.config.d_ff % experts:
            raise InputError(
                f"experts: {experts} must divide the {model.config.d_ff} neurons of an MLP of {model.name}"
            )
    return model, np.array([model.tokenizer.encode(text)[: config.text_tokens]], np.int32)


def of_model(config: Config, model: jaxinfer.Model, ids: np.ndarray, experts: int) -> list[dict[str, Any]]:
    """The same of a model's own routers, on a text int32[1, tokens], with the perplexity that is left."""
    top_k = max(1, round(config.active * experts))
    found = []
    for factor in (*config.capacity_factors, None):
        options = {} if factor is None else {"dispatch": "capacity", "capacity_factor": factor}
        split = moefy(model, experts, top_k, **options)
        stats = split.routing(ids)
        load = np.concatenate([x.load for x in stats.values()])
        row = {"experts": experts, "top_k": top_k, "factor": factor, "tokens": ids.shape[1]}
        row["dropped"] = float(np.mean(np.concatenate([x.dropped for x in stats.values()])))
        row["fullest"] = float((load.max(axis=1) / load.mean(axis=1)).mean())
        found.append(row | {"perplexity": float(np.exp(token_nll(split, ids).mean()))})
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


def drop_table(rows: list[dict[str, Any]], factors: tuple[float, ...]) -> Table:
    """Share of assignments dropped, a column for each capacity factor."""
    names = ("experts", "top k", "router", "skew", "fullest / mean")
    shown = Table(*names, *(f"x{factor:g}" for factor in factors), box=None)
    for start in range(0, len(rows), len(factors)):
        first = rows[start]
        cells = [f"{first['experts']}", f"{first['top_k']}", first["router"], f"{first['skew']:g}"]
        drops = (f"{row['dropped']:.1%}" for row in rows[start : start + len(factors)])
        shown.add_row(*cells, f"{first['fullest']:.2f}", *drops)
    return shown


def model_table(rows: list[dict[str, Any]]) -> Table:
    """What a split model drops, and what is left of it."""
    shown = Table("experts", "top k", "factor", "dropped", "fullest / mean", "perplexity", box=None)
    for row in rows:
        factor = "dropless" if row["factor"] is None else f"x{row['factor']:g}"
        cells = [f"{row['experts']}", f"{row['top_k']}", factor, f"{row['dropped']:.1%}"]
        shown.add_row(*cells, f"{row['fullest']:.2f}", f"{row['perplexity']:.2f}")
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


def plots(config: Config, found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Charts as SVG, by the name of their file."""
    skew, experts = config.skews[-1], config.experts[len(config.experts) // 2]
    by_router: dict[str, list[tuple[float, float]]] = {}
    by_size: dict[str, list[tuple[float, float]]] = {}
    for row in found["dropped"]:
        point = (row["factor"], 100 * row["dropped"])
        if row["skew"] == skew and row["experts"] == experts:
            by_router.setdefault(row["router"], []).append(point)
        if row["skew"] == skew and row["router"] == config.routers[0]:
            by_size.setdefault(f"{row['experts']} experts", []).append(point)
    x, y = "capacity factor", "dropped, %"
    made = {
        "dropped_by_router.svg": lines.chart(f"Dropped: {experts} experts, skew {skew:g}", x, y, by_router),
        "dropped_by_experts.svg": lines.chart(f"Dropped: {config.routers[0]} router, skew {skew:g}", x, y, by_size),
    }
    timed = [row for row in found["dispatches"] if row["skew"] == skew]
    for what, unit, scale in (("seconds", "ms", 1e3), ("bytes", "MB", 1e-6)):
        series = {
            name: [(row["experts"], scale * row[f"{name}_{what}"]) for row in timed]
            for name in ("dropless", "capacity")
        }
        title = f"{config.tokens} tokens, skew {skew:g}: {'time' if what == 'seconds' else 'scratch memory'}"
        made[f"{what}.svg"] = lines.chart(title, "experts", unit, series, log_x=True)
    if found["model"]:
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in found["model"]:
            if row["factor"] is not None:
                curves.setdefault(f"{row['experts']} experts", []).append((row["factor"], 100 * row["dropped"]))
        made["dropped_model.svg"] = lines.chart("Dropped: a model's MLPs as experts", x, y, curves)
    return made


def main(path: str, *overrides: str) -> None:
    """Run the experiment: tables on the terminal; results.json, table.txt and charts in the run folder."""
    config = read_as(Config, path, overrides)
    mixtures = config.mixtures()
    results.check_writable(config.output)
    loaded = load(config)
    found: dict[str, list[dict[str, Any]]] = {"dropped": [], "dispatches": [], "model": []}
    with Console(stderr=True).status("measuring") as status:
        for moe in mixtures:
            found["dropped"] += drops(config, moe)
            for skew in dict.fromkeys((config.skews[0], config.skews[-1])):
                factor = config.capacity_factors[1 % len(config.capacity_factors)]
                row = dispatches(config, moe, skew, factor)
                found["dispatches"].append(row)
                status.console.print(f"{moe.experts} experts, skew {skew:g}: {row['ratio']:.2f}")
        if loaded:
            model, ids = loaded
            for experts in config.experts:
                found["model"] += of_model(config, model, ids, experts)
                status.console.print(f"{model.name} as {experts} experts: {found['model'][-1]['perplexity']:.2f}")
    folder = results.new_run(config)
    write_atomic(folder / "results.json", json.dumps(found, indent=2) + "\n")
    for name, svg in plots(config, found).items():
        write_atomic(folder / name, svg)
    with Console(record=True, highlight=False) as console:
        console.print(drop_table(found["dropped"], config.capacity_factors))
        console.print(time_table(found["dispatches"]))
        if found["model"]:
            console.print(model_table(found["model"]))
        console.print(str(folder))
    write_atomic(folder / "table.txt", console.export_text())


if __name__ == "__main__":
    script.run(main, __doc__)

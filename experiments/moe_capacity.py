"""Measure what a capacity factor drops, and what it costs beside dropless dispatch.

    jaxinfer run configs/moe_capacity.yaml [KEY=VALUE]...

Two sources of routing: a real model whose MLPs are split into experts (`jaxinfer.compress.moefy`), on a real text;
and synthetic logits, normal around means that differ between experts as much as `skew` says. For each number of
experts, router and capacity factor: the share of assignments that is dropped, the load of the fullest expert over the
mean (Switch Transformer, Fedus et al. 2021, section 2.2), the rows that are computed for one that is wanted, and for
the model what that does to its perplexity. Then time and scratch memory of both dispatches on the same tokens, in
alternation.
"""

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer
from jaxinfer.analysis.measure import Measure, alternate
from jaxinfer.analysis.mixtures import on_text
from jaxinfer.compress import moefy, reroute
from jaxinfer.config import MoE
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, lines, load_prompts, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.experiment.lines import series
from jaxinfer.experiment.prompts import read_text
from jaxinfer.experiment.schema import ModelSpec, PromptSpec
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.layers import expert_dispatch, routing
from jaxinfer.layers.linear import matmul

Router = Literal["softmax", "sinkhorn", "hash", "expert_choice"]
NAMES = ("dropless", "capacity")

route = jax.jit(routing.route, static_argnums=1)


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/moe_capacity.yaml."""

    name: str
    model: ModelSpec | None = None
    text: str | None = None
    text_tokens: int = 512
    active: float = 0.5
    tokens: int = 2048
    d_model: int = 512
    d_ff: int = 256
    experts: tuple[int, ...] = (8, 16, 64)
    top_k: tuple[int, ...] = (1, 2, 6)
    routers: tuple[Router, ...] = ("softmax", "sinkhorn", "hash", "expert_choice")
    skews: tuple[float, ...] = (0.0, 1.0, 2.0)
    capacity_factors: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0)
    rounds: int = 5
    seed: int = 0
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        self.mixtures()
        if self.text:
            read_text(self.text, "text")

    def mixtures(self) -> list[MoE]:
        """Make one for each number of experts, at capacity factor 1. Raises InputError for one that makes no sense."""
        if len(self.experts) != len(self.top_k):
            raise InputError(f"top_k has {len(self.top_k)} values for {len(self.experts)} numbers of experts")
        for name in ("experts", "routers", "skews", "capacity_factors"):
            if not getattr(self, name):
                raise InputError(f"{name}=[] must name at least one")
        for name in ("text_tokens", "tokens", "d_model", "d_ff", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.active <= 1:
            raise InputError(f"active={self.active:g} must be above 0, and at most 1")
        try:
            for factor in self.capacity_factors:
                MoE(1, 1, self.d_ff, capacity_factor=factor)
            return [MoE(n, k, self.d_ff, capacity_factor=1.0) for n, k in zip(self.experts, self.top_k, strict=True)]
        except ValueError as error:
            raise InputError(str(error)) from None

    @property
    def middle(self) -> int:
        """Give the number of experts under which routers are compared."""
        return self.experts[len(self.experts) // 2]


def router_logits(config: Config, moe: MoE, skew: float) -> np.ndarray:
    """Draw float32[tokens, experts]."""
    rng = np.random.default_rng(config.seed)
    noise = rng.standard_normal((config.tokens, moe.experts))
    return (noise + skew * rng.standard_normal(moe.experts)).astype(np.float32)


def drops(config: Config, moe: MoE) -> list[Row]:
    """Measure for each router, skew and capacity factor the drops, the load of the fullest expert, and the work.

    Where experts choose, what is dropped is the tokens that none of them took.
    """
    found = []
    for router, skew in itertools.product(config.routers, config.skews):
        kind = dataclasses.replace(moe, router=router)
        logits, tokens = jnp.asarray(router_logits(config, moe, skew)), jnp.arange(config.tokens)
        wanted = config.tokens * moe.top_k
        load, slot = np.full(moe.experts, wanted // moe.experts), np.zeros(0)
        if router != "expert_choice":
            _, chosen = route(logits, kind, None, tokens)
            load = np.bincount(np.asarray(chosen).ravel(), minlength=moe.experts)
            slot = np.asarray(expert_dispatch.slots(chosen, moe.experts))
        row = {"experts": moe.experts, "top_k": moe.top_k, "router": router, "skew": skew}
        row |= {
            "fullest": float(load.max() / load.mean()),
            "dropless_computed": float(expert_dispatch.computed(jnp.asarray(load), config.tokens, moe.top_k)) / wanted,
        }
        for factor in config.capacity_factors:
            size = expert_dispatch.capacity(config.tokens, dataclasses.replace(moe, capacity_factor=factor))
            if router == "expert_choice":
                taken = np.asarray(routing.expert_choice(logits, min(size, config.tokens))[1])
                dropped, kept = 1 - len(np.unique(taken)) / config.tokens, size
            else:
                dropped, kept = float((slot >= size).mean()), min(int(load.max()), size)
            of_mean = {"kept_load": kept / float(load.mean()), "computed": size * moe.experts / wanted}
            found.append(row | {"factor": factor, "dropped": dropped} | of_mean)
    return found


def model_of(config: Config) -> ModelSpec | None:
    """Load the model in float32 unless the config says otherwise; None without one."""
    return config.model and dataclasses.replace(config.model, dtype=config.model.dtype or "float32")


def prepare(config: Config, model: jaxinfer.Model | None, prompts: Prompts) -> tuple[jaxinfer.Model, np.ndarray] | None:
    """Load the model and its text, int32[1, tokens]; None without one. Raises InputError before anything is run."""
    if model is None or config.model is None:
        return None
    text = read_text(config.text, "text") if config.text else "\n".join(p.text for p in load_prompts(PromptSpec()))
    if model.tokenizer is None:
        raise InputError(f"model.source: {config.model.source!r} has no tokenizer")
    for experts in config.experts:
        if model.config.d_ff % experts:
            raise InputError(
                f"experts: {experts} must divide the {model.config.d_ff} neurons of an MLP of {model.name}"
            )
    ids = model.tokenizer.encode(text)[: config.text_tokens + 1]
    if len(ids) < 2:
        raise InputError("text: has fewer than two tokens")
    # The compile time of a program that runs once counts: layers are scanned.
    return dataclasses.replace(model, separate_layers=False), np.array([ids], np.int32)


def of_model(
    config: Config, model: jaxinfer.Model, ids: np.ndarray, experts: int, step: Callable[[str], None]
) -> list[Row]:
    """Measure the same of a model's own routers, on a text int32[1, tokens + 1], with the perplexity that is left."""
    split = moefy(model, experts, experts)
    found = []
    for router, top_k, factor in variants(config, experts):
        bounded = {} if factor is None else {"dispatch": "capacity", "capacity_factor": factor}
        stats, nll = on_text(reroute(split, router=router, top_k=top_k, **bounded), ids)
        load = np.concatenate([x.load for x in stats.values()])
        row: Row = {"experts": experts, "top_k": top_k, "router": router, "factor": factor, "tokens": ids.shape[1] - 1}
        row["bound"] = "dropless" if factor is None else f"x{factor:g}"
        row["dropped"] = float(np.mean(np.concatenate([x.dropped for x in stats.values()])))
        row["kept_load"] = float((load.max(axis=1) / load.mean(axis=1)).mean())
        found.append(row | {"perplexity": float(np.exp(nll))})
        step(f"{top_k} of {experts} experts, {router}, {row['bound']}: perplexity {np.exp(nll):.2f}")
    return found


def variants(config: Config, experts: int) -> list[tuple[str, int, float | None]]:
    """List router, top_k and capacity factor of what a model is measured with.

    One router; where routers are compared, all of them, and all experts on: the model as it was.
    """
    top_k, factors = max(1, round(config.active * experts)), (None, *config.capacity_factors)
    if experts != config.middle:
        return [(config.routers[0], top_k, f) for f in factors]
    found = [(r, top_k, f) for r in config.routers for f in factors if r != "expert_choice" or f is not None]
    return [("softmax", experts, None), *found]


def dispatches(config: Config, moe: MoE, skew: float, factor: float) -> Row:
    """Measure seconds and scratch bytes of both dispatches, on the same tokens."""
    rng = np.random.default_rng(config.seed)
    d, f, n = config.d_model, config.d_ff, moe.experts
    x, up, down = (
        jnp.asarray(rng.standard_normal(s) / np.sqrt(s[-1]), jnp.float32)
        for s in ((config.tokens, d), (n, f, d), (n, d, f))
    )
    gates, chosen = route(jnp.asarray(router_logits(config, moe, skew)), moe)
    size = expert_dispatch.capacity(config.tokens, dataclasses.replace(moe, capacity_factor=factor))

    def call(how, x, gates, chosen, up, down):
        def ffn(rows, e):
            return matmul(jax.nn.silu(matmul(rows, up, (f, d), layer=e)), down, (d, f), layer=e)

        return how(x, gates, chosen, ffn, n)

    def capacity(*args):
        return expert_dispatch.with_capacity(*args, size)[0]

    args = (x, gates, chosen, up, down)
    compiled = [
        jax.jit(call, static_argnums=0).lower(how, *args).compile() for how in (expert_dispatch.dropless, capacity)
    ]

    def timed(call) -> Measure:
        def measure() -> float:
            start = time.perf_counter()
            jax.block_until_ready(call(*args))
            return time.perf_counter() - start

        return measure

    one = alternate("dispatch", NAMES, *map(timed, compiled), config.rounds)
    found: Row = {"experts": n, "top_k": moe.top_k, "skew": skew, "factor": factor, "ratio": one.ratio}
    for name, run, seconds in zip(NAMES, compiled, (one.first, one.second), strict=True):
        found[f"{name}_ms"] = 1e3 * statistics.median(seconds)
        found[f"{name}_mb"] = run.memory_analysis().temp_size_in_bytes / 1e6
    return found | {"activation_mb": x.nbytes / 1e6}


def items(config: Config, prompts: Prompts) -> dict[str, Callable[[Run], list[Row]]]:
    """List what is measured of each mixture; of the model, where there is one, at the end."""
    factor = config.capacity_factors[1 % len(config.capacity_factors)]
    found: dict[str, Callable[[Run], list[Row]]] = {}
    for moe in config.mixtures():
        size = f"{moe.experts} experts, {moe.top_k} a token"
        found[f"{size}: what is dropped"] = partial(measure_drops, moe=moe)
        for skew in dict.fromkeys((config.skews[0], config.skews[-1])):
            found[f"{size}: time, skew {skew:g}"] = partial(measure_dispatches, moe=moe, skew=skew, factor=factor)
    for experts in config.experts if config.model else ():
        found[f"a model of {experts} experts"] = partial(measure_model, experts=experts)
    return found


def measure_drops(run: Run, moe: MoE) -> list[Row]:
    """Measure a row for each router, skew and capacity factor."""
    return [{"part": "dropped"} | row for row in drops(run.config, moe)]


def measure_dispatches(run: Run, moe: MoE, skew: float, factor: float) -> list[Row]:
    """Measure one row: both dispatches in alternation."""
    return [{"part": "dispatches"} | dispatches(run.config, moe, skew, factor)]


def measure_model(run: Run, experts: int) -> list[Row]:
    """Measure a row for each router and bound."""
    run.expect(len(variants(run.config, experts)))

    def step(line: str) -> None:
        run.say(line)
        run.tick()

    return [{"part": "model"} | row for row in of_model(run.config, *run.ready, experts, step)]


def parts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Give the rows by the part that they are of, without its name."""
    found: dict[str, list[Row]] = {"dropped": [], "dispatches": [], "model": []}
    for row in rows:
        found[row["part"]].append({key: value for key, value in row.items() if key != "part"})
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """Tabulate what is dropped, a column for each capacity factor; what dispatch costs; and what is left of a model."""
    found = parts(rows)
    groups: dict[tuple, Row] = {}
    for row in found["dropped"]:
        same = tuple(row[key] for key in ("experts", "top_k", "router", "skew"))
        groups.setdefault(same, dict(row))[f"x{row['factor']:g}"] = f"{row['dropped']:.1%}"
    factors = {f"x{row['factor']:g}": f"{{x{row['factor']:g}}}" for row in found["dropped"]}
    size, routed = {"experts": "{experts}", "top k": "{top_k}"}, {"router": "{router}", "skew": "{skew:g}"}
    work = {"fullest": "{fullest:.2f}", "dropless computes": "{dropless_computed:.2f}"}
    times = {"dropless": "{dropless_ms:.1f} ms", "capacity": "{capacity_ms:.1f} ms", "ratio": "{ratio:.2f}"}
    memory = {"scratch of dropless": "{dropless_mb:.1f} MB", "scratch of capacity": "{capacity_mb:.1f} MB"}
    timed = size | {"skew": "{skew:g}", "factor": "x{factor:g}"} | times | memory
    left = size | {"router": "{router}", "factor": "{bound}", "dropped": "{dropped:.1%}", "fullest": "{kept_load:.2f}"}
    made = [
        Table.of(groups.values(), size | routed | work | factors, "what is dropped"),
        Table.of(found["dispatches"], timed, "what dispatch costs"),
        Table.of(found["model"], left | {"perplexity": "{perplexity:.2f}"}, "what is left of a model"),
    ]
    return [table for table in made if table.rows]


def plots(config: Config, found: dict[str, list[Row]]) -> dict[str, str]:
    """Draw charts as SVG, by the name of their file."""
    skew, one = config.skews[-1], config.routers[0]
    everything, worst = found["dropped"], [row for row in found["dropped"] if row["skew"] == skew]
    bounded = [row for row in found["model"] if row["factor"] is not None]
    lost, full, x = "dropped, %", "fullest expert's load / mean", "capacity factor"
    made = {}
    for split, named, of in (
        ("router", lambda rows: [(r["router"], r) for r in rows if r["experts"] == config.middle], config.middle),
        ("experts", lambda rows: [(f"{r['experts']} experts", r) for r in rows if r["router"] == one], one),
    ):
        title = f"{of} experts" if split == "router" else f"{of} router"
        curves = {
            f"dropped_by_{split}": (f"{title}, skew {skew:g}", x, lost, series(named(worst), "factor", "dropped", 100)),
            f"load_by_{split}": (title, "skew", full, series(named(everything), "skew", "fullest")),
        }
        if bounded:
            of_model = f"{title}, a model's MLPs"
            curves[f"dropped_model_by_{split}"] = (of_model, x, lost, series(named(bounded), "factor", "dropped", 100))
            curves[f"load_model_by_{split}"] = (of_model, x, full, series(named(bounded), "factor", "kept_load"))
        made |= {f"{name}.svg": lines.chart(*chart) for name, chart in curves.items()}
    work = [(f"{row['experts']} experts", row) for row in worst if row["router"] == one]
    curve = {"capacity": series(work, "factor", "computed")[work[0][0]]}
    curve |= {f"{name}, dropless": line for name, line in series(work, "factor", "dropless_computed").items()}
    made["computed.svg"] = lines.chart(f"Rows computed, skew {skew:g}", x, "for one that is wanted", curve)
    timed = [row for row in found["dispatches"] if row["skew"] == skew]
    for unit, what in (("ms", "time"), ("mb", "scratch memory")):
        curve = {name: [(row["experts"], row[f"{name}_{unit}"]) for row in timed] for name in NAMES}
        title = f"{config.tokens} tokens, skew {skew:g}: {what}"
        made[f"dispatch_{unit}.svg"] = lines.chart(title, "experts", unit, curve, log_x=True)
    return made


def files(run: Run) -> Mapping[str, str]:
    """Give results.json: all figures by part; and the charts, once all that they show is there."""
    found = parts(run.rows)
    made = {"results.json": json.dumps(found, indent=2) + "\n"}
    whole = len(found["dispatches"]) == len(run.config.experts) * len({run.config.skews[0], run.config.skews[-1]})
    return made | (plots(run.config, found) if whole else {})


CALLS = dict(check=Config.check, model=model_of, prepare=prepare, files=files)
KINDS.add("moe_capacity", Kind(Config, items, lambda item, run: item(run), tables, **CALLS))

if __name__ == "__main__":
    script.run("moe_capacity", __doc__)

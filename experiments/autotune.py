"""Measure which block sizes are fastest on this machine, for every class of shapes, and write the table.

    jaxinfer run configs/autotune.yaml
    jaxinfer run configs/autotune.yaml "kernels=[matmul]" table=blocks.yaml

The kernels read the table (jaxinfer/kernels/blocks.yaml) by the name of the device; entries of other machines are kept.
A candidate that does not compile, or whose numbers are off, is refused, and the run's results.json says why. Beside the
products stands the time that plain XLA takes for them.
"""

import datetime
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from jaxinfer.cache.store import causal
from jaxinfer.config import LayerKind
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.host.files import write_atomic
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.kernels import blocks, dispatch, matmul, reference
from jaxinfer.weights.formats import FORMATS

LAYERS = 4  # measured in turn, so that no cache holds what a call reads
OFF = 2e-2  # largest difference from the definition in float32, relative to the largest number
HEADER = (
    "# Block sizes by machine, kernel and class of shapes: kernels/blocks.py. experiments/autotune.py writes here.\n"
)


@dataclass(frozen=True)
class Attention:
    """A layer of attention: a decode step over `live` tokens in each of `batch` rows, a prefill of `tokens`."""

    heads: int = 32
    kv_heads: int = 8
    width: int = 128
    batch: int = 16
    live: int = 4096
    tokens: int = 2048

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Matmul:
    """A projection."""

    outputs: int = 4096
    inputs: int = 14336

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/autotune.yaml. candidates: platform, kernel, size -> its values."""

    name: str
    candidates: dict[str, dict[str, dict[str, tuple[int, ...]]]]
    kernels: tuple[str, ...] = ("attention", "matmul")
    classes: tuple[str, ...] = ()  # of shapes; empty: all
    attention: Attention = Attention()
    matmul: Matmul = Matmul()
    dtype: str = "bfloat16"
    table: str = str(blocks.TABLE)
    rounds: int = 5
    steps: int = 20
    interpret: bool = False  # run the kernels of `target` step by step on any machine, to test this script
    target: str = "tpu"
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def platform(self) -> str:
        """Name what is tuned. Raises InputError where there is nothing to tune, or for sizes that no kernel has."""
        platform = self.target if self.interpret else jax.default_backend()
        if platform not in ("tpu", "gpu"):
            raise InputError(f"this machine has no TPU or GPU ({platform}): there is nothing to tune here")
        if self.interpret and Path(self.table).resolve() == blocks.TABLE.resolve():
            raise InputError("interpret=true measures no machine: table must name another file than the package's")
        for number, kernel in enumerate(self.kernels):
            if kernel not in blocks.CLASSES:
                raise InputError(f"kernels.{number}: {kernel!r} is none of {', '.join(blocks.CLASSES)}")
            sizes, given = blocks.SIZES[platform, kernel], self.candidates.get(platform, {}).get(kernel, {})
            if set(given) != set(sizes) or not all(given.values()) or min(map(min, given.values())) < 1:
                raise InputError(f"candidates.{platform}.{kernel}: must give numbers from 1 for {', '.join(sizes)}")
        known = [one for kernel in self.kernels for one in blocks.CLASSES[kernel]]
        for number, one in enumerate(self.classes):
            if one not in known:
                raise InputError(f"classes.{number}: {one!r} is none of {', '.join(known)}")
        return platform

    def check(self) -> None:
        """Raise InputError for what cannot be tuned, and for a table that is none."""
        self.platform()
        if Path(self.table).exists():
            blocks.read(Path(self.table))


@dataclass(frozen=True)
class Work:
    """A kernel's work on a class of shapes: call(layer i32[]), and what layer 0 gives by the definition in float32."""

    call: Callable[..., jax.Array]
    args: tuple[Any, ...]
    exact: np.ndarray


def attention_work(config: Config, platform: str, shapes: str) -> Work:
    """Make the partial of a decode step over the cache, or of a prompt over itself."""
    at, ordered = config.attention, shapes == "prefill"
    batch, tokens, slots = (1, at.tokens, at.tokens) if ordered else (at.batch, 1, at.live)
    keys = jax.random.split(jax.random.key(0), 3)
    stack = (LAYERS, batch, at.kv_heads, slots, at.width)
    k, v = (jax.random.normal(key, stack, config.dtype) for key in keys[:2])
    folded = (batch, at.kv_heads, tokens * at.heads // at.kv_heads, at.width)
    q = jax.random.normal(keys[2], folded, config.dtype) * at.width**-0.5
    kv_pos = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (batch, slots))
    q_pos = kv_pos if ordered else jnp.full((batch, 1), slots, jnp.int32)
    visible = partial(causal, LayerKind())
    row = next(row for row in dispatch.TABLE if platform in (row.platforms or ()))

    def call(q, k, v, q_pos, kv_pos, layer):
        options = dispatch.interpreter(row)
        return dispatch.module(row).partial(q, k, v, layer, q_pos, kv_pos, visible, ordered=ordered, **options).out

    wide = (x.astype(jnp.float32) for x in (q, k[0], v[0]))
    seen = visible(q_pos[:, :, None], kv_pos[:, None, :])
    exact = reference.partial(*wide, seen, q_pos, kv_pos).out
    return Work(call, (q, k, v, q_pos, kv_pos), np.asarray(exact))


def matmul_work(config: Config, platform: str, shapes: str) -> Work:
    """Make a product of as many rows as the class has at most."""
    name, rows = shapes.split()
    keys = jax.random.split(jax.random.key(0), 2)
    w = jax.random.normal(keys[0], (LAYERS, config.matmul.outputs, config.matmul.inputs), jnp.bfloat16)
    weight = FORMATS[name].encode(w)
    x = jax.random.normal(keys[1], (int(rows), config.matmul.inputs), config.dtype)
    exact = matmul.definition(x.astype(jnp.float32), weight.format.decode(jax.tree.map(lambda a: a[0], weight)))

    def call(x, weight, layer):
        return weight.format.product(x, weight, config.matmul.outputs, True, layer)

    return Work(call, (x, weight), np.asarray(exact))


def measured(
    config: Config, kernel: str, shapes: str, work: Work, candidate: dict[str, int], name: str = "pallas"
) -> dict[str, Any]:
    """Time one candidate: its sizes, with its median seconds a call, or why it is refused."""
    how = dict(target=config.target, interpret=True) if config.interpret and name == "pallas" else {}
    try:
        with blocks.trying(kernel, shapes, candidate), dispatch.use(name, **how):
            # A function of its own: one that was traced before would keep the sizes of that time.
            run = jax.jit(lambda *args: work.call(*args)).lower(*work.args, jnp.int32(0)).compile()
        found = np.asarray(run(*work.args, jnp.int32(0)))
    except Exception as error:  # whatever a compiler has to say
        return candidate | {"refused": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    off = float(np.abs(found - work.exact).max() / np.abs(work.exact).max())
    if not off <= OFF:
        return candidate | {"refused": f"its numbers are off by {off:.1e}"}
    layers = [jnp.int32(layer) for layer in range(LAYERS)]
    times = []
    for _ in range(config.rounds):
        start = time.perf_counter()
        for step in range(config.steps):
            out = run(*work.args, layers[step % LAYERS])
        jax.block_until_ready(out)
        times.append((time.perf_counter() - start) / config.steps)
    return candidate | {"seconds": statistics.median(times)}


def candidates(config: Config, platform: str, kernel: str) -> Iterator[dict[str, int]]:
    """List every combination of the sizes that the config gives."""
    given = config.candidates[platform][kernel]
    for values in itertools.product(*given.values()):
        yield dict(zip(given, values, strict=True))


def put(table: Path, machine: str, kernel: str, shapes: str, entry: dict[str, Any]) -> None:
    """Write one entry; all others stay."""
    whole = json.loads(json.dumps(blocks.read(table))) if table.exists() else {}
    whole.setdefault(machine, {}).setdefault(kernel, {})[shapes] = entry
    blocks.check(whole, table)
    write_atomic(table, HEADER + yaml.safe_dump(whole, sort_keys=False, width=200))


def items(config: Config, prompts: Prompts) -> dict[str, tuple[str, str]]:
    """List the classes of shapes of each kernel."""
    return {
        f"{kernel} {shapes}": (kernel, shapes)
        for kernel in config.kernels
        for shapes in blocks.CLASSES[kernel]
        if not config.classes or shapes in config.classes
    }


def machine_of(config: Config) -> str:
    """Give the name under which the table has this machine."""
    return config.platform() if config.interpret else jax.devices()[0].device_kind


def measure(item: tuple[str, str], run: Run) -> Row:
    """Try every candidate, and put the fastest into the table."""
    kernel, shapes = item
    config: Config = run.config
    platform = config.platform()
    work = {"attention": attention_work, "matmul": matmul_work}[kernel](config, platform, shapes)
    tried = [measured(config, kernel, shapes, work, one) for one in candidates(config, platform, kernel)]
    plain = measured(config, kernel, shapes, work, {}, "xla") if kernel == "matmul" else None
    ran = [one for one in tried if "seconds" in one]
    row: Row = {"kernel": kernel, "shapes": shapes, "tried": tried, "xla": plain, "best": None}
    if not ran:
        run.say(f"{kernel} {shapes}: no candidate runs; {tried[0]['refused']}")
        return row
    best = min(ran, key=lambda one: one["seconds"])
    sizes = {key: best[key] for key in blocks.SIZES[platform, kernel]}
    said = f"{1e6 * best['seconds']:.1f} us, the fastest of {len(ran)}; {len(tried) - len(ran)} refused"
    how = "interpreted, " if config.interpret else ""
    basis = f"measured: {how}{said}; JAX {jax.__version__}, {datetime.date.today()}"
    put(Path(config.table), machine_of(config), kernel, shapes, sizes | {"basis": basis})
    beside = f"; plain XLA takes {1e6 * plain['seconds']:.1f} us" if plain and "seconds" in plain else ""
    run.say(f"{kernel} {shapes}: {sizes}, {said}{beside}")
    return row | {"best": best}


def table(rows: Sequence[Row]) -> Table:
    """Tabulate the fastest of each class of shapes, beside plain XLA."""

    def sizes(row: Row) -> str:
        return ", ".join(f"{key} {value}" for key, value in (row["best"] or {}).items() if key != "seconds") or "-"

    def us(one: dict[str, Any] | None) -> str:
        return f"{1e6 * one['seconds']:.1f}" if one and "seconds" in one else "-"

    columns = {
        "class": "{kernel} {shapes}",
        "fastest": sizes,
        "us": lambda row: us(row["best"]),
        "plain XLA us": lambda row: us(row["xla"]),
        "refused": lambda row: f"{sum('refused' in one for one in row['tried'])} of {len(row['tried'])}",
    }
    return Table.of(rows, columns)


def files(run: Run) -> dict[str, str]:
    """Give results.json: what was tried."""
    found: dict[str, Any] = {"machine": machine_of(run.config), "jax": jax.__version__}
    found["classes"] = {f"{row['kernel']} {row['shapes']}": row["tried"] for row in run.rows}
    found["xla"] = {row["shapes"]: row["xla"] for row in run.rows if row["xla"]}
    return {"results.json": json.dumps(found, indent=2) + "\n"}


def summary(run: Run) -> str:
    """Name the table that was written."""
    return f"block sizes of {machine_of(run.config)}: {run.config.table}"


KINDS.add(
    "autotune",
    Kind(Config, items, measure, table, check=Config.check, files=files, summary=summary),
)

if __name__ == "__main__":
    script.run("autotune", __doc__)

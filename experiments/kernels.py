"""Measure how fast and how exact attention is: each formulation of a layer, beside what memory and arithmetic allow.

    jaxinfer run configs/kernels.yaml
    jaxinfer run configs/kernels.yaml heads=8 kv_heads=2 width=64 dtype=float32

Beside the formulations of jaxinfer run `jax.nn.dot_product_attention` (XLA, and cuDNN on a GPU) and, where torch is
installed, its `scaled_dot_product_attention`; these two read a cache that is full, and no quantized one. The error of
each is its largest difference from the definition in float32 over the same numbers, relative to the largest output.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.cache.codes import Codes, dequantize, quantize
from jaxinfer.cache.store import Store, causal, extent, round_up
from jaxinfer.config import LayerKind
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.kernels import dispatch
from jaxinfer.kernels.attention import attend, fold_heads, unfold_heads

LAYERS = 2  # in the stack: a formulation that copied its slice of one would show
LARGEST = 4 << 30  # bytes of scores that the reference may hold
EXACT = "definition in float32"  # what the others are compared with; not a row of the table


@dataclass(frozen=True)
class Case:
    """`live` tokens in the cache of each row, stored as `stored` (None: as computed), and `tokens` fresh ones."""

    batch: int
    tokens: int
    live: int
    stored: str | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Config:
    """Heads of one layer, and what it attends to. `rounds` measurements of `steps` calls each."""

    name: str
    cases: tuple[Case, ...]
    heads: int = 32
    kv_heads: int = 8
    width: int = 128
    dtype: str = "bfloat16"
    rounds: int = 5
    steps: int = 20
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise InputError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        for case in self.cases:
            if case.batch < 1 or case.tokens < 1 or case.live < 0:
                raise InputError(f"cases: {case} must have batch and tokens from 1 and live from 0")
            if case.stored not in (None, "int8", "float8_e4m3fn"):
                raise InputError(f"cases: stored={case.stored!r} must be int8 or float8_e4m3fn")


def seconds_of(config: Config, call: Callable[[], Any]) -> float:
    """Measure the median time of a call, compiled and warm; calls are queued, so that the host's part is hidden."""
    jax.block_until_ready(call())
    measured = []
    for _ in range(config.rounds):
        start = time.perf_counter()
        for _ in range(config.steps - 1):
            call()
        jax.block_until_ready(call())
        measured.append((time.perf_counter() - start) / config.steps)
    return statistics.median(measured)


def ceilings(config: Config) -> tuple[float, float]:
    """Measure bytes a second that a copy moves, reads and writes together, and FLOP a second of a large product."""
    size, n = (1 << 26, 1024) if jax.default_backend() == "cpu" else (1 << 30, 8192)
    x = jnp.ones(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    y = jnp.ones((n, n), config.dtype)
    product = jax.jit(lambda y: y @ y)
    return 2 * size / seconds_of(config, lambda: copy(x)), 2 * n**3 / seconds_of(config, lambda: product(y))


@dataclass(frozen=True)
class Formulation:
    """A call that computes the attention of a case, and what brings its result to float32[B, T, N, H]."""

    name: str
    call: Callable[[], Any]
    unfold: Callable[[Any], np.ndarray]


def formulations(config: Config, case: Case) -> Iterator[Formulation]:
    """List those that the machine can run; the definition in float32 comes first, where it fits into memory."""
    keys = jax.random.split(jax.random.key(0), 5)
    dtype, slots = jnp.dtype(config.dtype), round_up(max(case.live, 1), 1024)
    shape = (LAYERS, case.batch, config.kv_heads, slots, config.width)
    stack = [jax.random.normal(key, shape, dtype) for key in keys[:2]]
    if case.stored:
        stack = [quantize(x, case.stored) for x in stack]
    pos = jnp.broadcast_to(jnp.where(jnp.arange(slots) < case.live, jnp.arange(slots), -1), (case.batch, slots))
    store = Store(*stack, pos)
    q = jax.random.normal(keys[2], (case.batch, case.tokens, config.heads, config.width), dtype) * config.width**-0.5
    fresh = [
        jax.random.normal(key, (case.batch, config.kv_heads, case.tokens, config.width), dtype) for key in keys[3:]
    ]
    q_pos = jnp.broadcast_to(case.live + jnp.arange(case.tokens), (case.batch, case.tokens))
    visible = partial(causal, LayerKind())

    def decode(stored, dtype):
        return dequantize(stored, dtype) if isinstance(stored, Codes) else stored.astype(dtype)

    def layer(q, k, v, store, q_pos):
        folded = fold_heads(q, config.kv_heads)
        return attend(folded, k, v, None, store, jnp.int32(1), q_pos, extent(store), visible, decode)

    def unfold(out):
        return np.asarray(unfold_heads(out, case.tokens), np.float32)

    args = q, *fresh, store, q_pos
    scores = case.batch * config.heads * case.tokens * (slots + case.tokens) * 4
    if scores <= LARGEST:
        exact = (*(x.astype(jnp.float32) for x in args[:3]), *args[3:])
        with dispatch.use("reference"):
            compiled = jax.jit(lambda *args: layer(*args)).lower(*exact).compile()
        yield Formulation(EXACT, partial(compiled, *exact), unfold)
    for name in ("reference", "xla", "pallas"):
        if name == "reference" and scores > LARGEST:
            continue
        try:
            with dispatch.use(name):
                # A function of its own: one that was traced before would keep the choice of that time.
                compiled = jax.jit(lambda *args: layer(*args)).lower(*args).compile()
        except InputError:
            continue
        yield Formulation(name, partial(compiled, *args), unfold)
    if case.stored:
        return
    # The others want the cache and the fresh tokens as one array: [B, S, K, H].
    k, v = (
        jnp.swapaxes(jnp.concatenate([x[1][:, :, : case.live], y], 2), 1, 2) for x, y in zip(stack, fresh, strict=True)
    )
    mask = (jnp.arange(k.shape[1]) <= q_pos[0][:, None])[None, None]
    names = ["xla"] if scores <= LARGEST else []
    for name in [*names, *(["cudnn"] if jax.default_backend() == "gpu" else [])]:
        shown = dict(is_causal=True) if case.live == 0 else dict(mask=mask)
        whole = jax.jit(partial(jax.nn.dot_product_attention, implementation=name, scale=1.0, **shown))
        yield Formulation(f"jax.nn, {name}", partial(whole, q, k, v), lambda out: np.asarray(out, np.float32))
    yield from of_torch(config, case, q, k, v)


def of_torch(config: Config, case: Case, q: Any, k: Any, v: Any) -> Iterator[Formulation]:
    """Give PyTorch's attention on the same numbers, on the same kind of device, where it is installed."""
    try:
        import torch
    except ImportError:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if jax.default_backend() not in (device, "gpu" if device == "cuda" else device):
        return
    q, k, v = (
        torch.from_numpy(np.array(x.astype(jnp.float32))).to(device, getattr(torch, config.dtype)).transpose(1, 2)
        for x in (q, k, v)
    )
    mask = None if case.tokens == 1 else torch.arange(k.shape[2]) <= case.live + torch.arange(case.tokens)[:, None]
    mask = None if mask is None else mask.to(device)
    shown: dict[str, Any] = dict(is_causal=True) if case.live == 0 else dict(attn_mask=mask)

    def run():
        with torch.no_grad():
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0, enable_gqa=True, **shown)
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    yield Formulation("torch", run, lambda out: out.float().transpose(1, 2).cpu().numpy())


def items(config: Config, prompts: Prompts) -> dict[str, Case]:
    """List the cases, by what they are."""
    return {
        f"batch {case.batch}, {case.tokens} tokens after {case.live}"
        + (f" in {case.stored}" if case.stored else ""): case
        for case in config.cases
    }


def measure(case: Case, run: Run) -> list[Row]:
    """Measure a row for each formulation."""
    config, (copy, flops) = run.config, run.ready
    size = 1 if case.stored else jnp.dtype(config.dtype).itemsize
    read = 2 * case.batch * config.kv_heads * (case.live + case.tokens) * config.width * size
    seen = case.tokens * case.live + case.tokens * (case.tokens + 1) // 2
    work = 4 * case.batch * config.heads * seen * config.width
    rows: list[Row] = []
    exact: np.ndarray | None = None
    for one in formulations(config, case):
        out = one.unfold(one.call())
        if one.name == EXACT:
            exact = out
            continue
        error = None if exact is None else float(np.abs(out - exact).max() / np.abs(exact).max())
        seconds = seconds_of(config, one.call)
        achieved = {"of_copy": read / seconds / copy, "of_flops": work / seconds / flops}
        rows.append(dataclasses.asdict(case) | {"formulation": one.name, "seconds": seconds, "error": error} | achieved)
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Tabulate a row for each case and formulation."""

    def given(key: str):
        return lambda row: str(row[key] or "-")

    columns = {
        "rows": given("batch"),
        "tokens": given("tokens"),
        "live": given("live"),
        "stored": given("stored"),
        "formulation": given("formulation"),
        "ms": lambda row: f"{1e3 * row['seconds']:.3f}",
        "of copy bandwidth": "{of_copy:.0%}",
        "of FLOP/s": "{of_flops:.0%}",
        "error": lambda row: "-" if row["error"] is None else f"{row['error']:.1e}",
    }
    return Table.of(rows, columns)


def files(run: Run) -> dict[str, str]:
    """Give results.json: the machine's ceilings, and all figures."""
    copy, flops = run.ready
    machine = {"device": jax.devices()[0].device_kind, "copy_bytes_per_s": copy, "flop_per_s": flops}
    return {"results.json": json.dumps({"machine": machine, "rows": list(run.rows)}, indent=2) + "\n"}


def summary(run: Run) -> str:
    """Name the ceilings that shares are of."""
    copy, flops = run.ready
    device = jax.devices()[0].device_kind
    return f"{device}: a copy moves {copy / 1e9:.0f} GB/s, a product does {flops / 1e12:.2f} TFLOP/s"


KINDS.add(
    "kernels",
    Kind(
        Config,
        items,
        measure,
        table,
        check=Config.check,
        prepare=lambda config, model, prompts: ceilings(config),
        files=files,
        summary=summary,
    ),
)

if __name__ == "__main__":
    script.run("kernels", __doc__)

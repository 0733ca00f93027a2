"""Get at the compiled programs that `generate` runs: the prefill of each width, a decode step, and the loop of steps.

They are the very programs: `runtime.compiled` keeps them, and a later `generate` of these shapes compiles nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import sharding
from jaxinfer.analysis.hlo.loops import Trips
from jaxinfer.analysis.hlo.report import Report, report
from jaxinfer.api import Model
from jaxinfer.cache.store import BLOCK, Cache, Store, extent
from jaxinfer.config import ModelConfig
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState
from jaxinfer.decoding.loop import decode, step
from jaxinfer.errors import InputError
from jaxinfer.host.values import shown, whole
from jaxinfer.kernels.xla import QUERY_BLOCK, WIDE_BLOCK
from jaxinfer.network.transformer import Transformer
from jaxinfer.runtime.compiled import program
from jaxinfer.runtime.generation import STEPS_PER_CALL, Generation
from jaxinfer.runtime.placed import PlacedModel
from jaxinfer.runtime.prefill import Give, prefill
from jaxinfer.runtime.request import Options


@dataclass(frozen=True)
class ModelProgram:
    """A compiled program of a model, with what it is called with."""

    name: str
    compiled: Any  # jax.stages.Compiled
    trips: Trips  # how often its loops run that end when their data say, on these arguments
    seconds: float  # to compile, or to fetch from disk
    function: Callable[..., Any]  # what was compiled, of the arguments
    arguments: tuple[Any, ...]  # arrays; the donated one must be copied before a call
    carry: int  # which argument is donated

    def report(self) -> Report:
        """Say what the compiler made of it."""
        return report(self.compiled, self.name, trips=self.trips)


@dataclass(frozen=True)
class Programs:
    """The programs of one generation. Bytes are of a step: of the weights, and of the cache that is in use."""

    prefill: Mapping[int, ModelProgram]  # by width: the tokens of a row that one call takes
    step: ModelProgram
    loop: ModelProgram
    step_bytes: int


@dataclass(frozen=True)
class _Recording(PlacedModel):
    """A placed model that keeps the programs that read prompts."""

    seen: dict[int, ModelProgram] = field(default_factory=dict)

    def read_chunk(
        self, cache: Cache, tokens: np.ndarray, n: np.ndarray, give: Give, *more: np.ndarray
    ) -> tuple[Cache, Any, float]:
        width = tokens.shape[1]
        if width not in self.seen:
            given, *rest = (self.place(x, "batch", "tokens") for x in (tokens, *more))
            dynamic = (self.params, cache, given, self.place(n.astype(np.int32), "batch"), *rest)
            trips = attention_trips(self.model.cfg, cache, width)
            self.seen[width] = _compiled(
                f"prefill {width}", prefill, (self.model, give), dynamic, 1, self.layout, trips
            )
        return super().read_chunk(cache, tokens, n, give, *more)


def programs(model: Model, prompt: int | str | Sequence[int] = 128, *, batch: int = 1, **options: Any) -> Programs:
    """Compile what `model.generate` of these options runs, after it has read the prompt.

    prompt: a text, token ids, or a number of tokens, which are then random ones, other ones in each row. batch: rows.
    options: those of `generate`: method, policy, sampling, max_new_tokens and so on. The loop is that of 64 steps a
    call, and its trips are those of 64 steps with the cache as it is before the first.

    The paths of operators in a program are those of the code that first compiled it: one that comes from the cache on
    disk may lack names that were given since. Raises InputError for what generate cannot do.
    """
    batch = whole(batch, "batch", 1)
    if isinstance(prompt, bool) or not isinstance(prompt, (int, str, Sequence)):
        raise InputError(f"prompt={shown(prompt)} must be a number of tokens, a text, or a list of token ids")
    if isinstance(prompt, int):
        length = whole(prompt, "prompt", 1, model.config.max_positions)
        rows = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, length)).tolist()
    else:
        rows = [model.encode(prompt)] * batch
    call, placed = Options.of("programs", options).checked(model, rows), model.placed
    recording = _Recording(placed.model, placed.params, placed.layout, placed.extras)
    generation = Generation.of(recording, rows, call)
    network, method = placed.model, call.method
    assert isinstance(generation.placed, _Recording)
    *dynamic, _ = generation.arguments(STEPS_PER_CALL)
    trips = attention_trips(network.cfg, generation.state.cache, method.width)
    one = _compiled("decode step", decode_step, (network, method), tuple(dynamic), 2, placed.layout, trips)
    looping: Trips = {**trips, "jit(decode)/while": STEPS_PER_CALL}
    many = (*dynamic, np.int32(STEPS_PER_CALL))
    loop = _compiled("decode loop", decode, (network, method), many, 2, placed.layout, looping)
    return Programs(dict(generation.placed.seen), one, loop, generation.stats().step_bytes)


def decode_step(model: Transformer, method: DecodeMethod, params: Any, extras: Any, state: DecodeState) -> DecodeState:
    """Take one step: the body of the loop of `decode`."""
    return step(method, Context(params, extras, model), state)


def attention_trips(
    cfg: ModelConfig, cache: Cache, tokens: int, used: int | None = None
) -> dict[str, tuple[float, ...]]:
    """Tell how often the loops over blocks of the cache run in plain XLA's attention, by the path of their layer.

    tokens: of each row in this step. used: slots in use, at most; None: as many as the cache says, which then holds
    arrays. It reads whole blocks of slots, as `kernels.xla.fold_cached` does: a large one as often as it is full, and
    small ones for the rest; many queries take large ones alone.
    """
    found = {}
    for i, segment in enumerate(cfg.segments):
        for j, kind in enumerate(segment.pattern):
            store = cache.stores.get(kind.name)
            if isinstance(store, Store):
                whole = store.pos.shape
                slots = store.pos.sharding.shard_shape(whole)[1]  # devices may share the slots of a row
                page = 1 if store.pages is None else slots // store.pages.shape[1]
                if used is None:
                    parts = [shard.data for shard in store.pos.addressable_shards]
                    filled = max(int(extent(dataclasses.replace(store, pos=part))) for part in parts)
                else:
                    filled = min(-(-used * slots // whole[1]), slots)
                often = _blocks(slots, filled, tokens, page)
                found[f"segment_{i}/layer_{j}/attention/attention/while"] = often
    return found


def _blocks(slots: int, used: int, tokens: int, page: int) -> tuple[float, ...]:
    small, large = (max(min(size, slots), page) for size in (BLOCK, WIDE_BLOCK))
    large = small if slots % large or slots == large else large
    if tokens >= QUERY_BLOCK // 2:
        return (float(-(-used // large)),)
    full = used // large if large > small else 0
    rest = float(-(-used // small) - full * (large // small))
    return (float(full), rest) if large > small else (rest,)


def _compiled(
    name: str,
    fun: Callable[..., Any],
    static: tuple[Any, ...],
    dynamic: tuple[Any, ...],
    carry: int,
    layout: "sharding.Sharding | None",
    trips: Trips,
) -> ModelProgram:
    found, _ = program(fun, static, dynamic, carry, layout)
    kept = tuple(_copied(x) if i == carry else x for i, x in enumerate(dynamic))

    def function(*arguments):
        with sharding.use(layout):
            return fun(*static, *arguments)

    function.__name__ = fun.__name__
    return ModelProgram(name, found.compiled, trips, found.seconds, function, kept, carry)


def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)

"""From prompts to the state before the first step: arrays of prompts, what a model reads of them, and the state."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.cache import CachePolicy
from jaxinfer.cache.contract import check_capacity
from jaxinfer.cache.store import Cache
from jaxinfer.config import ModelConfig
from jaxinfer.decoding.contract import Companion, Context, DecodeMethod, DecodeState
from jaxinfer.decoding.sampling.settings import bucket
from jaxinfer.runtime import compiled
from jaxinfer.runtime.placed import PlacedModel
from jaxinfer.runtime.prefill import hidden, nothing

SMALLEST_BUFFER = 128  # tokens: prompts and limits that fit in the same power of two share a program
STOP_SLOTS = 8


@dataclass(frozen=True)
class Prompts:
    """The prompts of a call, P of them, and where their texts end."""

    tokens: np.ndarray  # i32[P, M]: padded to a power of two
    lengths: np.ndarray  # i32[P]
    ends: np.ndarray  # i32[P]: the most tokens of each text, its prompt among them

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], limits: Sequence[int], cfg: ModelConfig, policy: CachePolicy
    ) -> "Prompts":
        """Pad token ids, with the most new tokens of each. Raises InputError where a row of the policy is too short."""
        lengths = np.array([len(p) for p in prompts], np.int32)
        room = cfg.max_positions + 1
        ends = np.array([min(len(p) + limit, room) for p, limit in zip(prompts, limits, strict=True)], np.int32)
        check_capacity(policy, int(ends.max()) - 1, "the longest prompt and its new tokens need")
        tokens = np.zeros((len(prompts), bucket(int(ends.max()), max(SMALLEST_BUFFER, compiled.buffer()))), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        return cls(tokens, lengths, ends)


@dataclass(frozen=True)
class Reading:
    """The prompts as a model, and those beside it, read them: each becomes the rows of its copies, B in all."""

    cache: Cache
    extras: dict[str, Any]  # those that the method needs; models have read the prompts too
    hidden: list[jax.Array]  # [P, T, D]: chunk by chunk, for a method with `reads_prompt`
    compiling: float  # seconds spent compiling


def read(placed: PlacedModel, method: DecodeMethod, policy: CachePolicy, prompts: Prompts, copies: int) -> Reading:
    """Read prompts but for their last tokens: the prefill, and that of the models that a method needs.

    Raises InputError where the policy has no room, before anything is read.
    """
    given = prompts.tokens, prompts.lengths, prompts.ends, copies
    cache, parts, seconds = placed.read(policy, *given, hidden if method.reads_prompt else nothing)
    extras, more = placed.companions(method.needs, *given)
    jax.block_until_ready((cache, extras))
    return Reading(cache, extras, parts, seconds + more)


def first_state(
    placed: PlacedModel,
    method: DecodeMethod,
    prompts: Prompts,
    cache: Cache,
    per_row: Callable[[np.ndarray], jax.Array],
    seeds: Sequence[int],
    stop: Sequence[int],
    logprobs: bool,
    least: Sequence[int] | None,
    likeliest: int,
) -> DecodeState:
    """Make the state before the first step, but for the settings, the constraint, and what is the method's own.

    per_row: places an array that has a value a prompt, [P, ...], as one that has a value a row, [B, ...].
    """
    tokens, lengths, zeros = prompts.tokens, prompts.lengths, np.zeros(len(prompts.lengths), np.int32)
    slots = np.full(bucket(len(stop), STOP_SLOTS), -1, np.int32)
    slots[: len(stop)] = stop
    halves = np.array([divmod(seed, 1 << 32) for seed in map(int, seeds)], np.uint32).reshape(-1, 2)
    early = best = None
    if least is not None:
        early = per_row(np.minimum(lengths + np.array(least), placed.model.cfg.max_positions + 1).astype(np.int32))
    if likeliest:
        shape = (*tokens.shape, likeliest)
        best = per_row(np.zeros(shape, np.int32)), per_row(np.zeros(shape, np.float32))
    return DecodeState(
        tokens=per_row(tokens),
        n=per_row(lengths),
        limit=per_row(prompts.ends),
        done=per_row(lengths >= prompts.ends),
        stop=placed.place(slots, None),
        cache=cache,
        seeds=placed.place(np.repeat(halves, method.rows_per_prompt, axis=0), "batch", None),
        sampling=None,
        logprobs=per_row(np.zeros(tokens.shape, np.float32)) if logprobs else None,
        aux=None,
        held=None,
        steps=per_row(zeros),
        guessed=per_row(zeros),
        runs=per_row(np.zeros((len(lengths), method.width + 1), np.int32)),
        proposed=per_row(zeros),
        accepted=per_row(zeros),
        least=early,
        likeliest=best,
    )


def with_own(
    method: DecodeMethod, placed: PlacedModel, prompts: Prompts, reading: Reading, state: DecodeState
) -> DecodeState:
    """Add to a state what a method keeps in it: what it makes of the prompts."""
    shape, copies = (*prompts.tokens.shape, placed.model.cfg.d_model), len(state.n) // len(prompts.lengths)

    def own(state: DecodeState, params: Any, extras: dict[str, Any], parts: list[jax.Array]) -> tuple[Any, Any]:
        seen = {}
        if method.reads_prompt:
            joined = _joined(parts, shape, placed.model.dtype)
            seen = {"hidden": jnp.repeat(joined, copies, axis=0) if copies > 1 else joined}
        ctx = Context(params, {**extras, **seen}, placed.model)
        held = method.hold(ctx, state)
        # It may be made of parts of the state, which are donated.
        return jax.tree.map(jnp.copy, method.init(ctx, state)), held

    aux, held = placed.made(own, state, placed.params, reading.extras, reading.hidden)
    return dataclasses.replace(state, aux=aux, held=held)


def without_cache(extra: Any) -> Any:
    """Take the caches out of an extra that is a model: they move with the state."""
    if not isinstance(extra, Companion):
        return extra
    below = {name: without_cache(x) for name, x in extra.extras.items()}
    return dataclasses.replace(extra, cache=None, extras=below)


def _joined(parts: list[jax.Array], shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Join chunks [B, T, D], one after the other, in an array of this shape: cut, or filled up with zeros."""
    whole = jnp.concatenate([jnp.zeros((shape[0], 0, shape[2]), dtype), *parts], axis=1)[:, : shape[1]]
    return jnp.pad(whole, ((0, 0), (0, shape[1] - whole.shape[1]), (0, 0)))

"""Drafting with multi-token-prediction modules (DeepSeek-V3, DeepSeek-AI 2024, section 2.2; network/mtp.py)."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.cache import Dense
from jaxinfer.cache.store import Cache
from jaxinfer.decoding.checks import fits, room_to_guess
from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network import mtp
from jaxinfer.network.transformer import Output

CHUNK = 256  # tokens of a prompt that a module reads at a time


@struct.dataclass
class Trail:
    """The progress of each module: its cache, and what it made of the last token that it committed, [B, D]."""

    caches: tuple[Cache, ...]
    last: tuple[jax.Array, ...]


@dataclass(frozen=True)
class MTP(DecodeMethod):
    """The multi-token-prediction modules of a checkpoint guess a chain, one token each. Lossless, sampled too.

    Module k reads pairs of a token's state and the k-th token after it, so that it can commit all but the last k tokens
    of the text. It reads what comes after them with the guesses of the modules before it, and forgets it.
    """

    width: int = 2  # tokens scored per step: the pending one, and the guesses of the first width - 1 modules

    samples: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("heads",)
    reads_prompt: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        room_to_guess(self)

    def check(self, model: Any, policy: Any) -> None:
        modules = model.extras["heads"]
        if not isinstance(modules, mtp.Modules):
            kind = type(modules).__name__
            raise InputError(f"method MTP needs heads={kind} to be Modules: what jaxinfer.heads.mtp.load(folder) gives")
        if self.width - 1 > len(modules.params):
            raise InputError(f"width={self.width} needs {self.width - 1} modules, and there are {len(modules.params)}")
        if modules.cfg != mtp.of_one_block(model.config):
            raise InputError(f"the modules are for {modules.backbone}, and this model is {model.name}")
        if modules.cfg.layers[0].mixer:
            raise InputError(f"the last layer of {model.name} is recurrent: what a module reads cannot be taken back")
        fits(self, model)

    def hold(self, ctx: Context, state: DecodeState) -> Trail:
        """Give what the modules make of the prompts, all but the tokens that the first step reads."""
        modules, hidden = ctx.extras["heads"], ctx.extras["hidden"]
        batch, slots, _ = hidden.shape
        caches, last = [], []
        for k, module in enumerate(modules.params[: self.width - 1], start=1):
            cache, parts = Dense().init(modules.cfg, batch, slots, ctx.model.dtype), []
            later = jnp.pad(state.tokens[:, k:], ((0, 0), (0, k)))
            count = jnp.maximum(state.n - 1 - k, 0)
            for start in range(0, int(jnp.max(count)), CHUNK):
                part = slice(start, start + CHUNK)
                n = jnp.clip(count - start, 0, CHUNK)
                made, cache = _read(ctx, modules, module, hidden[:, part], later[:, part], cache, n, n, decoding=False)
                parts.append(made)
            hidden = jnp.concatenate([*parts, jnp.zeros_like(hidden)], axis=1)[:, :slots]
            caches.append(cache)
            last.append(_at(hidden, jnp.maximum(count - 1, 0)))
        return Trail(tuple(caches), tuple(last))

    def init(self, ctx: Context, state: DecodeState) -> jax.Array:
        """Give [B, T, D]: the hidden states of tokens, but for the pending one, that the first module has not read."""
        hidden = ctx.extras["hidden"]
        first = _at(hidden, jnp.maximum(state.n - 2, 0))
        return jnp.zeros((len(first), self.width, hidden.shape[2]), hidden.dtype).at[:, 0].set(first)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        modules, trail, hidden = ctx.extras["heads"], state.held, state.aux
        start = trail.caches[0].length  # of the first column of `hidden`
        guesses = jnp.zeros((len(state.n), self.width - 1), jnp.int32)
        caches, last = [], []
        for k, module in enumerate(modules.params[: self.width - 1], start=1):
            cache = trail.caches[k - 1]
            if k > 1:
                # A module begins where it stopped: one token before the module above it, or where a text begins.
                carried = jnp.concatenate([trail.last[k - 2][:, None], hidden], axis=1)
                index = (cache.length - start + 1)[:, None] + jnp.arange(hidden.shape[1] + 1)
                hidden = jnp.take_along_axis(carried, jnp.minimum(index, hidden.shape[1])[:, :, None], axis=1)
                start = cache.length
            place = start[:, None] + k + jnp.arange(hidden.shape[1])
            text = jnp.take_along_axis(state.tokens, jnp.minimum(place, state.tokens.shape[1] - 1), axis=1)
            ahead = place - state.n[:, None]
            drafted = jnp.take_along_axis(guesses, jnp.clip(ahead, 0, self.width - 2), axis=1)
            known = jnp.maximum(state.n - k - start, 0)
            count = jnp.maximum(state.n - 1 - start, 0)
            tokens = jnp.where(ahead < 0, text, drafted)
            hidden, cache = _read(ctx, modules, module, hidden, tokens, cache, count, known, decoding=True)
            guess = mtp.guess_of(ctx.model, ctx.params, module, _at(hidden, jnp.maximum(count - 1, 0)))
            guesses = guesses.at[:, k - 1].set(guess)
            caches.append(cache)
            before = trail.last[k - 1]
            last.append(jnp.where((known > 0)[:, None], _at(hidden, jnp.maximum(known - 1, 0)), before))
        size = jnp.where(state.done | (state.n < 2), 1, jnp.minimum(self.width, state.limit - state.n))
        tokens = jnp.concatenate([state.pending[:, None], guesses], axis=1)
        return Draft(tokens, jnp.maximum(size, 1), held=Trail(tuple(caches), tuple(last)))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        if draft.tokens.shape[1] > self.width:
            raise InputError(f"MTP scores {self.width} tokens a step: it cannot go with a method that scores more")
        accepted, hidden = accept(state, draft, logits), output.hidden
        if accepted.take is not None:
            hidden = jnp.take_along_axis(hidden, accepted.take[:, :, None], axis=1)
        return Verdict(*accepted, aux=hidden)


@functools.partial(jax.jit, static_argnames="decoding")
def _read(
    ctx: Context,
    modules: mtp.Modules,
    module: dict[str, Any],
    hidden: jax.Array,
    tokens: jax.Array,
    cache: Cache,
    n: jax.Array,
    known: jax.Array,
    decoding: bool,
) -> tuple[jax.Array, Cache]:
    """Run a module over n[B] tokens: what it makes of them, and its cache with the first known[B] of them."""
    embedded = mtp.embed(ctx.model, ctx.params, tokens, cache.length[:, None] + jnp.arange(tokens.shape[1]))
    made, fresh = mtp.read(modules.cfg, ctx.model.dtype, module, hidden, embedded, tokens, cache, n, decoding)
    return made, cache.policy.commit(cache, fresh, None, known, None)


def _at(hidden: jax.Array, column: jax.Array) -> jax.Array:
    """Take [B, D]: column[B] of hidden[B, T, D]."""
    return jnp.take_along_axis(hidden, column[:, None, None], axis=1)[:, 0]

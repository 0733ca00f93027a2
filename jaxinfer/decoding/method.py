"""The contract of a decode method: propose a draft, verify it against one forward of the target."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.cache.store import Cache
from jaxinfer.model import Output, Transformer


@struct.dataclass
class Context:
    """What a method may use besides the state: the target model, and named extras such as a draft model."""

    params: Any
    extras: dict[str, Any]
    model: Transformer = struct.field(pytree_node=False)


@struct.dataclass
class DecodeState:
    """Everything that changes from step to step. The newest token of a row is pending: emitted, not yet committed.

    Invariant: cache.length == n - 1 for every row that is not done.
    """

    tokens: jax.Array  # i32[B, M]: the prompt, then what was generated
    n: jax.Array  # i32[B]: valid tokens of each row
    limit: jax.Array  # i32[B]: n at which a row ends
    done: jax.Array  # bool[B]
    stop: jax.Array  # i32[K]: token ids that end a row, padded with -1
    cache: Cache
    seeds: jax.Array  # u32[B]: a row draws from its own seed
    sampling: Any  # SamplingState; None under a method that does not sample
    logprobs: jax.Array | None  # f32[B, M]: log-probability of each generated token, if asked for
    aux: Any  # the method's own state
    steps: jax.Array  # i32[B]: target forwards spent on this row
    proposed: jax.Array  # i32[B]: draft tokens proposed
    accepted: jax.Array  # i32[B]: draft tokens accepted

    @property
    def pending(self) -> jax.Array:
        """i32[B]: the newest token of each row."""
        return jnp.take_along_axis(self.tokens, self.n[:, None] - 1, axis=1)[:, 0]

    @property
    def step_keys(self) -> jax.Array:
        """A key a row for this step. It depends on the row's seed and length alone, not on its neighbours."""
        return jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(self.seeds, self.n)


@struct.dataclass
class Draft:
    """Tokens to score in one forward. Column 0 is the pending token."""

    tokens: jax.Array  # i32[B, T]
    size: jax.Array  # i32[B]: how many of the T columns count
    depth: jax.Array | None = None  # i32[B, T]: positions behind the pending token; None: a chain, 0..T-1
    tree: jax.Array | None = None  # bool[B, T, T]: which token sees which; None: a chain
    proposal: jax.Array | None = None  # float32[B, T, V]: the distribution behind each guess; None: not random


@struct.dataclass
class Verdict:
    """What a step decided: emit the first n tokens of `emit`, and commit the draft columns `take` behind them."""

    emit: jax.Array  # i32[B, E]
    n: jax.Array  # i32[B]
    aux: Any
    take: jax.Array | None = None  # i32[B, E]; None: the first n columns, in order
    surprise: jax.Array | None = None  # f32[B], in bits, from a method that draws one token a step: for mirostat


@runtime_checkable
class DecodeMethod(Protocol):
    """A frozen dataclass, static under jit, in a file of its own."""

    samples: ClassVar[bool]  # whether it takes a Sampling

    @property
    def width(self) -> int:
        """Tokens scored per step, the pending one among them."""

    def init(self, ctx: Context, state: DecodeState) -> Any:
        """The method's own state, from the state behind the prompt."""

    def propose(self, ctx: Context, state: DecodeState) -> Draft: ...

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict: ...

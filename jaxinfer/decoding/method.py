"""The contract of a decode method: propose a draft, verify it against one forward of the target."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.cache.store import Cache
from jaxinfer.decoding.trees import ancestors, depths
from jaxinfer.model import Output, Transformer


@struct.dataclass
class Context:
    """What a method may use besides the state: the target model, and named extras such as a draft model."""

    params: Any
    extras: dict[str, Any]  # those that the method needs; a model is a Companion
    model: Transformer = struct.field(pytree_node=False)


@struct.dataclass
class Companion:
    """A second model beside the target. `hold` finds its cache, filled with the prompts, and keeps it.

    It may have extras of its own, as a draft model that drafts with a third model: its method's `needs` are then called
    `draft.draft` among those of the method that it drafts for.
    """

    params: Any
    cache: Cache | None
    model: Transformer = struct.field(pytree_node=False)
    extras: dict[str, Any] = struct.field(default_factory=dict)


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
    aux: Any  # the method's own state, as verify leaves it
    held: Any  # what only propose changes of it, such as the cache of a draft model
    steps: jax.Array  # i32[B]: target forwards spent on this row
    guessed: jax.Array  # i32[B]: of these, forwards over at least one guess
    runs: jax.Array  # i32[B, width + 1]: how many steps emitted so many tokens
    proposed: jax.Array  # i32[B]: draft tokens proposed
    accepted: jax.Array  # i32[B]: draft tokens accepted
    constraint: Any = None  # Masks (`constraint`): which tokens may come, if not all may

    @property
    def pending(self) -> jax.Array:
        """i32[B]: the newest token of each row."""
        return jnp.take_along_axis(self.tokens, self.n[:, None] - 1, axis=1)[:, 0]

    def keys(self, ahead: jax.Array) -> jax.Array:
        """The keys [B, T] of the places i32[B, T] behind the newest token, of i32[T] that are the same in all rows.

        A key depends on its row's seed and on the place in the text: not on the neighbours, nor on how the text was cut
        into steps.
        """
        places = self.n[:, None] + ahead
        return jax.vmap(lambda seed, row: jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(row))(
            self.seeds, places
        )


@struct.dataclass
class Hypotheses:
    """Texts that a search has come to, and what they are worth. Leaves [B, N, ...]: N of each prompt, best first."""

    tokens: jax.Array  # i32[B, N, M]: the prompt, then what was generated
    n: jax.Array  # i32[B, N]: valid tokens of each; 0: there is none
    score: jax.Array  # f32[B, N]
    logprobs: jax.Array | None  # f32[B, N, M], if asked for


@struct.dataclass
class Draft:
    """Tokens to score in one forward. Column 0 is the pending token."""

    tokens: jax.Array  # i32[B, T]
    size: jax.Array  # i32[B]: how many of the T columns count, from the first
    parent: jax.Array | None = None  # i32[B, T]: the column that each hangs below (`trees`); None: a chain
    proposal: jax.Array | None = None  # float32[B, T, V]: what the guesses below each column were drawn from, if drawn
    drawn: jax.Array | None = None  # bool[B]: the rows whose guesses were drawn; None: all, if there is a proposal
    source: Any = None  # bool[B], from `Fallback`: the rows whose guesses are its first method's, and what that one had
    held: Any = None  # the new `DecodeState.held`
    always: bool = struct.field(pytree_node=False, default=False)  # every step has guesses: no program for one without
    narrower: tuple[int, ...] = struct.field(pytree_node=False, default=(1,))  # see `widths`

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that it may be scored at, rising. The step takes the least that holds every row's size."""
        full = self.tokens.shape[1]
        return (*sorted({width for width in self.narrower if width < full and not self.always}), full)

    @property
    def depth(self) -> jax.Array:
        """i32[B, T], or i32[T] for a chain: how far behind the pending token each column stands."""
        return jnp.arange(self.tokens.shape[1], dtype=jnp.int32) if self.parent is None else depths(self.parent)

    @property
    def tree(self) -> jax.Array | None:
        """bool[B, T, T]: which column sees which; None for a chain."""
        return None if self.parent is None else ancestors(self.parent)

    def first(self, columns: int) -> "Draft":
        """The draft without the columns behind the first few."""
        parent, proposal = (None if x is None else x[:, :columns] for x in (self.parent, self.proposal))
        size = jnp.minimum(self.size, columns)
        return dataclasses.replace(
            self, tokens=self.tokens[:, :columns], size=size, parent=parent, proposal=proposal, always=False
        )


@struct.dataclass
class Verdict:
    """What a step decided: emit the first n tokens of `emit`, and commit the draft columns `take` behind them."""

    emit: jax.Array  # i32[B, E]
    n: jax.Array  # i32[B]
    take: jax.Array | None = None  # i32[B, E]; None: the first n columns, in order
    aux: Any = None
    surprise: jax.Array | None = None  # f32[B], in bits, from a method that draws one token a step: for mirostat
    rows: jax.Array | None = None  # i32[B]: the row whose text and cache each row goes on from; None: its own
    done: jax.Array | None = None  # bool[B]: rows that end with this step, whatever they emit


@runtime_checkable
class DecodeMethod(Protocol):
    """A frozen dataclass, static under jit, in a file of its own.

    One that cannot run on every model or policy has a method `check(model, policy)` that raises InputError. One that
    holds something large has a method `hold(ctx, state)`, which gives the first `DecodeState.held`; `propose` gives the
    next ones. One with `reads_prompt: ClassVar[bool] = True` finds the prompt's hidden states [B, M, D] in
    `ctx.extras["hidden"]` at `init`: those of all tokens but the last, zeros behind. One with `reads_layers:
    ClassVar[bool] = True` finds the hidden states between the layers in `output.layers`. One that scores drafts by less
    than the whole network has a method `forward(ctx, state, draft) -> Output`. One that counts something of its own in
    `aux` has a method `figures(aux)`, arrays [B] by name, for `Stats`.

    One whose drafts are `always` wide, but which makes none in rows that are done and can judge a step without, has
    `can_rest: ClassVar[bool] = True`: it can be switched off (`Adaptive`).

    One with `rows_per_prompt` above 1 holds so many rows of the state for each prompt, one behind the other, which may
    go on from one another (`Verdict.rows`), and has a method `hypotheses(state)` that gives its texts at the end. One
    that may write another text than greedy decoding (or sampling) does has `lossless`, which is then False.

    What `verify` learns of guesses it does not take from rows that are done: there they may be another method's
    (`Fallback`).
    """

    @property
    def samples(self) -> bool:
        """Whether it takes a Sampling."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the extras that it uses."""

    @property
    def width(self) -> int:
        """Tokens scored per step, the pending one among them."""

    def init(self, ctx: Context, state: DecodeState) -> Any:
        """The method's own state, from the state behind the prompt."""

    def propose(self, ctx: Context, state: DecodeState) -> Draft: ...

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        """The draft comes as wide as its sizes need (`Draft.widths`): of width 1 if no row has a guess."""

"""The contract of a decode method: propose a draft, verify it against one forward of the target."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.cache.store import Cache
from jaxinfer.decoding.drafts.trees import ancestors, depths
from jaxinfer.host.defaults import default
from jaxinfer.network.transformer import Output, Transformer


def key_of(seed: jax.Array) -> jax.Array:
    """Give the key of a seed u32[2], high half first; of one below 2^32, that of `jax.random.key`."""
    return jax.random.wrap_key_data(seed, impl="threefry2x32")


@struct.dataclass
class Context:
    """The things that a method may use besides the state: the target model, and named extras such as a draft model."""

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
    seeds: jax.Array  # u32[B, 2]: a row draws from its own seed, 64 bits, the high half first
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
    least: jax.Array | None = None  # i32[B]: n before which no stop token may come; None: no row asks for that
    likeliest: tuple[jax.Array, jax.Array] | None = None
    """i32[B, M, K] and f32[B, M, K]: where asked for, the tokens that were likeliest in each place, and how likely."""

    @property
    def pending(self) -> jax.Array:
        """Give i32[B]: the newest token of each row."""
        return jnp.take_along_axis(self.tokens, self.n[:, None] - 1, axis=1)[:, 0]

    def keys(self, ahead: jax.Array) -> jax.Array:
        """Give the keys [B, T] of the places i32[B, T] after the newest token, of i32[T] that are alike in all rows.

        A key depends on its row's seed and on the place in the text: not on the neighbours, nor on how the text was cut
        into steps.
        """
        places = self.n[:, None] + ahead
        return jax.vmap(lambda seed, row: jax.vmap(lambda n: jax.random.fold_in(key_of(seed), n))(row))(
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
    note: Any = None  # what `propose` tells the method's own `verify` of it
    held: Any = None  # the new `DecodeState.held`
    always: bool = struct.field(pytree_node=False, default=False)  # every step has guesses: no program for one without
    narrower: tuple[int, ...] = struct.field(pytree_node=False, default=(1,))  # see `widths`

    @property
    def widths(self) -> tuple[int, ...]:
        """Give the widths that it may be scored at, rising. The step takes the least that holds every row's size."""
        full = self.tokens.shape[1]
        return (*sorted({width for width in self.narrower if width < full and not self.always}), full)

    @property
    def depth(self) -> jax.Array:
        """Give i32[B, T], or i32[T] for a chain: how far after the pending token each column stands."""
        return jnp.arange(self.tokens.shape[1], dtype=jnp.int32) if self.parent is None else depths(self.parent)

    @property
    def tree(self) -> jax.Array | None:
        """Give bool[B, T, T]: which column sees which; None for a chain."""
        return None if self.parent is None else ancestors(self.parent)

    def first(self, columns: int) -> "Draft":
        """Cut off the columns after the first few."""
        parent, proposal = (None if x is None else x[:, :columns] for x in (self.parent, self.proposal))
        size = jnp.minimum(self.size, columns)
        return dataclasses.replace(
            self, tokens=self.tokens[:, :columns], size=size, parent=parent, proposal=proposal, always=False
        )


@struct.dataclass
class Verdict:
    """The decision of a step: emit the first n tokens of `emit`, and commit the draft columns `take` after them."""

    emit: jax.Array  # i32[B, E]
    n: jax.Array  # i32[B]
    take: jax.Array | None = None  # i32[B, E]; None: the first n columns, in order
    aux: Any = None
    surprise: jax.Array | None = None  # f32[B], in bits, from a method that draws one token a step: for mirostat
    rows: jax.Array | None = None  # i32[B]: the row whose text and cache each row goes on from; None: its own
    done: jax.Array | None = None  # bool[B]: rows that end with this step, whatever they emit


class DecodeMethod(ABC):
    """Tokens that are proposed, and verified against one forward of the target: a frozen dataclass, static under jit.

    A method lies in a file of its own. It has `propose` and `verify`; it declares of the rest what differs from below,
    each member as a class attribute, a field or a property, as suits it. B: rows of the state, M: tokens that a row has
    room for, T: columns of a draft, D: width of the hidden states, V: tokens of the vocabulary.
    """

    @default
    def width(self) -> int:
        """Count the tokens scored per step, the pending one among them."""
        return 1

    @default
    def narrow(self) -> int | None:
        """Count the tokens of a step in which it makes fewer guesses; None: it makes as many in each."""
        return None

    @default
    def samples(self) -> bool:
        """Tell whether it takes a Sampling."""
        return False

    @default
    def lossless(self) -> bool:
        """Tell whether it writes what greedy decoding (or sampling) does, to the token (or in distribution)."""
        return True

    @default
    def needs(self) -> tuple[str, ...]:
        """Name the extras that it finds in `ctx.extras`; `a.b` is the extra b of the extra a, a model."""
        return ()

    @default
    def reads_prompt(self) -> bool:
        """Tell whether `init` and `hold` find the prompt's hidden states [B, M, D] in `ctx.extras["hidden"]`.

        They are those of all tokens but the last, and zeros after them.
        """
        return False

    @default
    def reads_layers(self) -> bool:
        """Tell whether `verify` finds the hidden states between the layers in `output.layers`."""
        return False

    @default
    def holds_back(self) -> bool:
        """Tell whether it sees to it itself that no stop token comes before `state.least` (`stopping.hold_back`)."""
        return False

    @default
    def can_rest(self) -> bool:
        """Tell whether a method whose drafts are `always` wide makes none in rows that are done, and judges a step
        without: it can be switched off.
        """
        return False

    @default
    def unbounded(self) -> tuple[str, ...]:
        """Name those of its fields that are whole numbers and may be larger than the model's context."""
        return ()

    @default
    def paths(self) -> tuple[tuple[int, ...], ...] | None:
        """Give the static tree that it fills (`trees.from_paths`), a field that may be replaced; None: it has none."""
        return None

    @default
    def dynamic(self) -> Any:
        """Give the `growth.Dynamic` that takes the place of `paths`, a field as well; None: none does."""
        return None

    @default
    def rows_per_prompt(self) -> int:
        """Count the rows of the state for each prompt: one after the other, they may go on from one another
        (`Verdict.rows`).
        """
        return 1

    @default
    def hypotheses(self) -> Callable[[DecodeState], Hypotheses] | None:
        """Give the texts of a search, `hypotheses(state)`, N of each prompt; None: its texts are the rows."""
        return None

    @default
    def forward(self) -> Callable[[Context, DecodeState, Draft], Output] | None:
        """Score a draft by less than the whole network, `forward(ctx, state, draft)`; None: by all of it."""
        return None

    def check(self, model: Any, policy: Any) -> None:
        """Raise InputError where it cannot run on a model under a policy."""
        return None

    def hold(self, ctx: Context, state: DecodeState) -> Any:
        """Give the first `DecodeState.held`, something large, after the prompt; `propose` gives the next ones."""
        return None

    def init(self, ctx: Context, state: DecodeState) -> Any:
        """Give the first `DecodeState.aux`, its own state after the prompt."""
        return None

    @abstractmethod
    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        """Guess what comes after the pending token of each row."""

    @abstractmethod
    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        """Judge a draft by the logits float32[B, T, V] after each column.

        It comes as wide as its sizes need (`Draft.widths`): one column wide if no row has a guess. Nothing is learned
        from the guesses of rows that are done: they may be another method's.
        """

    def figures(self, aux: Any) -> dict[str, jax.Array]:
        """Count something of its own, for `Stats.figures`: arrays [B] by name."""
        return {}

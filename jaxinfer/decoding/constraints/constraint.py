"""Constrained decoding: only tokens that a regular expression, or a JSON schema, still allows (Willard & Louf 2023).

A constraint is compiled on the host to an automaton over tokens (`automaton`). On the device it is a table: where a
token leads from each state, or that it may not come. Logits are masked before a method judges them, at every column of
a draft by the state that the guesses on the way to it lead to, so that constraints compose with every method.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.decoding.constraints import automaton
from jaxinfer.decoding.constraints.automaton import DEAD
from jaxinfer.decoding.constraints.grammar.machine import Machine
from jaxinfer.decoding.constraints.grammar.parts import words
from jaxinfer.decoding.constraints.grammar.pattern import machine_of
from jaxinfer.decoding.constraints.grammar.texts import machine_of_schema
from jaxinfer.decoding.constraints.json_schema import read_schema
from jaxinfer.decoding.contract import Draft, Verdict
from jaxinfer.decoding.sampling.settings import bucket
from jaxinfer.errors import InputError, shown

LEAST_STATES, LEAST_CLASSES = 64, 64  # of padded tables: up to these, all constraints share a program


@dataclass(frozen=True, eq=False)
class Constraint:
    """The form of a new text, as an automaton over the tokens of one model. Make it once, and use it often.

    The first argument of `regex`, `json_schema` and `choice` is a `Model`, or its tokenizer. They raise InputError for
    what cannot be read, what no text matches, or none that this vocabulary can write.
    """

    what: str  # it says, for messages
    next: np.ndarray  # i32[S, C]: where the tokens of a class lead from each state, DEAD: they may not come
    classes: np.ndarray  # i32[V]: of each token; class 0 never comes
    stop: tuple[int, ...]  # the tokens that end a text, whose class is the last

    @classmethod
    def regex(cls, model: Any, pattern: str) -> "Constraint":
        """Hold the whole new text to a regular expression, in the syntax of RE2.

        So . is no line feed; \\d, \\w and \\s are ASCII, and \\p{Nd} is every script's digits. There are no
        look-around, references or word boundaries.
        """
        if not isinstance(pattern, str):
            raise InputError(f"regex {shown(pattern)} must be text")
        what = f"regex {shown(pattern)}"
        return _compiled(model, lambda: machine_of(pattern), what)

    @classmethod
    def json_schema(cls, model: Any, schema: Mapping[str, Any] | str | Path) -> "Constraint":
        """Hold the new text to JSON of a schema: a mapping, or the path of a file.

        Properties come in the order of the schema, with at most one space between what JSON allows spaces between, and
        none that the schema does not name unless it speaks of them (`additionalProperties`). What nests in itself does
        so a few times at most. A keyword that could not be kept to is refused.
        """
        schema, what = read_schema(schema)
        return _compiled(model, lambda: machine_of_schema(schema, what), what)

    @classmethod
    def choice(cls, model: Any, texts: Sequence[str]) -> "Constraint":
        """Hold the new text to one of several."""
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise InputError(f"choice {shown(texts)} must be a list of texts, none of them empty")
        for text in texts:
            if not isinstance(text, str) or not text or any(0xD800 <= ord(x) < 0xE000 for x in text):
                raise InputError(f"choice {shown(texts)} must be a list of texts, none of them empty: {shown(text)}")
        return _compiled(model, lambda: words(texts), f"choice {shown(list(texts))}")


def _compiled(model: Any, machine: Callable[[], Machine], what: str) -> Constraint:
    tokenizer = getattr(model, "tokenizer", model)
    if tokenizer is None:
        raise InputError(f"a constraint needs a tokenizer, and model {model.name} has none")
    if not tokenizer.stop_ids:
        raise InputError("a constraint needs a token that ends the text, and this tokenizer has none")
    try:
        made = machine()
        if not made:
            raise InputError("no text matches it")
        if not (made.next != DEAD).any():
            raise InputError("only the empty text matches it")
        vocabulary = list(tokenizer.vocabulary)
        for id in tokenizer.stop_ids:  # if one has a text, it still only ends it
            vocabulary[id] = b""
        (table, final), classes = automaton.over_tokens(automaton.of_machine(made), vocabulary)
        if not len(table):
            raise InputError("no text that it matches can be written with this vocabulary")
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(what) else f"{what}: {message}") from None
    ends = np.where(final, np.arange(len(final)), DEAD).astype(np.int32)
    classes[list(tokenizer.stop_ids)] = table.shape[1]
    return Constraint(what, np.column_stack([table, ends]), classes, tuple(tokenizer.stop_ids))


@struct.dataclass
class Masks:
    """The constraints of a batch, K different ones, and how far each row is."""

    classes: jax.Array  # i32[K, V]
    next: jax.Array  # i32[K, S, C], padded with DEAD
    which: jax.Array  # i32[B]: each row's constraint
    at: jax.Array  # i32[B]: each row's state, after what is emitted

    @classmethod
    def of(
        cls,
        constraints: Constraint | Sequence[Constraint | None] | None,
        batch: int,
        vocab_size: int,
        stop: Sequence[int],
        place: Callable[..., jax.Array],
    ) -> "Masks | None":
        """Give the masks at the start of `batch` rows, each by its constraint; None if no row has one.

        place: puts an array on the device, given the logical names of its axes. Raises InputError for a constraint of
        another model.
        """
        rows = [constraints] * batch if isinstance(constraints, Constraint) or constraints is None else [*constraints]
        if len(rows) != batch:
            raise InputError(f"constraint has {len(rows)} values for {batch} prompts: give one, or one a prompt")
        for one in rows:
            if one is not None and not isinstance(one, Constraint):
                raise InputError(
                    f"constraint={shown(one)} must be a jaxinfer.Constraint, such as Constraint.regex(model, ...)"
                )
        different = list(dict.fromkeys(one or _FREE for one in rows))
        if different == [_FREE]:
            return None
        for one in different:
            if one is not _FREE and one.stop != tuple(stop):
                raise InputError(f"{one.what}: it was made for a model with other stop tokens")
        states, kinds = (max(one.next.shape[axis] for one in different) for axis in (0, 1))
        shape = (bucket(len(different)), bucket(states, LEAST_STATES), bucket(kinds, LEAST_CLASSES))
        table = np.full(shape, DEAD, np.int32)
        classes = np.zeros((len(table), vocab_size), np.int32)
        for i, one in enumerate(different):
            table[i, : one.next.shape[0], : one.next.shape[1]] = one.next
            classes[i, : len(one.classes)] = one.classes[:vocab_size]
        return cls(
            place(classes, None, None),
            place(table, None, None, None),
            place(np.array([different.index(one or _FREE) for one in rows], np.int32), "batch"),
            place(np.zeros(batch, np.int32), "batch"),
        )


_FREE = Constraint("free", np.zeros((1, 1), np.int32), np.zeros(0, np.int32), ())


def advance(masks: Masks | None, at: jax.Array | None, tokens: jax.Array) -> Any:
    """Give the states i32[B, T] that tokens i32[B, T] lead to from states i32[B, T]; DEAD for what may not come."""
    if masks is None or at is None:
        return None
    which = masks.which[:, None]
    after = masks.next[which, jnp.maximum(at, 0), masks.classes[which, tokens]]
    return jnp.where(at < 0, DEAD, after)


def mask(masks: Masks | None, at: jax.Array | None, logits: jax.Array) -> jax.Array:
    """Set tokens that may not come in the states i32[B, T] to -inf in logits[B, T, V].

    A DEAD state is after a guess that cannot be accepted: it leaves the logits as they are.
    """
    if masks is None or at is None:
        return logits
    allowed = (masks.next[masks.which[:, None], jnp.maximum(at, 0)] >= 0) | (at < 0)[:, :, None]
    allowed = jnp.take_along_axis(allowed, masks.classes[masks.which][:, None], axis=2)
    return jnp.where(allowed, logits, -jnp.inf)


def follow(masks: Masks | None, draft: Draft) -> jax.Array | None:
    """Give i32[B, T]: the state after each column of a draft; DEAD below a token that may not come."""
    if masks is None:
        return None
    batch, width = draft.tokens.shape
    root = jnp.broadcast_to(masks.at[:, None], (batch, width))
    parent = jnp.arange(-1, width - 1) if draft.parent is None else draft.parent
    above, is_root = jnp.broadcast_to(jnp.maximum(parent, 0), (batch, width)), jnp.arange(width) == 0

    def deeper(_, at: Any) -> Any:
        """Take one more round: columns no deeper than the number of rounds are right."""
        return jnp.where(is_root, root, advance(masks, jnp.take_along_axis(at, above, axis=1), draft.tokens))

    return jax.lax.fori_loop(0, width - 1 if draft.parent is None else jnp.max(draft.depth), deeper, root)


def state_after(masks: Masks | None, at: jax.Array | None, verdict: Verdict) -> jax.Array | None:
    """Give i32[B]: the state after what a verdict emits, from the states i32[B, T] after the columns of its draft."""
    if masks is None or at is None:
        return None
    at = at if verdict.rows is None else at[verdict.rows]
    last = jnp.maximum(verdict.n - 1, 0)[:, None]
    column = last if verdict.take is None else jnp.take_along_axis(verdict.take, last, axis=1)
    emitted = jnp.take_along_axis(verdict.emit, last, axis=1)
    after = advance(masks, jnp.take_along_axis(at, column, axis=1), emitted)[:, 0]
    return jnp.where(verdict.n > 0, after, masks.at)


def moved(masks: Masks | None, at: jax.Array | None) -> Masks | None:
    """Give the masks with each row in the state i32[B]."""
    return None if masks is None or at is None else dataclasses.replace(masks, at=at)

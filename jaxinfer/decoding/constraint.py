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

from jaxinfer.decoding import automaton
from jaxinfer.decoding.automaton import DEAD
from jaxinfer.decoding.json_schema import pattern_of, read_schema
from jaxinfer.decoding.method import Draft, Verdict
from jaxinfer.decoding.sampling import bucket
from jaxinfer.errors import InputError

LEAST_STATES, LEAST_CLASSES = 64, 64  # of padded tables: up to these, all constraints share a program
_SPECIAL = frozenset(r"\.+*?()|[]{}^$#&-~")


@dataclass(frozen=True, eq=False)
class Constraint:
    """What the new text has to be, as an automaton over the tokens of one model. Make it once, and use it often.

    The first argument of `regex`, `json_schema` and `choice` is a `Model`, or its tokenizer. They raise InputError for
    what cannot be read, what no text matches, or none that this vocabulary can write.
    """

    what: str  # it says, for messages
    next: np.ndarray  # i32[S, C]: where the tokens of a class lead from each state, DEAD: they may not come
    classes: np.ndarray  # i32[V]: of each token; class 0 never comes
    stop: tuple[int, ...]  # the tokens that end a text, whose class is the last

    @classmethod
    def regex(cls, model: Any, pattern: str) -> "Constraint":
        """The whole new text matches a regular expression, in the syntax of Rust's crate `regex`.

        So . is no line break, and \\d every script's digits. There are no look-around, references or word boundaries.
        """
        return _compiled(model, pattern, f"regex {pattern!r}")

    @classmethod
    def json_schema(cls, model: Any, schema: Mapping[str, Any] | str | Path) -> "Constraint":
        """The new text is JSON of a schema: a mapping, or the path of a file.

        Properties come in the order of the schema, with at most one space between what JSON allows spaces between, and
        none that the schema does not name. `oneOf` is read as `anyOf`. A keyword that could not be kept to is refused.
        """
        schema, what = read_schema(schema)
        return _compiled(model, pattern_of(schema, what), what)

    @classmethod
    def choice(cls, model: Any, texts: Sequence[str]) -> "Constraint":
        """The new text is one of several."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise InputError(f"choice {texts!r} must be a list of texts, none of them empty")
        ways = ("".join(f"\\{x}" if x in _SPECIAL else x for x in text) for text in texts)
        return _compiled(model, "|".join(ways), f"choice {list(texts)!r}")


def _compiled(model: Any, pattern: str, what: str) -> Constraint:
    tokenizer = getattr(model, "tokenizer", model)
    if tokenizer is None:
        raise InputError(f"a constraint needs a tokenizer, and model {model.name} has none")
    if not tokenizer.stop_ids:
        raise InputError("a constraint needs a token that ends the text, and this tokenizer has none")
    vocabulary = list(tokenizer.vocabulary)
    for id in tokenizer.stop_ids:  # if one has a text, it still only ends it
        vocabulary[id] = b""
    (table, final), classes = automaton.over_tokens(
        automaton.over_bytes(pattern, what), vocabulary, tokenizer.strips_first_space
    )
    if not len(table):
        raise InputError(f"{what}: no text that it matches can be written with this vocabulary")
    ends = np.where(final, np.arange(len(final)), DEAD).astype(np.int32)
    classes[list(tokenizer.stop_ids)] = table.shape[1]
    return Constraint(what, np.column_stack([table, ends]), classes, tuple(tokenizer.stop_ids))


@struct.dataclass
class Masks:
    """The constraints of a batch, K different ones, and how far each row is."""

    classes: jax.Array  # i32[K, V]
    next: jax.Array  # i32[K, S, C], padded with DEAD
    which: jax.Array  # i32[B]: each row's constraint
    at: jax.Array  # i32[B]: each row's state, behind what is emitted

    @classmethod
    def of(
        cls,
        constraints: Constraint | Sequence[Constraint | None] | None,
        batch: int,
        vocab_size: int,
        stop: Sequence[int],
        place: Callable[..., jax.Array],
    ) -> "Masks | None":
        """The masks at the start of `batch` rows, each by its constraint; None if no row has one.

        place: puts an array on the device, given the logical names of its axes. Raises InputError for a constraint of
        another model.
        """
        rows = [constraints] * batch if isinstance(constraints, Constraint) or constraints is None else [*constraints]
        if len(rows) != batch:
            raise InputError(f"constraint has {len(rows)} values for {batch} prompts: give one, or one a prompt")
        for one in rows:
            if one is not None and not isinstance(one, Constraint):
                raise InputError(
                    f"constraint={one!r} must be a jaxinfer.Constraint, such as Constraint.regex(model, ...)"
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
    """The states i32[B, T] that tokens i32[B, T] lead to from states i32[B, T]; DEAD for what may not come."""
    if masks is None or at is None:
        return None
    which = masks.which[:, None]
    after = masks.next[which, jnp.maximum(at, 0), masks.classes[which, tokens]]
    return jnp.where(at < 0, DEAD, after)


def mask(masks: Masks | None, at: jax.Array | None, logits: jax.Array) -> jax.Array:
    """logits[B, T, V] with -inf for tokens that may not come in the states i32[B, T].

    A DEAD state is behind a guess that cannot be accepted: it leaves the logits as they are.
    """
    if masks is None or at is None:
        return logits
    allowed = (masks.next[masks.which[:, None], jnp.maximum(at, 0)] >= 0) | (at < 0)[:, :, None]
    allowed = jnp.take_along_axis(allowed, masks.classes[masks.which][:, None], axis=2)
    return jnp.where(allowed, logits, -jnp.inf)


def follow(masks: Masks | None, draft: Draft) -> jax.Array | None:
    """i32[B, T]: the state behind each column of a draft; DEAD below a token that may not come."""
    if masks is None:
        return None
    batch, width = draft.tokens.shape
    root = jnp.broadcast_to(masks.at[:, None], (batch, width))
    parent = jnp.arange(-1, width - 1) if draft.parent is None else draft.parent
    above, is_root = jnp.broadcast_to(jnp.maximum(parent, 0), (batch, width)), jnp.arange(width) == 0

    def deeper(_, at: Any) -> Any:
        """Columns no deeper than the number of rounds are right."""
        return jnp.where(is_root, root, advance(masks, jnp.take_along_axis(at, above, axis=1), draft.tokens))

    return jax.lax.fori_loop(0, width - 1 if draft.parent is None else jnp.max(draft.depth), deeper, root)


def behind(masks: Masks | None, at: jax.Array | None, verdict: Verdict) -> jax.Array | None:
    """i32[B]: the state behind what a verdict emits, from the states i32[B, T] behind the columns of its draft."""
    if masks is None or at is None:
        return None
    at = at if verdict.rows is None else at[verdict.rows]
    last = jnp.maximum(verdict.n - 1, 0)[:, None]
    column = last if verdict.take is None else jnp.take_along_axis(verdict.take, last, axis=1)
    emitted = jnp.take_along_axis(verdict.emit, last, axis=1)
    after = advance(masks, jnp.take_along_axis(at, column, axis=1), emitted)[:, 0]
    return jnp.where(verdict.n > 0, after, masks.at)


def moved(masks: Masks | None, at: jax.Array | None) -> Masks | None:
    """The masks with each row in the state i32[B]."""
    return None if masks is None or at is None else dataclasses.replace(masks, at=at)

"""Log-likelihoods of continuations of a context, which is read once for all of its continuations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.analysis.quality.perplexity import bos_of
from jaxinfer.api import Model
from jaxinfer.cache import CachePolicy
from jaxinfer.cache.contract import check_capacity
from jaxinfer.decoding.sampling.settings import bucket
from jaxinfer.errors import InputError
from jaxinfer.network.transformer import Output, Transformer, logits_of

JUDGED = 64  # tokens, over all rows, whose logits are held at once
READ = 2048  # tokens of contexts that are read together
TOGETHER = 32  # continuations that are scored together

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Question:
    """A context and its continuations as token ids."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Likelihood:
    """log p(continuation | context) in nats, and whether greedy decoding would have given it."""

    value: float
    greedy: bool


def pair(model: Model, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Encode a context and its continuation as lm-evaluation-harness does (`models/huggingface.py`, `_encode_pair`).

    Spaces at the end of the context go to the continuation. The two are encoded together, and what comes after as many
    tokens as the context has alone is the continuation. An empty context is BOS. Raises InputError.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    first = bos_of(model)
    before = list(model.tokenizer.encode(context)) if context else []
    whole = list(
        model.tokenizer.encode(context + continuation)
    )  # longer than the model reads, perhaps: it is cut later
    if max([*before, *whole], default=0) >= model.config.vocab_size:
        raise InputError(f"an item holds a token that {model.name} has not: ids go to {model.config.vocab_size - 1}")
    after = whole[len(before) :]
    if not before:
        if first is None:
            raise InputError(f"the context of an item is empty, and {model.name} has no token that begins a text")
        after = after[1:] if after[:1] == [first] else after
    if not after:
        raise InputError(f"a continuation has no tokens of its own after its context: {continuation[:60]!r}")
    return before or [first], after


def likelihoods(
    model: Model,
    questions: Sequence[Question],
    policy: CachePolicy | None = None,
    progress: Progress | None = None,
) -> list[list[Likelihood]]:
    """Compute the log-likelihood of every continuation of every question, in their order.

    A context is read once, and copied for its continuations; those of some questions are scored together, padded to
    lengths of few kinds. A context that is too long for the model loses its beginning. policy: default, the exact one
    that suits the model. `progress(done, total)` is called with questions. Raises InputError where a continuation is
    longer than the context of the model, and for logits that are no numbers.
    """
    limit = model.config.max_positions
    cut = [_cut(one, limit) for one in questions]
    order = sorted(range(len(cut)), key=lambda i: (len(cut[i].continuations), len(cut[i].context)))
    found: list[list[Likelihood]] = [[] for _ in cut]
    done = 0
    for batch in _batches(order, cut):
        for index, scores in zip(batch, _scored(model, [cut[i] for i in batch], policy), strict=True):
            found[index] = scores
        done += len(batch)
        if progress:
            progress(done, len(cut))
    return found


def _cut(question: Question, limit: int) -> Question:
    longest = max(map(len, question.continuations))
    if longest > limit:
        raise InputError(f"a continuation of {longest} tokens is longer than the model's context of {limit}")
    return Question(question.context[-(limit + 1 - longest) :], question.continuations)


def _batches(order: list[int], questions: Sequence[Question]) -> Iterator[list[int]]:
    """Cut questions, in rising length, into batches of as many continuations each."""
    batch: list[int] = []
    for index in order:
        one = questions[index]
        width = len(one.continuations)
        if batch and (
            len(questions[batch[0]].continuations) != width
            or (len(batch) + 1) * width > TOGETHER
            or (len(batch) + 1) * len(one.context) > READ
        ):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _scored(model: Model, questions: list[Question], policy: CachePolicy | None) -> list[list[Likelihood]]:
    placed, policy = model.placed, model.default_policy(policy)
    copies, count = len(questions[0].continuations), len(questions)
    rows = 1 << (count - 1).bit_length()  # shapes of few kinds: the last question stands in for those that are missing
    padded = [*questions, *questions[-1:] * (rows - count)]
    lengths = np.array([len(one.context) for one in padded], np.int32)
    flat = [one for question in padded for one in question.continuations]
    sizes = np.array([len(one) for one in flat], np.int32)
    width = bucket(int(sizes.max()), 8)
    ends = lengths + sizes.reshape(rows, copies).max(axis=1)
    check_capacity(policy, int(ends.max()) - 1, "a context and its continuation need")
    tokens = np.zeros((rows, bucket(int(lengths.max()) + width, 64)), np.int32)
    for row, one in enumerate(padded):
        tokens[row, : len(one.context)] = one.context
    cache, _, _ = placed.read(policy, tokens, lengths, ends, copies)
    given, labels = np.zeros((2, len(flat), width), np.int32)
    for row, continuation in enumerate(flat):
        whole = [padded[row // copies].context[-1], *continuation]
        given[row, : len(continuation)], labels[row, : len(continuation)] = whole[:-1], continuation
    _, judged, _ = placed.read_chunk(cache, given, sizes, judge, labels, sizes)
    nll, greedy = (np.asarray(x) for x in judged)
    if np.isnan(nll).any():
        raise InputError(f"{model.name}: its logits are no numbers: are there NaN or inf in the weights?")
    scores = [
        Likelihood(-float(nll[row, :size].astype(np.float64).sum()), bool(greedy[row, :size].all()))
        for row, size in enumerate(sizes)
    ]
    return [scores[at * copies : (at + 1) * copies] for at in range(count)]


def judge(
    model: Transformer, params: Any, output: Output, labels: jax.Array, n: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Give, after `prefill`, of n[B] labels i32[B, T] their cross-entropy f32[B, T], zero after them, and their rank.

    The second, bool[B, T], tells which are the likeliest token. Logits exist for `JUDGED` tokens at a time.
    """
    batch, length = labels.shape
    block = min(length, 1 << max(0, (JUDGED // batch).bit_length() - 1))  # which divides the length, a power of two
    counted = jnp.arange(length) < n[:, None]

    def one(part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, labels, counted = part
        logits = logits_of(model, params, hidden)
        chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        nll = jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)
        return nll, jnp.argmax(logits, axis=-1) == labels

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(batch, length // block, block, *x.shape[2:]), 1, 0)

    parts = jax.tree.map(split, (output.hidden, labels, counted))
    nll, greedy = jax.lax.map(one, parts)
    return tuple(jnp.moveaxis(x, 0, 1).reshape(batch, length) for x in (nll, greedy))  # type: ignore[return-value]

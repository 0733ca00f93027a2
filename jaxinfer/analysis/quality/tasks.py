"""Accuracy on tasks by log-likelihood, by the rules of lm-evaluation-harness (Gao et al. 2024)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxinfer.analysis.quality.continuations import Likelihood, Progress, Question, likelihoods, pair
from jaxinfer.analysis.quality.items import Choice, Word
from jaxinfer.api import Model
from jaxinfer.cache import CachePolicy
from jaxinfer.errors import InputError


@dataclass(frozen=True)
class ChoiceScore:
    """Shares of the items whose right ending has the largest log-likelihood.

    acc: as it is; acc_norm: over the characters of the ending, which is lm-evaluation-harness's `acc_norm`; acc_bytes:
    over its bytes in UTF-8, which differs where endings hold more than ASCII.
    """

    acc: float
    acc_norm: float
    acc_bytes: float
    items: int
    logprobs: list[list[float]]  # nats, of each ending of each item

    @property
    def stderr(self) -> float:
        """Give the standard error of `acc_norm`: of a mean over that many items."""
        return _stderr(self.acc_norm, self.items)


@dataclass(frozen=True)
class WordScore:
    """The share of the items whose target greedy decoding gives, and exp of its mean negative log-likelihood."""

    acc: float
    perplexity: float  # by item, not by token: lm-evaluation-harness's of LAMBADA
    items: int
    logprobs: list[float]  # nats, of each target

    @property
    def stderr(self) -> float:
        """Give the standard error of `acc`: of a mean over that many items."""
        return _stderr(self.acc, self.items)


def multiple_choice(
    model: Model, items: Sequence[Choice], policy: CachePolicy | None = None, progress: Progress | None = None
) -> ChoiceScore:
    """Score endings by log p(" " + ending | context), as lm-evaluation-harness does HellaSwag, without examples.

    The context is encoded alone, and with the ending (`continuations.pair`). Contexts of the original data set are to
    be made into lm-evaluation-harness's before ("activity: text", brackets of WikiHow taken out); nothing is changed
    here. policy: default, the exact one that suits the model. Raises InputError for no items, a model without a
    tokenizer, and what is longer than its context.
    """
    questions = [_question(model, one.context, one.endings) for one in _some(model, items)]
    found = likelihoods(model, questions, policy, progress)
    values = [[one.value for one in scores] for scores in found]

    def share(divisors: list[list[int]]) -> float:
        right = [
            int(np.argmax(np.array(row) / np.array(by, float))) == item.label
            for row, by, item in zip(values, divisors, items, strict=True)
        ]
        return sum(right) / len(right)

    return ChoiceScore(
        acc=share([[1] * len(item.endings) for item in items]),
        acc_norm=share([[len(ending) for ending in item.endings] for item in items]),
        acc_bytes=share([[len(ending.encode()) for ending in item.endings] for item in items]),
        items=len(items),
        logprobs=values,
    )


def last_word(
    model: Model, items: Sequence[Word], policy: CachePolicy | None = None, progress: Progress | None = None
) -> WordScore:
    """Tell how often greedy decoding goes on from a context with " " + target, as lm-evaluation-harness does LAMBADA.

    Every token of the target must be the likeliest one. policy: see `multiple_choice`. Raises InputError as that does.
    """
    questions = [_question(model, one.context, (one.target,)) for one in _some(model, items)]
    found: list[Likelihood] = [scores[0] for scores in likelihoods(model, questions, policy, progress)]
    mean = -sum(one.value for one in found) / len(found)
    return WordScore(
        acc=sum(one.greedy for one in found) / len(found),
        perplexity=math.exp(mean) if mean < 709.0 else math.inf,
        items=len(found),
        logprobs=[one.value for one in found],
    )


def _some(model: Model, items: Sequence) -> Sequence:
    if not items:
        raise InputError("items: there are none; give at least one")
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, which a task needs")
    return items


def _question(model: Model, context: str, endings: Sequence[str]) -> Question:
    pairs = [pair(model, context, f" {ending}") for ending in endings]
    return Question(tuple(pairs[0][0]), tuple(tuple(after) for _, after in pairs))


def _stderr(share: float, items: int) -> float:
    return math.sqrt(share * (1 - share) / (items - 1)) if items > 1 else math.nan

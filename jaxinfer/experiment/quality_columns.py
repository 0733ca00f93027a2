"""The columns of a row's quality: what a config's `quality` section asks for, measured once a setting.

Perplexity and accuracy follow from model, weights, compression, mesh and policy alone, and the distance from the
reference from the workload too: rows that share these share the figures, whatever their method.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.analysis import quality
from jaxinfer.cache import CachePolicy
from jaxinfer.errors import InputError
from jaxinfer.experiment import compare, registry
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import read_text
from jaxinfer.experiment.specs import QualitySpec

OF_TEXTS = ("kl", "agreement", "kl_tokens")


@dataclass(frozen=True)
class Against:
    """The reference of a row: its model, its finished row, and the token ids of its prompts."""

    model: Any
    row: Mapping[str, Any]
    tokens: Sequence[Sequence[int]]


def check(spec: QualitySpec | None) -> None:
    """Raise InputError for a file that cannot be read as what it is asked for."""
    if spec is None:
        return
    if spec.perplexity:
        read_text(spec.perplexity.text, "quality.perplexity.text")
    for key, read in (("multiple_choice", quality.read_choices), ("last_word", quality.read_words)):
        if task := getattr(spec, key):
            read(task.file, task.limit, f"quality.{key}.file")


def measured(
    spec: QualitySpec,
    row: Mapping[str, Any],
    model: Any,
    against: Against | None,
    rows: Sequence[Mapping[str, Any]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure the quality of a row, or take it from a finished one of the same setting. Raises InputError.

    against: its reference, None where that failed; rows: the finished ones.
    """
    found = _of_model(spec, row, model, rows, say)
    if not spec.divergence or against is None:
        return found
    if alike := _alike(row, rows, with_texts=True):
        return found | {key: alike["quality"][key] for key in OF_TEXTS if key in alike["quality"]}
    prompts = against.row["prompts"]
    texts = [[*given, *one["tokens"]] for given, one in zip(against.tokens, prompts, strict=True)]
    pairs = [(text, len(given)) for text, given in zip(texts, against.tokens, strict=True) if len(text) > len(given)]
    if not pairs:
        return found
    if against.row["name"] == row["name"]:
        return found | {"kl": 0.0, "agreement": 1.0, "kl_tokens": sum(len(text) - start for text, start in pairs)}
    say("comparing distributions with the reference's")
    policies = policy_of(against.row), policy_of(row)
    one = quality.divergence(
        against.model, model, [text for text, _ in pairs], *policies, starts=[start for _, start in pairs]
    )
    return found | {"kl": one.kl, "agreement": one.agreement, "kl_tokens": one.tokens}


def policy_of(row: Mapping[str, Any]) -> CachePolicy | None:
    """Give the cache policy of a row."""
    return registry.policy(row["policy"], ("policy",), Origin("row")) if row["policy"] else None


def _of_model(
    spec: QualitySpec, row: Mapping[str, Any], model: Any, rows: Sequence[Mapping[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    if alike := _alike(row, rows, with_texts=False):
        return {key: value for key, value in alike["quality"].items() if key not in OF_TEXTS}
    policy = policy_of(row)
    found: dict[str, Any] = {}
    if asked := spec.perplexity:
        say("measuring perplexity")
        tokens = model.tokenizer.encode(read_text(asked.text, "quality.perplexity.text"))
        windows = asked.window, asked.max_windows
        try:
            one = quality.perplexity(model, tokens, *windows, policy=policy)
        except InputError as error:
            raise InputError(f"quality.perplexity: {error}") from None
        found |= {"perplexity": min(one.value, 1e300), "perplexity_tokens": one.tokens}
    if task := spec.multiple_choice:
        say("measuring accuracy by multiple choice")
        items = quality.read_choices(task.file, task.limit)
        chosen = quality.multiple_choice(model, items, policy)
        found |= {"acc": chosen.acc, "acc_norm": chosen.acc_norm, "acc_bytes": chosen.acc_bytes}
        found |= {"choice_items": chosen.items}
    if task := spec.last_word:
        say("measuring accuracy on last words")
        words = quality.last_word(model, quality.read_words(task.file, task.limit), policy)
        found |= {"last_word_acc": words.acc, "last_word_perplexity": min(words.perplexity, 1e300)}
        found |= {"last_word_items": words.items}
    return found


def _alike(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], with_texts: bool) -> Mapping[str, Any] | None:
    """Find a finished row of the same setting, which has the same figures."""

    def key(one: Mapping[str, Any]) -> str:
        left_out = (*compare.DECODES, "batch", *(() if with_texts else ("workload",)))
        labels = {axis: label for axis, label in one.get("axes", {}).items() if axis not in left_out}
        return json.dumps([labels, one["policy"], one.get("constraint") if with_texts else None], sort_keys=True)

    usable = (one for one in rows if "quality" in one and (not with_texts or "kl" in one["quality"]))
    return next((one for one in usable if key(one) == key(row)), None)

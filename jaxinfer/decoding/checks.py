"""The checks that parameters of decode methods have in common."""

import dataclasses
from typing import Any

import numpy as np

from jaxinfer.cache import CachePolicy
from jaxinfer.decoding.contract import DecodeMethod
from jaxinfer.errors import InputError, shown
from jaxinfer.host.values import counts

SMALLEST_BLOCK = 128  # of a cache: it may be that large, however short the context


def check_method(method: Any, model: Any, policy: Any) -> None:
    """Raise InputError for what is no decode method, or one that cannot run on a model under a policy."""
    if not isinstance(method, DecodeMethod) or not dataclasses.is_dataclass(method):
        raise InputError(
            f"method={shown(method)} must be a decode method, such as jaxinfer.Lookup(): a frozen dataclass that "
            "extends jaxinfer.DecodeMethod"
        )
    _check_hash(method, "method")
    check_needs(method, model)
    if method.width > 1:
        fits(method, model)
    bounded(method, model)
    method.check(model, policy)


def check_policy(policy: Any, model: Any) -> None:
    """Raise InputError for what is no cache policy, or one with sizes beyond the context of a model."""
    if not isinstance(policy, CachePolicy) or not dataclasses.is_dataclass(policy):
        raise InputError(
            f"policy={shown(policy)} must be a cache policy, such as jaxinfer.Dense(): a frozen dataclass that "
            "extends jaxinfer.CachePolicy"
        )
    _check_hash(policy, "policy")
    most = max(model.config.max_positions, SMALLEST_BLOCK)
    for name, value in counts(policy).items():
        if value > 1 << (most - 1).bit_length() and name not in policy.unbounded:
            raise InputError(f"policy {name}={value} is beyond the context of {model.name}, {most} tokens")


def bounded(method: Any, model: Any) -> None:
    """Raise InputError if a number of a method, or of one within it, is larger than the model's context.

    No size that a method could have makes sense beyond that. Those of its numbers that are no sizes are named in
    `unbounded`.
    """
    most = model.config.max_positions
    free = method.unbounded if isinstance(method, DecodeMethod) else ()
    for name, value in counts(method).items():
        if value > most and name not in free:
            raise InputError(f"{name}={value} is more than the context of {model.name} holds, {most} tokens")
    for field in dataclasses.fields(method):
        if dataclasses.is_dataclass(within := getattr(method, field.name)):
            bounded(within, model)


def _check_hash(thing: Any, what: str) -> None:
    try:
        hash(thing)
    except TypeError as error:
        raise InputError(f"{what}={shown(thing)} must have fields that cannot change, as tuples: {error}") from None


def check_needs(method: Any, model: Any) -> None:
    """Raise InputError unless a model has all that a method needs attached: `a.b` is b, attached to the model a."""
    for name in method.needs:
        holder, called = model, "model"
        for part in name.split("."):
            if part not in getattr(holder, "extras", {}):
                raise InputError(f"method {type(method).__name__} needs {name}: {called}.attach({part}=...)")
            holder, called = holder.extras[part], part


def room_to_guess(method: Any) -> None:
    """Raise InputError unless `width` holds the pending token and at least one guess."""
    if method.width < 2:
        raise InputError(f"width={method.width} must be at least 2: the pending token and one guess")


def ngrams(method: Any) -> None:
    """Raise InputError unless 1 <= `min_ngram` <= `ngram`."""
    if not 1 <= method.min_ngram <= method.ngram:
        raise InputError(f"min_ngram={method.min_ngram} must be between 1 and ngram={method.ngram}")


def fits(method: Any, model: Any) -> None:
    """Raise InputError if one step of a method scores more tokens than the model's context holds."""
    if method.width > model.config.max_positions:
        raise InputError(
            f"method {type(method).__name__} scores {method.width} tokens a step, and the context of {model.name} is "
            f"{model.config.max_positions} tokens"
        )


def takes_trees(method: Any, model: Any) -> None:
    """Raise InputError if a method that drafts trees cannot run on this model."""
    for kind in model.config.kinds:
        if kind.mixer:
            raise InputError(
                f"method {type(method).__name__} drafts trees, and layers of kind {kind.name!r} carry a state from "
                "token to token: take a method that drafts chains, such as Lookup, Jacobi or LLMA"
            )
    fits(method, model)


def check_draft(model: Any) -> None:
    """Raise InputError if the draft model attached to a model cannot draft for it."""
    draft = model.extras["draft"]
    if not hasattr(draft, "config"):
        raise InputError(f"draft={shown(draft)} must be a model, such as jaxinfer.load(...) gives: attach(draft=model)")
    ours, theirs = model.config.vocab_size, draft.config.vocab_size
    if ours != theirs:
        raise InputError(
            f"the draft model {draft.name} has a vocabulary of {theirs} tokens and {model.name} one of {ours}: "
            "they must be the same"
        )
    if any(kind.mixer for kind in draft.config.kinds):
        raise InputError(f"the draft model {draft.name} has recurrent layers: what they read cannot be taken back")


def check_lenience(method: Any) -> None:
    """Raise InputError unless 0 < `lenience` <= 1."""
    if not 0 < method.lenience <= 1:
        raise InputError(f"lenience={method.lenience} must be above 0 and at most 1, which is lossless")


def check_confidence(method: Any) -> None:
    """Raise InputError unless `confidence` is a probability."""
    if not 0 <= method.confidence <= 1:
        raise InputError(f"confidence={method.confidence} must be between 0 and 1")


def classifier_of(model: Any) -> Any:
    """Give the classifier of exits, {"weight": [D], "bias": []}. Raises InputError if what is attached is none."""
    found, width = model.extras["exit_classifier"], model.config.d_model
    shapes = {name: np.shape(x) for name, x in found.items()} if isinstance(found, dict) else None
    if shapes != {"weight": (width,), "bias": ()}:
        raise InputError(
            f"exit_classifier must be {{'weight': [{width}], 'bias': []}} for {model.name}, "
            f"as analysis.exits.train_classifier gives it; got {shapes or type(found).__name__}"
        )
    return found

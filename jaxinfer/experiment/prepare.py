"""The rows of an experiment as the engine takes them, each checked on the loaded model before any is measured."""

import dataclasses
from typing import Any

import numpy as np

from jaxinfer.cache.contract import check_capacity
from jaxinfer.decoding.sampling.settings import SamplingState
from jaxinfer.errors import InputError, shown
from jaxinfer.experiment import attachments, registry
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import Prompt, token_ids
from jaxinfer.experiment.schema import DecodingSpec, PromptSpec, RowSpec
from jaxinfer.runtime.request import Call, Options


@dataclasses.dataclass(frozen=True)
class Ready:
    """A row as the engine takes it: options of `Model.generate`, all but the seeds."""

    row: RowSpec
    options: dict[str, Any]


def prepare(model, row: RowSpec, tokens: list[list[int]], decoding: DecodingSpec) -> Ready:
    """Make a row's options. Raises InputError for whatever keeps it from being measured on these prompts."""
    origin = Origin("row")
    try:
        options = {
            "max_new_tokens": decoding.max_new_tokens,
            "method": registry.method(row.method, ("method",), origin),
            "policy": registry.policy(row.policy, ("policy",), origin) if row.policy else None,
            "sampling": registry.sampling(row.sampling, ("sampling",), origin) if row.sampling else None,
        }
        more = {
            "ignore_eos": decoding.ignore_eos,
            "min_new_tokens": decoding.min_new_tokens,
            "constraint": attachments.constraint(model, row.constraint) if row.constraint else None,
        }
        options |= {name: value for name, value in more.items() if value}
        for batch in batches(tokens, decoding.batch):
            prompts = [tokens[index] for index in batch]
            call = Options(**options, seed=seeds(decoding, batch)).checked(model, prompts)
            call.sampling.check_width(call.method.width)
            SamplingState.of(call.sampling, prompts, model.config.vocab_size)
            _check_room(model, call, prompts)
    except InputError as error:
        raise InputError(f"row {shown(row.name)}: {error}") from None
    return Ready(row, options)


def encoded(
    model: Any, source: str, prompts: tuple[Prompt, ...], spec: PromptSpec, decoding: DecodingSpec
) -> list[list[int]]:
    """Encode every prompt as token ids, with the chat template if that is asked for. source: what names the model.

    Raises InputError for a model without a tokenizer or a chat template, and for a prompt without tokens, with unknown
    ones, or that leaves no room for the new tokens in the model's context.
    """
    if model.tokenizer is None and not spec.synthetic:
        raise InputError(f"model.source: {source!r} has no tokenizer")
    if spec.chat and not spec.synthetic and not model.tokenizer.has_chat:
        raise InputError(f"prompts.chat: {source!r} has no chat template; set prompts.chat=false")
    tokens = []
    for index, prompt in enumerate(prompts):
        tokens.append(token_ids(model, prompt, spec.chat))
        if not 0 <= max(tokens[-1], default=-1) < model.config.vocab_size:
            raise InputError(f"prompts: prompt {index} has no tokens, or some beyond {model.config.vocab_size - 1}")
        length, room = len(tokens[-1]), model.config.max_positions - decoding.max_new_tokens
        if length > room:
            raise InputError(
                f"prompts: prompt {index} has {length} tokens; with decoding.max_new_tokens="
                f"{decoding.max_new_tokens} this model takes at most {max(room, 0)}"
            )
    return tokens


def _check_room(model, call: Call, prompts: list[list[int]]) -> None:
    lengths = np.array([len(prompt) for prompt in prompts])
    ends = np.minimum(lengths + call.limits, model.config.max_positions + 1)
    check_capacity(call.policy, int(ends.max()) - 1, "the longest prompt and its new tokens need")
    padded = np.zeros((len(prompts), lengths.max()), np.int32)
    for index, prompt in enumerate(prompts):
        padded[index, : len(prompt)] = prompt
    model.placed.check_room(call.policy, padded, lengths, ends, call.method.rows_per_prompt)


def seeds(decoding: DecodingSpec, batch: range) -> list[int]:
    """Give the seed of each prompt of a batch: its own, however the prompts are batched."""
    return [decoding.seed + index for index in batch]


def batches(items, size: int) -> list[range]:
    """Cut the indices of `items` into batches of `size`."""
    return [range(start, min(start + size, len(items))) for start in range(0, len(items), size)]

"""Parts of an experiment, checked beyond their types and with every default written out."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jaxinfer
from jaxinfer.errors import InputError
from jaxinfer.experiment import registry
from jaxinfer.experiment.merge import Keys, Origin, dotted, show
from jaxinfer.experiment.specs import ExtraSpec, ModelSpec, PromptSpec, RowSpec
from jaxinfer.experiment.spread import Spread
from jaxinfer.host.files import path_of


def check_model(model: ModelSpec, origin: Origin) -> None:
    """Raise InputError for a model that cannot be; paths are those within it."""
    context = model.context
    if context and not 1 <= context.factor < math.inf:
        raise origin.error(("context", "factor"), f"expected a number from 1, got {show(context.factor)}")
    try:
        Spread.of_model(model)
    except InputError as error:
        raise origin.error(("mesh",), str(error)) from None
    if not model.source.strip():
        raise origin.error(("source",), "is empty")


def check_prompts(prompts: PromptSpec, origin: Origin) -> None:
    """Raise InputError for prompts that cannot be; paths are those within them."""
    for key in ("limit", "per_family"):
        value = getattr(prompts, key)
        if value is not None and value < 1:
            raise origin.error((key,), f"expected a whole number from 1, or null, got {value}")
    if prompts.synthetic:
        for key, low in {"prompt": 1, "generate": 1, "count": 1, "seed": 0}.items():
            value = getattr(prompts.synthetic, key)
            if not low <= value < 2**31:
                raise origin.error(("synthetic", key), f"expected a whole number from {low}, got {value}")


def found(file: str, path: Keys, origin: Origin) -> str:
    """Find a file below the working folder, or else below that of the config. Raises InputError if it is in neither."""
    for candidate in (path_of(file, dotted(path)), Path(origin.file).parent / path_of(file, dotted(path))):
        if candidate.exists():
            return str(candidate)
    raise origin.error(path, f"{show(file)}: no such file")


def check_needs(method: jaxinfer.DecodeMethod, name: str, path: Keys, origin: Origin, extras: Any) -> None:
    """Raise InputError if a method, under the key `method` below a path, needs an extra that the config has not."""
    for need in method.needs:
        given, example = extras, "..."
        for part in reversed(need.split(".")):
            example = f"extras: {{{part}: {example if example == '...' else f'{{{example}}}'}}}"
        for part in need.split("."):
            if part not in given:
                raise origin.error((*path, "method"), f"{name} needs {need}: write '{example}'")
            given = given[part].extras


def fill(row: RowSpec, path: Keys, origin: Origin, extras: Mapping[str, ExtraSpec]) -> RowSpec:
    """Write out every parameter of a row's method, policy and sampling."""
    method = registry.method(row.method, (*path, "method"), origin)
    check_needs(method, row.method["name"], path, origin, extras)
    if row.constraint and sum(x is not None for x in vars(row.constraint).values()) != 1:
        raise origin.error(
            (*path, "constraint"), "write one of regex, json_schema and choice, such as {regex: '[0-9]+'}"
        )
    policy, sampling = row.policy, row.sampling
    if policy is not None:
        policy = registry.as_mapping(registry.policy(policy, (*path, "policy"), origin), policy["name"])
    if sampling is not None:
        if not method.samples:
            raise origin.error((*path, "sampling"), f"method {row.method['name']!r} does not sample; leave it out")
        settings = registry.sampling(sampling, (*path, "sampling"), origin)
        try:
            settings.check_width(method.width)
        except InputError as error:
            raise origin.error((*path, "sampling"), str(error)) from None
        sampling = registry.as_mapping(settings)
    return dataclasses.replace(
        row,
        method=registry.as_mapping(method, row.method["name"]),
        policy=policy,
        sampling=sampling,
    )

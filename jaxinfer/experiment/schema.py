"""An experiment as data: typed, frozen, and checked in full before any model is loaded.

    name: quickstart
    model: {source: smollm2-135m, dtype: float32}
    prompts: {source: quickstart}
    decoding: {max_new_tokens: 64}
    rows:
      - {name: greedy, method: greedy}
      - {name: lookup, method: {name: lookup, width: 8}}

The classes are plain dataclasses; pydantic validates them and is imported only when a config is read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jaxinfer
from jaxinfer.experiment import axes, filled, heading, merge, registry, spread
from jaxinfer.experiment.merge import Keys, Origin, show
from jaxinfer.experiment.specs import ConstraintSpec as ConstraintSpec
from jaxinfer.experiment.specs import ContextSpec as ContextSpec
from jaxinfer.experiment.specs import DecodingSpec as DecodingSpec
from jaxinfer.experiment.specs import Experiment, ExtraSpec, QualitySpec
from jaxinfer.experiment.specs import ModelSpec as ModelSpec
from jaxinfer.experiment.specs import PromptSpec as PromptSpec
from jaxinfer.experiment.specs import RowSpec as RowSpec
from jaxinfer.experiment.typed import check_name, typed


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read, merge and check a config. Every default is filled in, those of methods and policies too.

    Raises InputError, one line that names the file or override, the dotted path, the value and what would be right.
    """
    data, origin = merge.read(path, overrides)
    kind, _, data = heading.take(data, origin, Path(path).parent)
    if kind not in (None, "rows"):
        raise origin.error(("kind",), f"expected 'rows', got {show(kind)}: `experiment.measure` runs the other kinds")
    return validate(spread.into_model(data, Experiment, origin), origin, grids=True)


def validate(data: dict, origin: Origin, also: tuple[str, ...] = (), grids: bool = False) -> Experiment:
    """Read a plain mapping (shorthands expanded) as an Experiment. Raises InputError. also: see `typed`.

    grids: whether axes and quality columns may be asked for, which the kind `rows` alone measures.
    """
    for key in ("axes", "include", "exclude", "quality"):
        if data.get(key) and not grids:
            raise origin.error((key,), "only experiments of the kind 'rows' have this; leave it out")
    config = typed(Experiment, axes.with_model(data), origin, also)
    if "rows" not in data and not config.axes:
        raise origin.error(("rows",), "missing; write a list with one entry for each row of the table")
    _check_values(config, origin)
    rows = tuple(filled.fill(row, ("rows", i), origin, config.extras) for i, row in enumerate(config.rows))
    config = dataclasses.replace(config, rows=rows, quality=quality_of(config.quality, origin))
    return dataclasses.replace(config, **axes.resolved(config, origin)) if config.axes else config


def quality_of(spec: QualitySpec | None, origin: Origin) -> QualitySpec | None:
    """Check what is asked of the quality of rows, and find its files. Raises InputError."""
    if spec is None:
        return None
    below = origin.below(("quality",))
    parts: dict[str, Any] = {}
    for key, file in (("perplexity", "text"), ("multiple_choice", "file"), ("last_word", "file")):
        part = getattr(spec, key)
        if part is None:
            continue
        for name, least in (("window", 2), ("max_windows", 1), ("limit", 1)):
            value = getattr(part, name, None)
            if value is not None and value < least:
                raise below.error((key, name), f"expected a whole number from {least}, got {value}")
        parts[key] = dataclasses.replace(part, **{file: filled.found(getattr(part, file), (key, file), below)})
    return dataclasses.replace(spec, **parts)


def _check_values(config: Experiment, origin: Origin) -> None:
    """Check what types cannot say. Raises InputError."""
    check_name(config.name, origin)
    least = {"max_new_tokens": 1, "min_new_tokens": 0, "batch": 1, "repeats": 1, "seed": 0}
    for key, low in least.items():
        value = getattr(config.decoding, key)
        if not low <= value < (2**63 if key == "seed" else 2**31):
            raise origin.error(("decoding", key), f"expected a whole number from {low}, got {value}")
    if not 0 <= config.decoding.agree < 1:
        why = f"expected a share below 1, such as 0.03, or 0 for all repeats, got {show(config.decoding.agree)}"
        raise origin.error(("decoding", "agree"), why)
    fewest, most = config.decoding.min_new_tokens, config.decoding.max_new_tokens
    if fewest > most:
        raise origin.error(("decoding", "min_new_tokens"), f"expected at most max_new_tokens, {most}, got {fewest}")
    filled.check_prompts(config.prompts, origin.below(("prompts",)))
    filled.check_model(config.model, origin.below(("model",)))
    if not config.output.strip():
        raise origin.error(("output",), "is empty")
    known = {name for method in jaxinfer.METHODS.values() for name in method().needs}
    _check_extras(config.extras, ("extras",), sorted(known), origin)
    if not config.rows and not config.axes:
        raise origin.error(("rows",), "is empty; write at least one row, such as {name: greedy, method: greedy}")
    names = [row.name for row in config.rows]
    for index, name in enumerate(names):
        if not name.strip():
            raise origin.error(("rows", index, "name"), "is empty")
        if config.decoding.ignore_eos and config.rows[index].constraint:
            why = "ends with the model's own stop tokens, which decoding.ignore_eos passes over; leave one of them out"
            raise origin.error(("rows", index, "constraint"), why)
        if name in names[:index]:
            raise origin.error(("rows", index, "name"), f"{name!r} is taken by rows.{names.index(name)}")


def _check_extras(extras: Mapping[str, ExtraSpec], path: Keys, known: list[str], origin: Origin) -> None:
    for name, spec in extras.items():
        if name not in known:
            raise origin.error((*path, name), f"no method uses it{registry.suggest(name, known)}")
        if spec.extras and name != "draft":
            raise origin.error((*path, name, "extras"), "only a draft model has extras of its own; leave it out")
        _check_extras(spec.extras, (*path, name, "extras"), known, origin)

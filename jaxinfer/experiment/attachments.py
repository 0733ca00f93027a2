"""The objects made once a config's model is loaded: extras, `{draft: {source: path/to/checkpoint}}`; constraints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jaxinfer
from jaxinfer import heads
from jaxinfer.compress import keep_layers
from jaxinfer.errors import InputError
from jaxinfer.experiment.prompts import read_text
from jaxinfer.experiment.schema import ConstraintSpec, ExtraSpec
from jaxinfer.heads import mtp


def attach(model: Any, source: str, extras: Mapping[str, ExtraSpec]) -> Any:
    """Attach its extras to the model, loaded from `source`. Raises InputError.

    A draft model from the same source and of the same dtype is not loaded again.
    """
    made = {name: KINDS[name](model, source, spec) for name, spec in extras.items()}
    return model.attach(**made) if made else model


def constraint(model: Any, spec: ConstraintSpec, where: str = "constraint.{key}") -> jaxinfer.Constraint:
    """Make the constraint of a row, whichever of its fields is given. Raises InputError, which names the field."""
    make = jaxinfer.Constraint
    ways: dict[str, Any] = {"regex": make.regex, "json_schema": make.json_schema, "choice": make.choice}
    key = next((key for key in ways if getattr(spec, key) is not None), "choice")
    try:
        return ways[key](model, getattr(spec, key))
    except InputError as error:
        raise InputError(f"{where.format(key=key)}: {error}") from None


def _draft(model: Any, source: str, spec: ExtraSpec) -> Any:
    dtype = spec.dtype or model.dtype
    same = spec.source == source and dtype == model.dtype and spec.weights in (None, model.weights)
    whole = dataclasses.replace(model, extras={}) if same else jaxinfer.load(spec.source, dtype, spec.weights)
    draft = whole if spec.layers is None else keep_layers(whole, spec.layers)
    # The layers of a draft's draft are counted in the model that is loaded, not in what is left of it.
    return dataclasses.replace(draft, extras=attach(whole, spec.source, spec.extras).extras)


def _datastore(model: Any, source: str, spec: ExtraSpec) -> jaxinfer.Datastore:
    return jaxinfer.Datastore.build([read_text(spec.source, "extras.datastore")], model.tokenizer)


def _references(model: Any, source: str, spec: ExtraSpec) -> Any:
    return jaxinfer.references([read_text(spec.source, "extras.references")], model.tokenizer)


def _heads(model: Any, source: str, spec: ExtraSpec) -> heads.Heads | mtp.Modules:
    return mtp.load(spec.source, model) if mtp.is_checkpoint(spec.source) else heads.load(spec.source)


KINDS = {"draft": _draft, "heads": _heads, "datastore": _datastore, "references": _references}
"""By the name of an extra, what makes it from its spec."""

"""What is made of a config once its model is loaded: extras, `{draft: {source: path/to/checkpoint}}`; constraints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jaxinfer
from jaxinfer import heads
from jaxinfer.experiment.schema import ConstraintSpec, ExtraSpec
from jaxinfer.experiment.script import read_text
from jaxinfer.transform import keep_layers


def attach(model: Any, source: str, extras: Mapping[str, ExtraSpec]) -> Any:
    """The model, loaded from `source`, with its extras. Raises InputError.

    A draft model from the same source and of the same dtype is not loaded again.
    """
    made = {name: KINDS[name](model, source, spec) for name, spec in extras.items()}
    return model.attach(**made) if made else model


def constraint(model: Any, spec: ConstraintSpec) -> jaxinfer.Constraint:
    """The constraint of a row, whichever of its fields is given. Raises InputError."""
    if spec.regex is not None:
        return jaxinfer.Constraint.regex(model, spec.regex)
    if spec.json_schema is not None:
        return jaxinfer.Constraint.json_schema(model, spec.json_schema)
    return jaxinfer.Constraint.choice(model, spec.choice or ())


def _draft(model: Any, source: str, spec: ExtraSpec) -> Any:
    dtype = spec.dtype or model.dtype
    same = spec.source == source and dtype == model.dtype and model.weights is None
    draft = dataclasses.replace(model, extras={}) if same else jaxinfer.load(spec.source, dtype=dtype)
    return draft if spec.layers is None else keep_layers(draft, spec.layers)


def _datastore(model: Any, source: str, spec: ExtraSpec) -> jaxinfer.Datastore:
    return jaxinfer.Datastore.build([read_text(spec.source, "extras.datastore")], model.tokenizer)


def _references(model: Any, source: str, spec: ExtraSpec) -> Any:
    return jaxinfer.references([read_text(spec.source, "extras.references")], model.tokenizer)


def _heads(model: Any, source: str, spec: ExtraSpec) -> heads.Heads:
    return heads.load(spec.source)


KINDS = {"draft": _draft, "heads": _heads, "datastore": _datastore, "references": _references}
"""By the name of an extra, what makes it from its spec."""

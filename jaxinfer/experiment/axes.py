"""The axes of a grid: lists of models, weight formats, policies and so on, each entry with a short label.

    axes:
      weights: [null, int8, {name: four bits, weights: int4}]
      policy: [dense, {name: window, capacity: 512}]
      method: [greedy, {name: "lookup 8", method: {name: lookup, width: 8}}]
      workload: [quickstart, {name: long, synthetic: {prompt: 512, generate: 64}}]
      batch: [1, 4]
      mesh: [null, tensor=2, {data: 2, tensor: 4, pad_heads: true}]

An entry is a value, or a mapping {name: label, AXIS: value}; of a model, samplings, a mesh and a workload, whose own
keys include no name, {name: label, ...} too. Resolved entries are {"name": label, AXIS: value}, all defaults written
out, so that a resolved config is a config.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError, shown_text
from jaxinfer.experiment import compressors, filled, registry
from jaxinfer.experiment.merge import Origin, show
from jaxinfer.experiment.registry import suggest
from jaxinfer.experiment.specs import Experiment, ModelSpec, PromptSpec, SyntheticSpec
from jaxinfer.experiment.spread import Spread
from jaxinfer.experiment.typed import typed
from jaxinfer.host.files import path_of

AXES = ("model", "weights", "compress", "mesh", "policy", "workload", "batch", "method", "sampling")
"""From the outermost, which changes last, to the innermost: what is loaded stays as long as it can."""
LONGEST_LABEL = 60

Entry = dict[str, Any]


def with_model(data: dict) -> dict:
    """Give a config without `model` the first of its axis, which stands for all where one is asked for."""
    entries = data["axes"].get("model") if isinstance(data.get("axes"), dict) else None
    if "model" in data or not isinstance(entries, list) or not entries:
        return data
    first = entries[0]
    source = first.get("source", first.get("model")) if isinstance(first, dict) else first
    return data | {"model": source if isinstance(source, dict) else {"source": source}}


def resolved(config: Experiment, origin: Origin) -> dict[str, Any]:
    """Resolve the axes, include and exclude of a config. Raises InputError, one line, for what cannot be."""
    known = [axis for axis in AXES if not (config.rows and axis == "method")]
    below, found = origin.below(("axes",)), {}
    for axis in config.axes:
        if axis not in AXES:
            raise below.error((axis,), f"unknown axis{suggest(axis, AXES)}")
        if axis not in known:
            raise below.error((axis,), "'rows' gives the methods already; leave one of the two out")
    for index, row in enumerate(config.rows):
        for key in ("policy", "sampling"):
            if getattr(row, key) is not None and key in config.axes:
                raise origin.error(("rows", index, key), f"axes.{key} gives it already; leave one of the two out")
    for axis in AXES:
        if axis in config.axes:
            found[axis] = _entries(axis, config.axes[axis], below.below((axis,)), config)
    labels = {axis: [entry["name"] for entry in entries] for axis, entries in found.items()}
    if config.rows:
        labels["rows"] = [row.name for row in config.rows]
    return {
        "axes": found,
        "include": tuple(_match(one, labels, origin.below(("include", i))) for i, one in enumerate(config.include)),
        "exclude": tuple(_match(one, labels, origin.below(("exclude", i))) for i, one in enumerate(config.exclude)),
    }


def _entries(axis: str, given: tuple[Any, ...], origin: Origin, config: Experiment) -> tuple[Entry, ...]:
    if not given:
        raise origin.error((), "is empty; write at least one value, or leave the axis out")
    made: list[Entry] = []
    for index, one in enumerate(given):
        here = origin.below((index,))
        label, value = _split(axis, one, here)
        value = RESOLVE[axis](value, here, config)
        label = _label(axis, value) if label is None else label
        taken = [entry["name"] for entry in made]
        if label in taken:
            other = f"axes.{axis}.{taken.index(label)}"
            raise here.error((), f"the name {show(label)} is taken by {other}; write {{name: another, {axis}: ...}}")
        made.append({"name": label, axis: value})
    return tuple(made)


def _split(axis: str, given: Any, origin: Origin) -> tuple[str | None, Any]:
    """Part an entry into its label, where it has one, and its value."""
    if not isinstance(given, Mapping):
        return None, given
    if axis in given:
        for key in given:
            if key not in ("name", axis):
                raise origin.error((key,), f"unknown key{suggest(str(key), ('name', axis))}")
        label, value = given.get("name"), given[axis]
    elif "name" in given and axis not in ("method", "policy"):  # there it is the name of the class
        label, value = given["name"], {key: x for key, x in given.items() if key != "name"}
    else:
        return None, given
    if label is not None and (not isinstance(label, str) or not label.strip() or len(label) > LONGEST_LABEL):
        raise origin.error(("name",), f"expected a text of 1 to {LONGEST_LABEL} characters, got {show(label)}")
    return label, value


def _match(given: Mapping[str, Any], labels: Mapping[str, list[str]], origin: Origin) -> dict[str, Any]:
    """Check a partial match, {axis: label or labels}. Raises InputError for an axis or a label that there is not."""
    if not given:
        raise origin.error((), "is empty; write labels by their axes, such as {weights: int8}")
    for axis, wanted in given.items():
        if axis not in labels:
            raise origin.error((axis,), f"is no axis of this config{suggest(axis, labels)}")
        for label in wanted if isinstance(wanted, list) else [wanted]:
            if str(label) not in labels[axis]:
                raise origin.error((axis,), f"{show(label)} is no name on this axis{suggest(str(label), labels[axis])}")
    return {axis: [str(x) for x in (x if isinstance(x, list) else [x])] for axis, x in given.items()}


def _model(value: Any, origin: Origin, config: Experiment) -> dict[str, Any]:
    value = {"source": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise origin.error((), f"expected a model's name, a path, or a mapping with a source, got {show(value)}")
    spec = typed(ModelSpec, dict(value), origin)
    filled.check_model(spec, origin)
    return dataclasses.asdict(spec)


def _weights(value: Any, origin: Origin, config: Experiment) -> str | None:
    if value is not None:
        compressors.check_format(value, origin)
    return value


def _method(value: Any, origin: Origin, config: Experiment) -> dict[str, Any]:
    method = registry.method(value, (), origin)
    name = value if isinstance(value, str) else value["name"]
    filled.check_needs(method, name, (), origin, config.extras)
    return registry.as_mapping(method, name)


def _policy(value: Any, origin: Origin, config: Experiment) -> dict[str, Any] | None:
    if value is None:
        return None
    value = {"name": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise origin.error((), f"expected the name of a cache policy, a mapping or null, got {show(value)}")
    return registry.as_mapping(registry.policy(value, (), origin), value["name"])


def _sampling(value: Any, origin: Origin, config: Experiment) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise origin.error((), f"expected a mapping, such as {{temperature: 0.7}}, or null, got {show(value)}")
    return registry.as_mapping(registry.sampling(value, (), origin))


def _mesh(value: Any, origin: Origin, config: Experiment) -> dict[str, Any] | None:
    if value is None:
        return None
    try:
        return Spread.of(value).as_data()
    except InputError as error:
        raise origin.error((), f"{error}; or null, for one device") from None


def _workload(value: Any, origin: Origin, config: Experiment) -> dict[str, Any]:
    value = {"source": value} if isinstance(value, str | list) else value
    if not isinstance(value, Mapping):
        raise origin.error((), f"expected prompts, as the key 'prompts' takes them, got {show(value)}")
    plain = {"chat": config.prompts.chat} if "synthetic" not in value else {}
    spec = typed(PromptSpec, plain | dict(value), origin)
    filled.check_prompts(spec, origin)
    beside = Path(origin.file).parent / str(spec.source)
    if isinstance(spec.source, str) and not path_of(spec.source).exists() and path_of(beside).is_file():
        spec = dataclasses.replace(spec, source=str(beside))
    return dataclasses.asdict(spec)


def _batch(value: Any, origin: Origin, config: Experiment) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise origin.error((), f"expected a whole number from 1, got {show(value)}")
    return value


RESOLVE: dict[str, Callable[[Any, Origin, Experiment], Any]] = {
    "model": _model,
    "weights": _weights,
    "compress": lambda value, origin, config: compressors.checked(value, origin),
    "mesh": _mesh,
    "policy": _policy,
    "workload": _workload,
    "batch": _batch,
    "method": _method,
    "sampling": _sampling,
}
"""By axis, what checks a value and writes out its defaults."""

NONE = {"weights": "full", "compress": "none", "mesh": "one device", "policy": "default", "sampling": "default"}
"""The labels of null."""


def _label(axis: str, value: Any) -> str:
    """Make the label of a value that has none of its own."""
    if value is None:
        return NONE[axis]
    text = LABEL.get(axis, str)(value)
    return shown_text(text, LONGEST_LABEL)


def _of_model(value: Mapping[str, Any]) -> str:
    more = [value[key] for key in ("dtype", "weights") if value[key]]
    more += [f"on {Spread.of(value['mesh'], value['pad_heads'])}"] if value["mesh"] else []
    if context := value["context"]:
        more.append(f"{context['kind']} {context['factor']:g}")
    return " ".join([Path(value["source"]).name or value["source"], *more])


def of_model(spec: ModelSpec) -> str:
    """Name a model of a config without an axis of them: its source, by its last part."""
    return Path(spec.source).name or spec.source


def of_prompts(spec: PromptSpec) -> str:
    """Name prompts: their source, or their lengths where they are synthetic."""
    return _of_workload(dataclasses.asdict(spec))


def _of_class(value: Mapping[str, Any], make: Callable[..., Any]) -> str:
    """Name a method or policy, with the parameters that are not its defaults."""
    name = value["name"]
    usual = registry.as_mapping(make(name, (), Origin("")), name)
    more = [f"{key}={_short(x)}" for key, x in value.items() if json.dumps(x) != json.dumps(usual[key])]
    return " ".join([name, *more])


def _of_workload(value: Mapping[str, Any]) -> str:
    if value["synthetic"]:
        spec = SyntheticSpec(**value["synthetic"])
        seed = f", seed {spec.seed}" if spec.seed else ""
        return f"{spec.count} x {spec.prompt}+{spec.generate}{seed}"
    source = value["source"]
    name = Path(source).stem if isinstance(source, str) else f"{len(source)} prompts"
    more = [f"{key} {value[key]}" for key in ("limit", "per_family") if value[key]]
    return ", ".join([name, *more])


def _short(value: Any) -> str:
    return f"{value['name']}" if isinstance(value, Mapping) and "name" in value else json.dumps(value)


LABEL: dict[str, Callable[[Any], str]] = {
    "model": _of_model,
    "compress": lambda value: " ".join(x if key == "weights" else f"{key}={_short(x)}" for key, x in value.items()),
    "mesh": lambda value: str(Spread.of(value)),
    "policy": lambda value: _of_class(value, lambda name, *more: registry.policy({"name": name}, *more)),
    "method": lambda value: _of_class(value, registry.method),
    "sampling": lambda value: (
        " ".join(f"{key}={_short(x)}" for key, x in value.items() if x not in (None, (), [], {}) and _differs(key, x))
        or "neutral"
    ),
    "workload": _of_workload,
}


def _differs(key: str, value: Any) -> bool:
    usual = registry.as_mapping(registry.sampling({}, (), Origin("")))
    return json.dumps(usual.get(key)) != json.dumps(value)

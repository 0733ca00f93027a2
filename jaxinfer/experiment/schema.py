"""What an experiment is, as data: typed, frozen, and checked in full before any model is loaded.

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
import json
import math
import re
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import jaxinfer
from jaxinfer.errors import InputError
from jaxinfer.experiment import merge, registry
from jaxinfer.experiment.merge import Keys, Origin, show
from jaxinfer.transform.context import KINDS, Kind
from jaxinfer.transform.quantize import Format

Config = TypeVar("Config")

FORBID_UNKNOWN_KEYS = {"extra": "forbid"}  # what pydantic reads from `__pydantic_config__`
_EXAMPLES = {  # for each required key
    "name": "write a name such as 'quickstart'",
    "model": "write 'model: smollm2-135m', or a path to a checkpoint",
    "source": "write a built-in name such as 'smollm2-135m', or a path",
    "rows": "write a list with one entry for each row of the table",
    "method": "write the name of a decode method, such as 'greedy'",
    "kind": f"write one of {', '.join(KINDS)}",
    "factor": "write how many times the context grows, such as 4",
}


@dataclass(frozen=True)
class ContextSpec:
    """A context `factor` times as long as the model's, with scaled positions: see `transform.extend_context`."""

    kind: Kind
    factor: float

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class ModelSpec:
    """Which weights: a built-in name, a file, or a folder, as `jaxinfer.load` takes it; dtype null is its default.

    `weights` is a format that they are rounded to, such as int8 or int4, see `transform.quantize`; null leaves them.
    `context` stretches what the model reads; null leaves it as it is.
    """

    source: str
    dtype: Literal["float32", "bfloat16"] | None = None
    context: ContextSpec | None = None
    weights: Format | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class PromptSpec:
    """Which prompts: the name of a bundled set, a .jsonl file, or the prompts themselves.

    `per_family` takes the first few of each family, `limit` the first of all; `chat` wraps each as one user turn of the
    model's chat template.
    """

    source: str | tuple[str, ...] = "quickstart"
    limit: int | None = None
    per_family: int | None = None
    chat: bool = True

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class DecodingSpec:
    """What is common to all rows: tokens to emit for each prompt, seed, prompts in a batch, timed passes."""

    max_new_tokens: int = 64
    seed: int = 0
    batch: int = 1
    repeats: int = 3

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class ConstraintSpec:
    """What new texts have to be, as `jaxinfer.Constraint` has it; json_schema is the path of a file."""

    regex: str | None = None
    json_schema: str | None = None
    choice: tuple[str, ...] | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class RowSpec:
    """One row of the table. The mappings name a method, a cache policy and sampling parameters; see `registry`."""

    name: str
    method: dict[str, Any]
    policy: dict[str, Any] | None = None  # null: the exact one that suits the model, as in `generate`
    sampling: dict[str, Any] | None = None
    constraint: ConstraintSpec | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class ExtraSpec:
    """What a method uses beside the model: a draft model and its layers (null: all), a folder of heads, a text file."""

    source: str
    dtype: Literal["float32", "bfloat16"] | None = None
    layers: tuple[int, ...] | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Experiment:
    """One experiment: the rows of its table, measured on one model and one set of prompts."""

    name: str
    model: ModelSpec
    rows: tuple[RowSpec, ...]
    prompts: PromptSpec = PromptSpec()
    decoding: DecodingSpec = DecodingSpec()
    extras: dict[str, ExtraSpec] = field(default_factory=dict)  # by the names that methods know them by
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def to_mapping(self) -> dict:
        """Plain dicts, lists and scalars: what `config.yaml` of a run holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read, merge and check a config. Every default is filled in, those of methods and policies too.

    Raises InputError, one line that names the file or override, the dotted path, the value and what would be right.
    """
    data, origin = merge.read(path, overrides)
    return validate(data, origin)


def read_as(cls: type[Config], path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """A config file with a frozen dataclass of its own, as the scripts in experiments/ have. Raises InputError."""
    return _typed(cls, *merge.read(path, overrides))


def validate(data: dict, origin: Origin) -> Experiment:
    """A plain mapping (shorthands already expanded) as an Experiment. Raises InputError."""
    config = _typed(Experiment, data, origin)
    _check_values(config, origin)
    return dataclasses.replace(
        config, rows=tuple(_fill(row, ("rows", i), origin, config.extras) for i, row in enumerate(config.rows))
    )


def _typed(cls: type[Config], data: dict, origin: Origin) -> Config:
    pydantic = registry.import_pydantic()
    # Strict mode takes a dataclass from a mapping only when the mapping comes as JSON.
    document = json.dumps(data, default=str)
    try:
        return pydantic.TypeAdapter(cls).validate_json(document, strict=True)
    except pydantic.ValidationError as caught:
        errors = caught.errors(include_url=False)
    # A mistyped key is both unknown and missing: tell about the unknown one.
    errors.sort(key=lambda error: error["type"] != "unexpected_keyword_argument")
    first = errors[0]
    path = _within(data, first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        raise origin.error(path, f"unknown key{registry.suggest(str(path[-1]), _keys_at(cls, path[:-1]))}")
    if first["type"] == "missing":
        key = first["loc"][-1]
        raise origin.error((*path, key), f"missing; {_EXAMPLES.get(key, 'write a value')}")
    wanted = dict.fromkeys(registry.expected(error) for error in errors if _within(data, error["loc"]) == path)
    raise origin.error(path, f"expected {' or '.join(wanted)}, got {show(first['input'])}")


def _within(data: Any, loc: tuple) -> Keys:
    """pydantic's location without the names of union branches that it puts in between."""
    path: list[str | int] = []
    for step in loc:
        if (isinstance(data, dict) and step in data) or (isinstance(data, list) and isinstance(step, int)):
            path.append(step)
            data = data[step]
    return tuple(path)


def _keys_at(cls: type, path: Keys) -> list[str]:
    """The valid keys of the mapping at `path` below a `cls`."""
    for key in (step for step in path if isinstance(step, str)):
        hint = typing.get_type_hints(cls).get(key, cls)  # a name within a mapping: its class is known already
        classes = [one for one in typing.get_args(hint) if isinstance(one, type) and dataclasses.is_dataclass(one)]
        cls = classes[0] if classes else hint  # of a tuple or a mapping, the class of its entries
    return [field.name for field in dataclasses.fields(cls)]


def _check_values(config: Experiment, origin: Origin) -> None:
    """What types cannot say. Raises InputError."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", config.name):
        raise origin.error(("name",), f"letters, digits and ._- only (it names a folder), got {show(config.name)}")
    least = {"max_new_tokens": 1, "batch": 1, "repeats": 1, "seed": 0}
    for key, low in least.items():
        value = getattr(config.decoding, key)
        if not low <= value < 2**31:
            raise origin.error(("decoding", key), f"expected a whole number from {low}, got {value}")
    for key in ("limit", "per_family"):
        value = getattr(config.prompts, key)
        if value is not None and value < 1:
            raise origin.error(("prompts", key), f"expected a whole number from 1, or null, got {value}")
    context = config.model.context
    if context and not 1 <= context.factor < math.inf:
        raise origin.error(("model", "context", "factor"), f"expected a number from 1, got {show(context.factor)}")
    for path, text in ((("model", "source"), config.model.source), (("output",), config.output)):
        if not text.strip():
            raise origin.error(path, "is empty")
    known = {name for method in jaxinfer.METHODS.values() for name in method().needs}
    for name in config.extras:
        if name not in known:
            raise origin.error(("extras", name), f"no method uses it{registry.suggest(name, sorted(known))}")
    if not config.rows:
        raise origin.error(("rows",), "is empty; write at least one row, such as {name: greedy, method: greedy}")
    names = [row.name for row in config.rows]
    for index, name in enumerate(names):
        if not name.strip():
            raise origin.error(("rows", index, "name"), "is empty")
        if name in names[:index]:
            raise origin.error(("rows", index, "name"), f"{name!r} is taken by rows.{names.index(name)}")


def _fill(row: RowSpec, path: Keys, origin: Origin, extras: Collection[str]) -> RowSpec:
    """The row with every parameter of its method, policy and sampling written out."""
    method = registry.method(row.method, (*path, "method"), origin)
    for name in method.needs:
        if name not in extras:
            raise origin.error((*path, "method"), f"{row.method['name']} needs {name}: write 'extras: {{{name}: ...}}'")
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

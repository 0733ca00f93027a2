"""A grid: every combination of the entries of its axes, in an order in which what is loaded stays loaded.

Each row is compared twice. Its *baseline*, for the speedup, is greedy decoding of the same model, weights, compression,
mesh, policy, workload and batch: the two take turns, so that a machine whose speed drifts changes nothing; a reference
is added where the grid has no such row. Its *reference*, for quality and for what the other axes are worth, is the
first such greedy row of the same model, workload and batch, hence of the first entries of weights, compress, mesh and
policy: whether its outputs are identical, how far its distributions are, and how many times as fast it decodes.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.errors import InputError
from jaxinfer.experiment import compare, specs
from jaxinfer.experiment.specs import ConstraintSpec, DecodingSpec, Experiment, ModelSpec, PromptSpec, RowSpec

MOST = 10_000  # rows of a grid
OUTER = ("model", "weights", "compress", "mesh", "policy", "workload", "batch")
SHOWN = (*OUTER, "rows", "method", "sampling")  # the order of labels in a row's name, and of columns


@dataclass(frozen=True)
class Point:
    """One row of a grid. labels: by axis, the name of its entry; the name of the row joins them."""

    row: RowSpec
    labels: Mapping[str, str]
    model: ModelSpec
    compress: Mapping[str, Any] | None
    mesh: Mapping[str, Any] | None
    workload: PromptSpec
    decoding: DecodingSpec

    @property
    def name(self) -> str:
        """Give the name of the row."""
        return self.row.name


def points(config: Experiment) -> list[Point]:
    """Give the rows of a grid in the order in which they are measured, references included.

    Raises InputError if include and exclude leave none, or too many are left.
    """
    axes: dict[str, Sequence[Any]] = {axis: config.axes[axis] for axis in OUTER if axis in config.axes}
    inner = _rows(config)
    size = len(inner)
    for entries in axes.values():
        size *= len(entries)
    if size > MOST:
        raise InputError(f"axes: make {size:,} rows, and at most {MOST:,} are measured; leave some entries out")
    found: list[Point] = []
    for entries in itertools.product(*axes.values()):
        outer = dict(zip(axes, entries, strict=True))
        labels = {axis: entry["name"] for axis, entry in outer.items()}
        kept = [(row, own) for row, own in inner if _wanted(labels | own, config)]
        values = {axis: entry[axis] for axis, entry in outer.items()}
        policy = values.get("policy")
        rows = [(dataclasses.replace(row, policy=policy) if policy else row, own) for row, own in kept]
        planned = greedy_first(plan([row for row, _ in rows]))
        by_name = {row.name: own for row, own in rows}
        found += [_point(config, row, labels, by_name.get(row.name), values) for row in planned]
    if not found:
        raise InputError("include, exclude: leave no row of the grid")
    return found


def _rows(config: Experiment) -> list[tuple[RowSpec, dict[str, str]]]:
    """Give the methods and samplings as rows, each with its labels."""
    if config.rows:
        named = [(row, {"rows": row.name}) for row in config.rows]
    else:
        entries = config.axes.get("method", ({"name": "greedy", "method": {"name": "greedy"}},))
        is_axis = "method" in config.axes
        named = [
            (RowSpec(entry["name"], entry["method"]), {"method": entry["name"]} if is_axis else {}) for entry in entries
        ]
    samplings = config.axes.get("sampling")
    if samplings is None:
        return named
    return [
        (
            dataclasses.replace(row, sampling=entry["sampling"], name=f"{row.name} / {entry['name']}"),
            own | {"sampling": entry["name"]},
        )
        for row, own in named
        for entry in samplings
    ]


def _wanted(labels: Mapping[str, str], config: Experiment) -> bool:
    def matches(given: Mapping[str, list[str]]) -> bool:
        return all(labels.get(axis) in wanted for axis, wanted in given.items())

    return (not config.include or any(map(matches, config.include))) and not any(map(matches, config.exclude))


def _point(
    config: Experiment, row: RowSpec, outer: dict[str, str], own: dict[str, str] | None, values: dict[str, Any]
) -> Point:
    last = "rows" if config.rows else "method"
    labels = outer | ({last: row.name} if own is None else own)
    texts = [f"batch {text}" if axis == "batch" and text.isdecimal() else text for axis, text in in_order(labels)]
    model = specs.model_from(values["model"]) if "model" in values else config.model
    if values.get("weights"):
        model = dataclasses.replace(model, weights=values["weights"])
    workload = specs.prompts_from(values["workload"]) if "workload" in values else config.prompts
    decoding = decoding_of(config.decoding, workload)
    if "batch" in values:
        decoding = dataclasses.replace(decoding, batch=values["batch"])
    name = " / ".join(texts) or row.name
    row = dataclasses.replace(row, name=name)
    return Point(row, labels, model, values.get("compress"), values.get("mesh"), workload, decoding)


def in_order(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """Give labels in the order in which names and tables have them: the batch last."""
    order = [*(axis for axis in SHOWN if axis != "batch"), "batch"]
    return [(axis, labels[axis]) for axis in order if axis in labels]


def decoding_of(decoding: DecodingSpec, prompts: PromptSpec) -> DecodingSpec:
    """Give what decodes these prompts: synthetic ones say themselves how many tokens come, no fewer."""
    if prompts.synthetic is None:
        return decoding
    return dataclasses.replace(decoding, max_new_tokens=prompts.synthetic.generate, min_new_tokens=0, ignore_eos=True)


def plan(rows: Sequence[RowSpec]) -> list[RowSpec]:
    """Plan the rows of one setting: these, after a greedy reference for each that has none to compare with."""
    plain = [dataclasses.asdict(row) for row in rows]
    keys = {compare.baseline_key(row) for row in plain if compare.is_baseline(row)}
    references: list[RowSpec] = []
    for row in plain:
        key = compare.baseline_key(row)
        if key in keys:
            continue
        keys.add(key)
        method, sampling = {"name": "greedy"}, None
        if not compare.is_sampled(row) and (penalties := compare.penalties(row)):
            method, sampling = {"name": "sample"}, {"temperature": 0.0, **penalties}
        name = f"{compare.REFERENCE} {len(references) + 1}" if references else compare.REFERENCE
        constraint = row["constraint"] and ConstraintSpec(**row["constraint"])
        references.append(RowSpec(name, method, row["policy"], sampling, constraint))
    return [*references, *rows]


def greedy_first(rows: Sequence[RowSpec]) -> list[RowSpec]:
    """Put the greedy rows before the others, whose quality is measured against them."""
    return sorted(rows, key=lambda row: not compare.is_baseline(dataclasses.asdict(row)))


def record(point: Point) -> dict[str, Any]:
    """Give a point as the comparisons of finished rows know it."""
    return {**dataclasses.asdict(point.row), "axes": dict(point.labels)}


def baseline(point: Point, among: Sequence[Point]) -> Point:
    """Give the greedy row that a point takes turns with; for that one itself, the first such."""
    key = compare.baseline_key(record(point))
    plain = ((other, record(other)) for other in among)
    return next(other for other, found in plain if compare.is_baseline(found) and compare.baseline_key(found) == key)


def reference(point: Point, among: Sequence[Point]) -> Point | None:
    """Give the greedy row that a point's quality is measured against."""
    found = compare.reference(record(point), [record(other) for other in among])
    return None if found is None else next(other for other in among if other.name == found["name"])

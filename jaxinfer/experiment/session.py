"""The models and prompts that a grid has loaded: those of the row under way, and of its reference."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.checkpoint.presets import shape_of
from jaxinfer.checkpoint.sources import locate
from jaxinfer.errors import InputError
from jaxinfer.experiment import attachments, compressors, grid, runner, specs
from jaxinfer.experiment.grid import Point
from jaxinfer.experiment.kind import Prompts
from jaxinfer.experiment.prepare import Ready, encoded, prepare
from jaxinfer.experiment.progress import load_model
from jaxinfer.experiment.prompts import load_prompts
from jaxinfer.experiment.specs import Experiment
from jaxinfer.experiment.spread import Spread
from jaxinfer.sharding.meshes import make_virtual


@dataclass(frozen=True)
class Stand:
    """A point, ready to be measured: its model, prompts and their token ids, the row and the baseline as options."""

    model: Any
    prompts: Prompts
    tokens: list[list[int]]
    row: Ready
    baseline: Ready


@dataclass(frozen=True)
class Session:
    """The points of a grid, the prompts of each workload, and the models that are loaded, of which two are kept."""

    config: Experiment
    points: Sequence[Point]
    workloads: Mapping[str, Prompts]
    loaded: dict[str, Any] = field(default_factory=dict)

    def stand(self, point: Point) -> Stand:
        """Make a point ready. Raises InputError for whatever keeps it from being measured."""
        model, prompts = self.model(point), self.prompts(point)
        tokens = encoded(model, point.model.source, prompts, point.workload, point.decoding)
        rows = (point, grid.baseline(point, self.points))
        row, base = (prepare(model, one.row, tokens, point.decoding) for one in rows)
        return Stand(model, prompts, tokens, row, base)

    def prompts(self, point: Point) -> Prompts:
        """Give the prompts of a point."""
        return self.workloads[point.labels.get("workload", "")]

    def model(self, point: Point) -> Any:
        """Load the model of a point, or give it again. Others are let go, but for that of the point's reference."""
        wanted, first = key(point), grid.reference(point, self.points)
        if wanted not in self.loaded:
            keep = key(first) if first is not None and self.config.quality else None
            for other in [one for one in self.loaded if one != keep]:
                del self.loaded[other]
            self.loaded[wanted] = _loaded(point, self.config)
        return self.loaded[wanted]


def opened(config: Experiment, prompts: Prompts) -> Session:
    """Open a session: every point and every prompt, no model yet. Raises InputError."""
    workloads = {"": prompts}
    for entry in config.axes.get("workload", ()):
        workloads[entry["name"]] = load_prompts(specs.prompts_from(entry["workload"]))
    return Session(config, grid.points(config), workloads)


def check(config: Experiment) -> None:
    """Raise InputError for a model or a mesh of an axis that there is not, before anything is loaded."""
    for index, entry in enumerate(config.axes.get("model", ())):
        source = entry["model"]["source"]
        try:
            if not shape_of(source):
                locate(source)
        except InputError as error:
            raise InputError(f"axes.model.{index}: {error}") from None
    meshes = [Spread.of(entry["mesh"]) if entry["mesh"] else None for entry in config.axes.get("mesh", ())]
    make_virtual(max((one.shape.size for one in meshes if one), default=1))
    for index, one in enumerate(meshes):
        try:
            if one:
                one.mesh()
        except InputError as error:
            raise InputError(f"axes.mesh.{index}: {error}") from None


def texts(config: Experiment, prompts: Prompts) -> Callable[[Mapping[str, Any]], list[str]]:
    """Give what tells of a finished row which prompts it should have."""
    workloads = opened(config, prompts).workloads
    return lambda row: [one.text for one in workloads.get(row.get("axes", {}).get("workload", ""), ())]


def key(point: Point) -> str:
    """Name what is loaded for a point."""
    return json.dumps([dataclasses.asdict(point.model), point.compress, point.mesh], sort_keys=True, default=str)


def _loaded(point: Point, config: Experiment) -> Any:
    spec, given = point.model, dict(point.compress or {})
    weights = spec.weights
    if weights is None and list(given) == ["weights"]:  # rounded one by one, while they are read
        weights = given.pop("weights")
    model = load_model(spec.source, spec.dtype, weights, tokenizer=spec.tokenizer)
    model = compressors.apply(model, given)
    model = attachments.attach(model, spec.source, config.extras)
    if "mesh" in config.axes:
        spec = dataclasses.replace(spec, mesh=point.mesh, pad_heads=False)
    return runner.extended(model, spec)

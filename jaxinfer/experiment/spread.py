"""The mesh that a model is spread over, as commands and configs ask for it.

jaxinfer generate TEXT --mesh data=2,tensor=4 --pad-heads
mesh: data=2,tensor=4                               # at the top of a config of any kind that has a model
model: {source: smollm2-135m, mesh: {tensor: 4, pad_heads: true}}
axes: {mesh: [null, tensor=2, {tensor: 4, pad_heads: true}]}
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from jaxinfer.errors import InputError, shown
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.specs import ModelSpec
from jaxinfer.sharding import MeshShape, Rules
from jaxinfer.sharding.meshes import make_virtual

PAD = "pad_heads"


@dataclass(frozen=True)
class Spread:
    """A mesh to lay a model on, by the rules of its axes. pad_heads: see `sharding.Rules`."""

    shape: MeshShape
    pad_heads: bool = False

    @classmethod
    def of(cls, given: Any, pad_heads: bool = False) -> "Spread":
        """Read "data=2,tensor=4", or {data: 2, tensor: 4, pad_heads: true}. Raises InputError for anything else."""
        if isinstance(given, Mapping) and PAD in given:
            pad = given[PAD]
            if not isinstance(pad, bool):
                raise InputError(f"mesh: {PAD}={shown(pad)} must be true or false")
            given, pad_heads = {axis: size for axis, size in given.items() if axis != PAD}, pad_heads or pad
        return cls(MeshShape.of(given), pad_heads)

    @classmethod
    def of_model(cls, spec: ModelSpec) -> "Spread | None":
        """Give what the spec of a model asks for. Raises InputError."""
        if spec.mesh is None:
            if spec.pad_heads:
                raise InputError(f"model.{PAD}: goes with model.mesh, which says what heads are split over")
            return None
        return cls.of(spec.mesh, spec.pad_heads)

    def as_data(self) -> dict[str, Any]:
        """Give it as plain data, which `of` reads again."""
        return self.shape.shape | ({PAD: True} if self.pad_heads else {})

    def mesh(self) -> Mesh:
        """Lay the mesh on the first devices, on a CPU on virtual ones. Raises InputError where there are too few."""
        make_virtual(self.shape.size)
        return self.shape.on()

    @property
    def rules(self) -> Rules:
        """Give the rules of the mesh's axes."""
        return dataclasses.replace(self.shape.rules, pad_heads=self.pad_heads)

    def over(self, model: Any) -> Any:
        """Spread a model over the mesh. Raises InputError."""
        return model.shard(self.mesh(), self.rules)

    def __str__(self) -> str:
        return f"{self.shape},{PAD}" if self.pad_heads else str(self.shape)


def of_options(mesh: str | None, pad_heads: bool) -> Spread | None:
    """Read `--mesh` and `--pad-heads`. Raises InputError, for devices that are not there too."""
    if mesh is None:
        if pad_heads:
            raise InputError("--pad-heads: goes with --mesh, which says what heads are split over")
        return None
    try:
        found = Spread.of(mesh, pad_heads)
        found.mesh()
    except InputError as error:
        raise InputError(f"--mesh: {error}") from None
    return found


def check(spec: ModelSpec | None) -> None:
    """Raise InputError for a mesh that cannot be, or has more devices than there are: before a model is loaded."""
    if spec is not None and (found := Spread.of_model(spec)):
        found.mesh()


def into_model(data: dict[str, Any], config: type, origin: Origin) -> dict[str, Any]:
    """Move `mesh` and `pad_heads` from the top of a config to its model; in a grid, to the axis of meshes.

    config: the class of its kind; where that has no model, or a field `mesh` of its own, nothing is moved. Raises
    InputError for a mesh that cannot be, and where it is given twice.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    if "model" not in fields or "mesh" in fields or not {"mesh", PAD} & set(data):
        return data
    given, rest = data.get("mesh"), {key: value for key, value in data.items() if key not in ("mesh", PAD)}
    if given is None:
        if data.get(PAD):
            raise origin.error((PAD,), "goes with 'mesh', which says what heads are split over")
        return rest
    pad = data.get(PAD, False)
    if not isinstance(pad, bool):
        raise origin.error((PAD,), f"must be true or false, got {shown(pad)}")
    try:
        found = Spread.of(given, pad).as_data()
    except InputError as error:
        raise origin.error(("mesh",), str(error)) from None
    axes, model = rest.get("axes"), rest.get("model")
    if isinstance(axes, dict) and axes:
        if "mesh" in axes:
            raise origin.error(("mesh",), "axes.mesh gives it already; leave one of the two out")
        return rest | {"axes": {**axes, "mesh": [found]}}
    model = {"source": model} if isinstance(model, str) else model
    if not isinstance(model, dict):
        return rest
    if model.get("mesh") is not None:
        raise origin.error(("mesh",), "model.mesh gives it already; leave one of the two out")
    return rest | {"model": {**model, "mesh": found}}

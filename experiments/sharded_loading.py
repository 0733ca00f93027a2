"""Measure what one process of a large machine reads of a checkpoint, and the memory that it takes.

    jaxinfer run configs/sharded_loading.yaml
    jaxinfer run configs/sharded_loading.yaml shape=llama-2-70b devices=8 "mesh=[tensor=8]"

A Hugging Face folder of that shape is written to a temporary folder, in bfloat16, as files with holes: they have the
size that the model has, and take next to no room on the disk. Then the shards of the first devices of each mesh are
read, as the process that these belong to would read them. The peak is that of the process's resident memory over what
it is before, as Linux counts it (VmHWM); the shards themselves are in it. Numbers are all zero: the times say how fast
holes are read, not how fast a disk is.
"""

import itertools
import json
import os
import platform
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import jaxinfer
from jaxinfer.checkpoint import mapped
from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.families import by_name
from jaxinfer.checkpoint.loading import read_config, read_shards
from jaxinfer.checkpoint.mapping import slots
from jaxinfer.checkpoint.presets import preset
from jaxinfer.checkpoint.published import PUBLISHED
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.network.transformer import abstract_params
from jaxinfer.sharding import MeshShape
from jaxinfer.weights.formats import FORMATS

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
BYTES = 2  # of a number in bfloat16
FILE = 10 << 30  # bytes of a file of weights, about


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/sharded_loading.yaml."""

    name: str
    shape: str = "llama-3-70b"
    mesh: tuple[str, ...] = ("fsdp=8,tensor=8", "tensor=8")
    weights: tuple[str | None, ...] = (None,)
    devices: int = 1  # of the process: the first ones
    layers: int | None = None  # fewer than the shape has, to try it
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        if not CLEAR.exists():
            raise InputError("sharded_loading: peaks are measured by /proc/self/clear_refs, which only Linux has")
        preset(self.shape)
        if self.shape not in PUBLISHED:
            raise InputError(f"shape: {self.shape} must be written as it is listed: {', '.join(PUBLISHED)}")
        for mesh in self.mesh:
            if not 1 <= self.devices <= MeshShape.of(mesh).size:
                raise InputError(f"devices={self.devices} must be 1 to the {MeshShape.of(mesh).size} of mesh {mesh}")
        for name in self.weights:
            if name is not None:
                FORMATS.find(name, "weights")
        if self.layers is not None and self.layers < 1:
            raise InputError(f"layers={self.layers} must be 1 or above")


def write_sparse(folder: Path, shape: str, layers: int | None = None) -> int:
    """Write a Hugging Face folder of that shape whose weights are holes: zeros that take no room. Return its bytes."""
    fields = dict(PUBLISHED[shape].fields)
    if layers is not None:
        fields["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(fields))
    config = preset(shape)
    if layers is not None:
        config = config.replace(segments=tuple(_cut(config.segments, layers)))
    family, leaves = by_name(config.family), flatten(abstract_params(config, "bfloat16"))
    sizes = {
        name: parts[0].file_shape(leaves[parts[0].path].shape)
        for name, parts in slots(family, config, "hf", set(leaves)).items()
    }
    files: list[dict[str, Any]] = [{}]
    end = 0
    for name, lengths in sizes.items():
        n_bytes = BYTES * _product(lengths)
        if end and end + n_bytes > FILE:
            files.append({})
            end = 0
        files[-1][name] = {"dtype": "BF16", "shape": list(lengths), "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    where, total = {}, 0
    for number, header in enumerate(files, 1):
        file = folder / f"model-{number:05}-of-{len(files):05}.safetensors"
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write_bytes(struct.pack("<Q", len(text)) + text)
        size = max(entry["data_offsets"][1] for entry in header.values())
        os.truncate(file, 8 + len(text) + size)
        where |= dict.fromkeys(header, file.name)
        total += size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return total


def _cut(segments: Sequence[Any], layers: int) -> list[Any]:
    """Return the first of these segments that make so many layers."""
    (only,) = segments  # of a shape whose layers are all alike
    return [type(only)(only.pattern, layers // len(only.pattern))]


def _product(lengths: Sequence[int]) -> int:
    n = 1
    for length in lengths:
        n *= length
    return n


def resident(what: str) -> int:
    """Return bytes of this process in memory: VmRSS now, VmHWM at most since `CLEAR` was written to."""
    found = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return int(found.split()[1]) << 10


def measured(folder: Path, mesh: str, devices: int, weights: str | None) -> dict[str, Any]:
    """Read the shards of the first devices of a mesh: what they hold, what was read for them, peak and seconds."""
    read_config(folder)  # what is imported on the way is no part of the peak
    CLEAR.write_text("5")
    before, start = resident("VmRSS"), time.perf_counter()
    with mapped.counting() as count:
        shards = read_shards(folder, MeshShape.of(mesh), range(devices), "bfloat16", weights)
    return {
        "held": sum(x.nbytes for own in shards.values() for x in own.values()),
        "read": count.bytes,
        "peak": resident("VmHWM") - before,
        "before": before,
        "seconds": round(time.perf_counter() - start, 1),
    }


def items(config: Config, prompts: Prompts) -> dict[str, Any]:
    """Name each mesh with each format."""
    pairs = itertools.product(config.mesh, config.weights)
    return {f"{mesh}, {weights or 'bfloat16'}": (mesh, weights) for mesh, weights in pairs}


def measure(item: tuple[str, str | None], run: Run) -> Row:
    """Measure one mesh and format."""
    config, (mesh, weights) = run.config, item
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        size = write_sparse(folder, config.shape, config.layers)
        on_disk = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        found = measured(folder, mesh, config.devices, weights)
    parts = MeshShape.of(mesh).size
    named = {"shape": config.shape, "mesh": mesh, "devices": config.devices, "of": parts}
    in_gb = {f"{what}_gb": round(found[what] / 1e9, 3) for what in ("held", "read", "peak", "before")}
    sizes = {"files_gb": round(size / 1e9, 3), "on_disk_mb": round(on_disk / 1e6, 3)}
    return {**named, "weights": weights or "bfloat16", **sizes, **in_gb, "seconds": found["seconds"]}


def table(rows: Sequence[Row]) -> Table:
    """Show the finished rows."""
    columns = {
        "mesh": "{mesh}",
        "weights": "{weights}",
        "devices": "{devices} of {of}",
        "files GB": "{files_gb:.1f}",
        "on disk MB": "{on_disk_mb:.1f}",
        "held GB": "{held_gb:.2f}",
        "read GB": "{read_gb:.2f}",
        "peak GB": "{peak_gb:.2f}",
        "s": "{seconds}",
    }
    return Table.of(rows, columns)


def files(run: Run) -> dict[str, str]:
    """Give sharded_loading.json, with the machine and the versions."""
    data = {
        "command": "jaxinfer run configs/sharded_loading.yaml",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "versions": {"jax": version("jax"), "jaxinfer": jaxinfer.__version__},
        "note": "Files of holes: their numbers are zero. Peak: of resident memory over what it was before",
        "rows": list(run.rows),
    }
    return {"sharded_loading.json": json.dumps(data, indent=1) + "\n"}


KINDS.add("sharded_loading", Kind(Config, items, measure, table, check=Config.check, files=files))

if __name__ == "__main__":
    script.run("sharded_loading", __doc__)

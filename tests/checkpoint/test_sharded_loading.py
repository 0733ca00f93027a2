"""Loading onto a mesh: the arrays of a model that was loaded whole and spread, and no more read than they take."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_files import llama_tensors, write_gguf
from safetensors.numpy import save_file

from jaxinfer.checkpoint import convert, mapped
from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.loading import load_checkpoint, read_shards
from jaxinfer.checkpoint.presets import PUBLISHED
from jaxinfer.errors import InputError
from jaxinfer.sharding import MeshShape

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


def folder_of(name: str, folder: Path) -> Path:
    """Write a family's golden model as a Hugging Face folder."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    tensors = {key.removeprefix("tensor:"): x for key, x in arrays.items() if key.startswith("tensor:")}
    folder.mkdir()
    (folder / "config.json").write_text(str(arrays["config"]))
    save_file({key: x.astype(np.float32) / 64 for key, x in tensors.items()}, folder / "model.safetensors")
    return folder


def joined(shards: dict[int, np.ndarray], shape: tuple[int, ...], whole: np.ndarray, mesh: MeshShape, spec) -> None:
    """Hold the shards of all devices to the whole array."""
    from jaxinfer.checkpoint.slices import bounds_at

    for position, shard in shards.items():
        box = tuple(slice(*bound) for bound in bounds_at(position, spec, shape, mesh.shape))
        np.testing.assert_array_equal(shard, whole[box])


@pytest.mark.parametrize("name", sorted(file.stem for file in GOLDEN.glob("*.npz")))
def test_every_part_of_every_family_is_that_of_the_whole(name, tmp_path):
    """Parts that begin and end anywhere, not only where a mesh would cut."""
    from jaxinfer.checkpoint.assemble import Assembly
    from jaxinfer.checkpoint.huggingface import open_folder

    family, config, tensors = open_folder(folder_of(name, tmp_path / name))
    assembly = Assembly(tensors, family, config, "hf", np.dtype("float32"), name)
    rng = np.random.default_rng(0)
    for path in assembly.leaves:
        whole = assembly.read(path)
        for _ in range(3):
            box = tuple(tuple(sorted(rng.choice(n + 1, 2, replace=False).tolist())) for n in whole.shape)
            part = assembly.read(path, box)
            np.testing.assert_array_equal(part, whole[tuple(slice(*bound) for bound in box)], err_msg=f"{path} {box}")
            assert part.ctypes.data % 64 == 0


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K"])
def test_parts_of_a_gguf_file(kind, tmp_path):
    from jaxinfer.checkpoint.assemble import Assembly
    from jaxinfer.checkpoint.gguf import open_gguf

    tensors = llama_tensors()
    try:
        file = write_gguf(tmp_path / "tiny.gguf", tensors=tensors, kind=kind)
    except NotImplementedError:  # k-quants are read by the package, and not written
        pytest.skip(f"gguf writes no {kind}")
    _, family, config, found = open_gguf(file)
    assembly = Assembly(found, family, config, "gguf", np.dtype("float32"), "tiny")
    rng = np.random.default_rng(0)
    for path in assembly.leaves:
        whole = assembly.read(path)
        for _ in range(3):
            box = tuple(tuple(sorted(rng.choice(n + 1, 2, replace=False).tolist())) for n in whole.shape)
            part = assembly.read(path, box)
            np.testing.assert_array_equal(part, whole[tuple(slice(*bound) for bound in box)], err_msg=f"{path} {box}")


def test_one_device_of_eight_reads_an_eighth(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    size = file.stat().st_size
    with mapped.counting() as count:
        shards = read_shards(file, MeshShape.of("fsdp=8"), [5])
    held = sum(x.nbytes for own in shards.values() for x in own.values())
    assert count.bytes == held  # float32 as in the file
    assert 0.12 * size < count.bytes < 0.13 * size
    with mapped.counting() as count:
        load_checkpoint(file)
    assert 0.95 * size < count.bytes <= size

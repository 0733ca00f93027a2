"""Loading onto a mesh: the arrays of a model that was loaded whole and spread, and no more read than they take."""

import importlib.util
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from gguf_files import write_gguf
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from jaxinfer.checkpoint import convert, mapped, orbax_io
from jaxinfer.checkpoint.assemble import Assembly, flatten
from jaxinfer.checkpoint.gguf import open_gguf
from jaxinfer.checkpoint.huggingface import open_folder
from jaxinfer.checkpoint.loading import load_checkpoint, read_shards
from jaxinfer.checkpoint.slices import around, bounds_at, overlap, tiles
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


def hold_parts_to_the_whole(assembly: Assembly) -> None:
    """Read parts that begin and end anywhere, not only where a mesh would cut."""
    rng = np.random.default_rng(0)
    for path in assembly.leaves:
        whole = assembly.read(path)
        for _ in range(3):
            box = tuple(tuple(sorted(rng.choice(n + 1, 2, replace=False).tolist())) for n in whole.shape)
            part = assembly.read(path, box)
            np.testing.assert_array_equal(part, whole[tuple(slice(*bound) for bound in box)], err_msg=f"{path} {box}")
            assert part.ctypes.data % 64 == 0


@pytest.mark.parametrize("name", sorted(file.stem for file in GOLDEN.glob("*.npz")))
def test_every_part_of_every_family_is_that_of_the_whole(name, tmp_path):
    family, config, tensors = open_folder(folder_of(name, tmp_path / name))
    hold_parts_to_the_whole(Assembly(tensors, family, config, "hf", np.dtype("float32"), name))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q5_1"])
def test_parts_of_a_gguf_file(kind, tmp_path):
    _, family, config, tensors = open_gguf(write_gguf(tmp_path / "tiny.gguf", kind=kind))
    hold_parts_to_the_whole(Assembly(tensors, family, config, "gguf", np.dtype("float32"), "tiny"))


@pytest.mark.quick
def test_bounds_of_a_position():
    mesh = {"data": 2, "tensor": 4}
    assert bounds_at(6, PartitionSpec("tensor", None), (8, 5), mesh) == ((4, 6), (0, 5))  # at data 1, tensor 2
    assert bounds_at(6, PartitionSpec(None, ("tensor", "data")), (3, 16), mesh) == ((0, 3), (10, 12))
    assert bounds_at(6, PartitionSpec(), (3,), mesh) == ((0, 3),)


@pytest.mark.quick
def test_tiles_cover_a_box_once_and_are_small():
    box = ((1, 4), (2, 7), (0, 6))
    for most in (1, 6, 7, 20, 30, 31, 1000):
        filled = np.zeros((4, 7, 6), int)
        for tile in tiles(box, 2, most):
            part = filled[tuple(slice(*bound) for bound in tile)]
            part += 1
            assert part.size <= max(most, 6)
        assert (filled[1:, 2:] == 1).all()
        assert filled.sum() == 3 * 5 * 6
    assert list(tiles(box, 0, 1)) == [box]
    assert around([((0, 2), (5, 6)), ((1, 3), (2, 3))]) == ((0, 3), (2, 6))
    assert overlap(((0, 2), (5, 6)), ((1, 3), (2, 6))) == ((1, 2), (5, 6))
    assert overlap(((0, 2),), ((2, 3),)) is None


def test_one_device_of_eight_reads_an_eighth(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    convert(file, tmp_path / "orbax")
    size = file.stat().st_size
    mesh = MeshShape.of("fsdp=8")
    with mapped.counting() as count:
        shards = read_shards(file, mesh, [5])
    held = sum(x.nbytes for own in shards.values() for x in own.values())
    assert count.bytes == held  # both in float32
    assert 0.12 * size < held < 0.13 * size
    with mapped.counting() as count:
        whole = flatten(load_checkpoint(file).params)
    assert 0.95 * size < count.bytes <= size
    with mapped.counting() as count:
        again = read_shards(tmp_path / "orbax", mesh, [5, 0])
    assert count.bytes == 2 * held
    for path, own in again.items():
        np.testing.assert_array_equal(own[5], shards[path][5])
        assert set(own) == {0, 5}
    embedding = np.asarray(whole["embed/embedding"])
    np.testing.assert_array_equal(shards["embed/embedding"][5], embedding[:, 5 * 32 : 6 * 32])
    # Blocks of 32 numbers are whole in the shares of eight; what is read is an eighth of them too.
    coded = write_gguf(tmp_path / "coded.gguf", kind="Q8_0")
    with mapped.counting() as count:
        read_shards(coded, mesh, [5])
    assert 0.115 * coded.stat().st_size < count.bytes < 0.13 * coded.stat().st_size


def test_devices_that_the_mesh_has_not(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(InputError, match="device 8: the mesh has the devices 0 to 7"):
        read_shards(file, MeshShape.of("fsdp=8"), [8])


def test_what_is_wrong_with_a_file_is_said_of_its_shards_too(tmp_path):
    folder = folder_of("llama", tmp_path / "llama")
    weights = folder / "model.safetensors"
    tensors, mesh = load_file(weights), MeshShape.of("tensor=2")
    broken = tensors["model.layers.1.mlp.down_proj.weight"]
    broken[3, 40] = np.nan  # of 64 columns: on the second device
    save_file(tensors, weights)
    with pytest.warns(UserWarning, match=r"'model.layers.1.mlp.down_proj.weight' holds NaN or infinite numbers"):
        read_shards(folder, mesh, [1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_shards(folder, mesh, [0])
    save_file({name: x for name, x in tensors.items() if "up_proj" not in name}, weights)
    with pytest.raises(InputError, match="is missing from this llama model"):
        read_shards(folder, mesh, [0])
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match="is cut short or not a safetensors file"):
        read_shards(folder, mesh, [0])


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_progress_and_rounded_shards(weights, tmp_path):
    folder = folder_of("mixtral", tmp_path / "mixtral")
    told = []
    mesh = MeshShape.of("expert=2,tensor=2")
    shards = read_shards(folder, mesh, range(4), weights=weights, progress=lambda *at: told.append(at))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    whole = flatten(load_checkpoint(folder, weights=weights).params)
    up = whole["segment_0/layer_0/moe/up"]
    for name, array in up.arrays().items():
        for position, own in shards[f"segment_0/layer_0/moe/up/{name}"].items():
            experts = np.asarray(array)[:, position // 2 * own.shape[1] :][:, : own.shape[1]]
            if name == "codes":
                experts = experts[:, :, position % 2 * own.shape[2] :][:, :, : own.shape[2]]
                assert own.shape[2] * 2 == array.shape[2]
            if experts.shape == own.shape:
                np.testing.assert_array_equal(own, experts)


@pytest.fixture(scope="module")
def sparse():
    spec = importlib.util.spec_from_file_location("sharded_loading", ROOT / "experiments" / "sharded_loading.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sharded_loading"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured on Linux")
def test_a_large_checkpoint_never_lies_in_memory(sparse, tmp_path):
    """Two layers of Llama 3 70B as files of holes: one device of 64 takes little more than its share of 7.6 GB."""
    size = sparse.write_sparse(tmp_path, "llama-3-70b", layers=2)
    assert size > 7 << 30
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) < 1 << 20
    found = sparse.measured(tmp_path, "fsdp=8,tensor=8", 1, None)
    assert 0 <= found["held"] - found["read"] < found["held"] / 1000  # norms are widened to float32
    assert abs(found["held"] * 64 / size - 1) < 0.001
    assert found["peak"] < 3 * found["held"] < size / 20
    assert not any(path.stat().st_blocks * 512 > 1 << 20 for path in tmp_path.iterdir())


ON_EIGHT_DEVICES = """
import sys
import jax, numpy as np, jaxinfer
from jaxinfer import LayerKind, ModelConfig, Segment
from jaxinfer.checkpoint import presets
from jaxinfer.sharding import MeshShape
from jaxinfer.weights.formats import FORMATS

assert len(jax.devices()) == 8

def same(source, mesh, **options):
    mesh = MeshShape.of(mesh).on()
    whole = jaxinfer.load(source, **options).shard(mesh)
    model = jaxinfer.load(source, mesh=mesh, **options)
    for field in ("layout", "config", "name", "dtype", "weights"):
        assert getattr(model, field) == getattr(whole, field), (source, field)
    assert (model.tokenizer is None) == (whole.tokenizer is None)
    one, other = (jax.tree_util.tree_flatten_with_path(m.params) for m in (model, whole))
    assert one[1] == other[1], source
    for (path, a), (_, b) in zip(one[0], other[0], strict=True):
        where = source, options, path
        assert a.sharding == b.sharding and a.dtype == b.dtype and a.shape == b.shape, where
        for mine, theirs in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert (mine.device, mine.index) == (theirs.device, theirs.index), where
            assert np.asarray(mine.data).tobytes() == np.asarray(theirs.data).tobytes(), where
    return model

folder, mesh = sys.argv[1], "fsdp=2,tensor=4"
for name in ("gpt-oss", "deepseek-v3", "phi3", "gpt-neox", "mamba2"):
    same(f"{folder}/{name}", "expert=2,fsdp=2,tensor=2")
same(f"{folder}/gpt-oss", "expert=2,fsdp=2,tensor=2", weights="int4")
model = same(f"{folder}/tiny.gguf", mesh)
up = model.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
assert up.addressable_shards[0].data.shape == (2, 128, 128)
same(f"{folder}/tiny.gguf", "pipeline=2,fsdp=4", dtype="bfloat16")
for weights in FORMATS:
    if "int4-" not in weights:  # which differs from int4 in a number
        same(f"{folder}/tiny.gguf", mesh, weights=weights)
same(f"{folder}/orbax", mesh)
same(f"{folder}/orbax", mesh, dtype="bfloat16", weights="int8")
same(f"{folder}/coded", mesh)
presets.SHAPES["tiny"] = ModelConfig("llama", 96, 32, 64, 8, 4, 8, (Segment((LayerKind(),), 2),), 256)
for weights in (None, "int8", "nf4"):
    same("random:tiny", mesh, dtype="bfloat16", weights=weights)
wrong = (jax.make_mesh((8,), ("model",)), "a mesh has no axis 'model'"), ("tensor=8", "must be a jax.sharding.Mesh")
for bad, said in wrong:
    try:
        jaxinfer.load(f"{folder}/absent", mesh=bad)
    except jaxinfer.InputError as error:
        assert said in str(error), error
    else:
        raise AssertionError(said)
print("equal")
"""


def start(program: str, *arguments: str, devices: int = 8) -> subprocess.Popen:
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen) -> None:
    """Wait until it has said that all is equal."""
    try:
        out, error = process.communicate(timeout=240)
    finally:
        process.kill()
    assert out.splitlines()[-1:] == ["equal"], error[-3000:]


def test_eight_devices_hold_what_spreading_gives_them(tmp_path):
    for name in ("gpt-oss", "deepseek-v3", "phi3", "gpt-neox", "mamba2"):
        folder_of(name, tmp_path / name)
    write_gguf(tmp_path / "tiny.gguf", kind="Q8_0")
    convert(tmp_path / "tiny.gguf", tmp_path / "orbax")
    convert(tmp_path / "tiny.gguf", tmp_path / "coded", weights="int4")
    end(start(ON_EIGHT_DEVICES, str(tmp_path)))


REAL = (
    ON_EIGHT_DEVICES.partition("\nfolder, mesh")[0]
    + """
same("smollm2-135m", "fsdp=8", dtype="bfloat16")  # shares of 72 numbers, in blocks of 32
print("equal")
"""
)


def test_a_real_model_on_eight_devices():
    end(start(REAL))


IN_TWO_PROCESSES = """
import os, sys
import jax, numpy as np

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))

import jaxinfer
from jaxinfer.checkpoint import mapped
from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.sharding import MeshShape
from jaxinfer.weights.qtensor import to_plain

mesh, size = MeshShape.of("tensor=2,fsdp=4").on(), os.path.getsize(sys.argv[3])
assert len(jax.local_devices()) == 4 and mesh.size == 8
for source, weights in ((sys.argv[3], None), (sys.argv[3], "int8"), (sys.argv[4], None)):
    with mapped.counting() as count:
        model = jaxinfer.load(source, mesh=mesh, weights=weights)
    whole = flatten(to_plain(load_checkpoint(source, weights=weights).params))
    for path, leaf in flatten(to_plain(model.params)).items():
        assert leaf.sharding.mesh == mesh and len(leaf.addressable_shards) == 4
        for shard in leaf.addressable_shards:
            assert np.array_equal(shard.data, whole[path][shard.index]), (source, path)
    if weights is None:
        assert 0.49 * size < count.bytes < 0.65 * size, (source, count.bytes / size)  # k and v of 2 heads are split too
print("equal")
"""


def test_two_processes_read_a_half_each(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf")
    convert(file, tmp_path / "orbax")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [start(IN_TWO_PROCESSES, address, n, str(file), str(tmp_path / "orbax"), devices=4) for n in "01"]
    try:
        for process in both:
            end(process)
    finally:
        for process in both:
            process.kill()


def test_parts_of_an_orbax_folder_whose_arrays_are_in_chunks(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(orbax_io, "CHUNK", 1 << 14)
    convert(file, tmp_path / "orbax")
    whole = flatten(load_checkpoint(file).params)
    stored = orbax_io.Stored(tmp_path / "orbax" / "params", whole)
    rng = np.random.default_rng(0)
    for path, leaf in whole.items():
        box = tuple(tuple(sorted(rng.choice(n + 1, 2, replace=False).tolist())) for n in leaf.shape)
        part = tuple(slice(*bound) for bound in box)
        np.testing.assert_array_equal(stored.read(path, box), leaf[part], err_msg=path)
        assert np.prod(stored._array(path).chunk_layout.read_chunk.shape) <= 1 << 12  # numbers of four bytes
    (tmp_path / "orbax" / "params" / "manifest.ocdbt").write_bytes(b"no manifest")
    with pytest.raises(InputError, match="params: is damaged: "):
        orbax_io.Stored(tmp_path / "orbax" / "params", whole).read("embed/embedding")

"""Programs compiled ahead of time for eight virtual devices: what they take, and the file that they are kept in."""

import os
import sys
from pathlib import Path

import pytest
from until_done import run_until_done

from jaxinfer import InputError, Lookup, ModelConfig, Segment
from jaxinfer.analysis.ahead_of_time import Ask, saving
from jaxinfer.analysis.ahead_of_time.predicting import device_of, limit_of, predicted
from jaxinfer.config import LayerKind
from jaxinfer.sharding import MeshShape, topologies

CONFIG = ModelConfig("llama", 96, 32, 64, 8, 2, 4, (Segment((LayerKind(),), 2),), 256)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "written", "devices"),
    [
        ("v5e:8x8", "v5e:8x8", 64),
        ("V5P:2x2x4", "v5p:2x2x4", 16),
        ("v7:2x2x1", "tpu7x:2x2x1", 8),
        ("h200", "h200:1", 1),
        ("h200:8", "h200:8", 8),
        ("h200x8", "h200:8", 8),
        ("h200:1x1x8", "h200:8", 8),
        ("a100-40gb:2", "a100-40gb:2", 2),
        ("cpu:8", "cpu:8", 8),
    ],
)
def test_targets_are_read_in_every_spelling(name, written, devices):
    found = topologies.slice_of(name)
    assert (str(found), found.size) == (written, devices)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("v5x:8x8", r"target 'v5x:8x8'.*: there is v4:2x2x1, v5e:.*h200:8"),
        ("v5e:3x3", r"target 'v5e:3x3': v5e comes as v5e:1x1, v5e:2x2, .*v5e:16x16"),
        ("v5e", "v5e comes as"),
        ("h200:9", "h200 comes as h200:1 to h200:8"),
        ("h200:2x2x2", "h200 comes as h200:1 to h200:8"),
        ("", "must be a text, such as v5e:1x1"),
    ],
)
def test_an_unknown_target_is_one_line_with_those_that_exist(name, named):
    with pytest.raises(InputError, match=named) as error:
        topologies.devices(name)
    assert "\n" not in str(error.value)


@pytest.mark.quick
@pytest.mark.parametrize(("target", "extra"), [("v5e:2x2", "tpu"), ("h100:8", "cuda")])
def test_a_missing_compiler_names_its_extra(monkeypatch, target, extra):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf'pip install "jaxinfer\[{extra}\]"'):
        topologies.devices(target)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mesh": "tensor=4"}, "mesh tensor=4 takes 4 devices, and cpu:8 has 8"),
        ({"target": "v7:2x2x1", "mesh": "tensor=4"}, "tpu7x:2x2x1 has 8, 2 a chip"),
        ({"context": 257}, "context=257"),
        ({"prompt": 64}, "prompt=64"),
        ({"batch": 0}, "batch=0"),
        ({"weights": "int9"}, "int9"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"steps": ("decod",)}, "decode"),
        ({"steps": ()}, "name at least one"),
    ],
)
def test_what_cannot_be_asked_is_one_line(changes, named):
    given = {"target": "cpu:8", "mesh": "data=2,tensor=4", "context": 64} | changes
    with pytest.raises(InputError, match=named) as error:
        Ask(CONFIG, **{**given, "mesh": MeshShape.of(given["mesh"])})
    assert "\n" not in str(error.value)


@pytest.mark.quick
def test_a_device_has_the_memory_and_the_rates_of_its_part_of_a_chip():
    whole = Ask(CONFIG, "v5e:2x2", MeshShape.of("tensor=4"), context=64)
    half = Ask(CONFIG, "tpu7x:2x2x1", MeshShape.of("tensor=8"), context=64)
    assert limit_of(whole) == 16 << 30
    assert limit_of(half) == 96 << 30
    assert device_of(half).peak(16) == 2307e12 / 2
    assert predicted(Ask(CONFIG, "cpu:8", MeshShape.of("tensor=8"), context=64)) is None


@pytest.mark.quick
def test_bytes_are_predicted_by_the_axes_of_the_mesh():
    def of(mesh, **changes):
        return predicted(Ask(CONFIG, "h200:8", MeshShape.of(mesh), batch=8, context=64, **changes))

    tensor, data, context = of("tensor=8"), of("data=8"), of("context=8")
    assert data["weights"] > 4 * tensor["weights"]
    assert data["kv"] == context["kv"] == of("fsdp=8")["kv"]
    assert tensor["kv"] == 4 * data["kv"]  # each of two heads is on four devices
    assert of("fsdp=8")["weights"] == data["weights"] / 8
    assert of("data=8", weights="int8")["weights"] < 0.8 * data["weights"]
    assert of("pipeline=8", policy=None) is None  # two layers are not eight stages


ON_EIGHT_DEVICES = """
import json, pickle, struct
from pathlib import Path
import jax, numpy as np, pytest
from jaxinfer import InputError, LayerKind, Lookup, Model, ModelConfig, Quantized, Segment
from jaxinfer.analysis.ahead_of_time import Ask, saving
from jaxinfer.analysis.ahead_of_time.studying import account, build, study
from jaxinfer.cli import commands
from jaxinfer.runtime import compiled
from jaxinfer.sharding import MeshShape

def shard_bytes(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

local, whole = LayerKind("local", window=8), LayerKind()
cfg = ModelConfig("llama", 96, 32, 64, 8, 4, 8, (Segment((local, whole), 2),), 256)
mesh, method = MeshShape.of("data=2,tensor=4"), Lookup(width=4)
options = dict(batch=2, context=64, prompt=20, dtype="float32")
ask = Ask(cfg, "cpu:8", mesh, method=method, steps=("prefill", "decode", "verify"), **options)
told = []
built = build(ask, told.append)
found = account(ask, built)
assert told == ["compiling prefill for cpu:8", "compiling decode for cpu:8"], told  # verify is the same program
assert built["decode"] is built["verify"]
assert found.fits and found.total == sum(found.bytes.values()) <= found.limit
assert not any("reason" not in c for s in found.json()["steps"].values() for c in s["choices"])
json.dumps(found.json())

# Bytes are those of the arrays of a real call.
model = Model.random(cfg).shard(mesh.on())
policy = model.default_policy()
assert found.bytes["weights"] == shard_bytes(model.params)
assert found.bytes["cache"] == shard_bytes(model.placed.empty_cache(policy, np.array([20, 20]), 128))
assert found.bytes["padding"] == 0 < found.bytes["temporaries"]

# A layer has an all-reduce after attention and one after the MLP.
for step in ("prefill", "decode"):
    often = {x.operator: x.per_layer for x in found.steps[step].collectives if x.per_layer is not None}
    assert often == {"out_proj": 1.0, "down_proj": 1.0}, often
narrow, wide = ({x.operator: x.bytes for x in found.steps[s].collectives if x.per_layer} for s in ("decode", "verify"))
assert wide["out_proj"] == 4 * narrow["out_proj"] == 4 * 32 * 4, (narrow, wide)

# KV heads fewer than the devices are held by several of them, as those of a model that is spread.
few = cfg.replace(n_kv_heads=2)
grouped = study(Ask(few, "cpu:8", mesh, steps=("decode",), **options))
there = Model.random(few).shard(mesh.on())
assert grouped.bytes["weights"] == shard_bytes(there.params)
assert grouped.bytes["cache"] == shard_bytes(there.placed.empty_cache(policy, np.array([20, 20]), 128))

rounded = Ask(cfg, "cpu:8", mesh, weights="int8", policy=Quantized(), steps=("decode",), **options)
eight = study(rounded)
assert eight.bytes["weights"] < 0.5 * found.bytes["weights"] and eight.bytes["cache"] < 0.5 * found.bytes["cache"]

# What is kept runs in place of what would be compiled, prompts of any length up to the asked one.
file = saving.save(FOLDER / "programs", ask, built)
prompts = [[[1, 2, 3, 4, 5, 6, 7] * 2, [9, 8, 7] * 5], [[5, 6, 5], [7] * 19]]
def texts():
    return [model.generate(rows, method=method, max_new_tokens=12).tokens for rows in prompts]
want = texts()
compiled.clear(); compiled.TRACES.clear()
assert saving.use(file) == (mesh, False)
assert texts() == want and not compiled.TRACES, compiled.TRACES
assert texts() == want and not compiled.TRACES
with pytest.warns(RuntimeWarning, match="has no program decode of these shapes and options"):
    assert model.generate(prompts[0], max_new_tokens=12).tokens == want[0]  # greedy, which is another program
other = Model.random(cfg.replace(d_ff=128)).shard(mesh.on())
with pytest.raises(InputError, match=r"was compiled for llama of 4 .*, and this model is llama of 4 layers, width 32"):
    other.generate(prompts[0], method=method, max_new_tokens=12)
compiled.unload()
assert model.generate(prompts[0], method=method, max_new_tokens=12).tokens == want[0] and compiled.TRACES

# A file that cannot be used is refused in a line, and none of it is run.
data = file.read_bytes()
start = len(saving.MAGIC) + 8
length = int.from_bytes(data[start - 8 : start], "little")
header, rest = json.loads(data[start : start + length]), data[start + length :]

def written(changes, rest=rest):
    text = json.dumps(header | changes).encode()
    path = FOLDER / "changed"
    path.write_bytes(saving.MAGIC + len(text).to_bytes(8, "little") + text + rest)
    return path

def refused(path, named):
    with pytest.raises(InputError, match=named) as error:
        saving.use(path)
    assert "\\n" not in str(error.value), error.value

refused(written({"jax": "0.1.2"}), f"was compiled by jax 0.1.2, and this is jax {jax.__version__}")
refused(written({"device_kind": "TPU v5e"}), "was compiled for a device 'TPU v5e', and this machine has 'cpu'")
refused(written({"mesh": "tensor=16"}), "was compiled for 16 devices, and this machine has 8")
refused(written({"programs": None}), "is damaged")
refused(written({}, rest[:-1]), "is damaged")
refused(written({}, rest[:500] + b"x" + rest[501:]), "is damaged")
(FOLDER / "none").write_bytes(b"text")
refused(FOLDER / "none", "is no executable of jaxinfer compile --save")
refused(FOLDER / "nowhere", "no such file")

class Attack:
    def __reduce__(self):
        return exec, (f"open({str(FOLDER / 'ran')!r}, 'w')",)

import hashlib
payload = pickle.dumps(Attack())
own = {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
entries = [entry | own for entry in header["programs"]]
saving.use(written({"programs": entries}, payload * len(entries)))
compiled.clear()
with pytest.raises(InputError, match="builtins.exec"):
    texts()
assert not (FOLDER / "ran").exists()
print("equal")
"""


def test_eight_virtual_devices(tmp_path):
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    script = ON_EIGHT_DEVICES.replace("FOLDER", f"Path({str(tmp_path)!r})")
    root = Path(__file__).parents[2]
    done = run_until_done(
        [sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")


@pytest.mark.quick
def test_a_program_is_kept_in_a_folder_that_is_there(tmp_path):
    ask = Ask(CONFIG, "cpu:1", MeshShape.of("tensor=1"), context=64, method=Lookup(width=4))
    with pytest.raises(InputError, match="must be a file in a folder that is there"):
        saving.save(tmp_path / "nowhere" / "file", ask, {})

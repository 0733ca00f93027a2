"""Logical axes on a mesh: the rules, and a model spread over eight virtual devices."""

import os
import re
import sys
from pathlib import Path
from typing import ClassVar

import jax
import pytest
from jax.sharding import PartitionSpec
from until_done import run_until_done

from jaxinfer import InputError
from jaxinfer.network.transformer import abstract_params, param_axes
from jaxinfer.sharding import DATA_TENSOR, Rules, topologies


class Wide:
    """A mesh of 2 x 4, as far as rules look at one."""

    shape: ClassVar = {"data": 2, "tensor": 4}


@pytest.mark.quick
def test_axes_map_by_the_table_and_unknown_ones_are_replicated():
    spec = DATA_TENSOR.spec(("batch", "tokens", "mlp"), (4, 7, 16), Wide)
    assert spec == PartitionSpec("data", None, "tensor")


@pytest.mark.quick
def test_a_dimension_that_does_not_divide_is_replicated():
    assert DATA_TENSOR.spec(("layers", "embed", "heads", "head_dim"), (2, 8, 9, 64), Wide) == PartitionSpec(*[None] * 4)
    assert DATA_TENSOR.spec(("embed", "heads"), (8, 12), Wide) == PartitionSpec(None, "tensor")


@pytest.mark.quick
def test_a_mesh_axis_used_twice_is_an_error():
    twice = Rules("twice", (("heads", "tensor"), ("mlp", "tensor")))
    with pytest.raises(InputError, match=r"twice.*same mesh axis"):
        twice.spec(("heads", "mlp"), (4, 4), Wide)


@pytest.mark.quick
def test_every_parameter_names_every_axis(tiny):
    axes = jax.tree.leaves(param_axes(tiny.config), is_leaf=lambda x: isinstance(x, tuple))
    shapes = jax.tree.leaves(abstract_params(tiny.config, "float32"))
    assert len(axes) == len(shapes)
    for names, leaf in zip(axes, shapes, strict=True):
        assert len(names) == leaf.ndim
        assert all(names)


ON_EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType, Mesh
from jaxinfer import InputError, LayerKind, Lookup, Model, ModelConfig, Paged, Sample, Sampling, Segment, Window
from jaxinfer.runtime.compiled import enable_compilation_cache
assert len(jax.devices()) == 8
enable_compilation_cache()
local, whole = LayerKind("local", window=8), LayerKind()
divisible = ModelConfig("llama", 96, 32, 64, 8, 4, 8, (Segment((local, whole), 2),), 256, qk_norm="head")
odd = ModelConfig("llama", 97, 36, 60, 9, 3, 4, (Segment((whole,), 2),), 256, tie_embeddings=False)
rng = np.random.default_rng(0)
prompts = [rng.integers(0, 96, n).tolist() for n in (20, 3, 7, 11)]
for cfg, shape in ((divisible, (2, 4)), (odd, (4, 2))):
    model = Model.random(cfg)
    spread = model.shard(Mesh(np.array(jax.devices()).reshape(shape), ("data", "tensor")))
    if cfg is divisible:
        up = spread.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
        assert up.addressable_shards[0].data.shape == (2, 16, 32), up.sharding
        assert spread.params["embed"]["embedding"].addressable_shards[0].data.shape == (24, 32)
        k = spread.placed.empty_cache(Window(), [1] * 4, 128).stores["global"].k
        assert k.addressable_shards[0].data.shape == (2, 2, 1, 128, 8), k.sharding
    drawn = Sample(), Sampling(temperature=[0.0, 0.9, 0.0, 1.1])
    for method, sampling in ((Lookup(width=4), None), drawn) if cfg is divisible else (drawn,):
        policy = Window() if cfg is divisible else Paged(block=16, pool=20)
        options = dict(method=method, policy=policy, sampling=sampling, seed=3)
        for new in (12, 9):  # the second call passes in what the first has compiled
            found = spread.generate(prompts, max_new_tokens=new, **options)
            assert found.tokens == model.generate(prompts, max_new_tokens=new, **options).tokens, (shape, method)
# Axes of the type Explicit, as jax.make_mesh gives them: what they name is laid out as on a mesh of Auto ones.
mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
model = Model.random(divisible)
explicit, auto = model.shard(mesh), model.shard(Mesh(mesh.devices, mesh.axis_names))
assert explicit.layout == auto.layout
up = explicit.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
assert up.addressable_shards[0].data.shape == (2, 16, 32), up.sharding
assert explicit.generate(prompts, max_new_tokens=9).tokens == model.generate(prompts, max_new_tokens=9).tokens
options = dict(max_new_tokens=5, sampling=Sampling(), n=2, logprobs=2, prompt_logprobs=2)
one, eight = (m.generate(prompts[:2], **options) for m in (model, explicit))
assert one.tokens == eight.tokens
for a, b in ((one.prompt_logprobs, eight.prompt_logprobs), (one.logprobs, eight.logprobs)):
    assert np.allclose(np.concatenate(a), np.concatenate(b), atol=1e-4)
try:
    model.shard(jax.make_mesh((8,), ("model",)))
except InputError as error:
    assert "a mesh has no axis 'model'; they are data, fsdp, tensor, expert, context, pipeline" in str(error), error
else:
    raise AssertionError("everything would be on every device")
print("equal")
"""


def test_eight_devices_give_the_tokens_of_one():
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    root = Path(__file__).parents[2]
    done = run_until_done(
        [sys.executable, "-c", ON_EIGHT_DEVICES], env=env, cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("mesh", "rules", "named"),
    [
        (None, DATA_TENSOR, "mesh=None must be a jax.sharding.Mesh"),
        (jax.sharding.AbstractMesh((1,), ("data",)), DATA_TENSOR, "must be a jax.sharding.Mesh"),
        (jax.sharding.Mesh([], ("data",)), DATA_TENSOR, "must be a jax.sharding.Mesh of devices"),
        ("here", 5, "rules=5 must be"),
        ("here", Rules("typo", (("heds", "tensor"),)), "'heds', an axis of no array; nearest: 'heads'"),
        ("here", Rules("typo", (("heads", "tesor"),)), "'heads' over 'tesor': the mesh has the axes 'data'"),
    ],
    ids=str,
)
def test_a_mesh_and_rules_that_cannot_be_are_one_line(tiny_llama, mesh, rules, named):
    mesh = jax.make_mesh((1,), ("data",)) if mesh == "here" else mesh
    with pytest.raises(InputError, match=re.escape(named)) as error:
        tiny_llama.shard(mesh, rules)
    assert "\n" not in str(error.value)


def test_devices_to_compile_for_cannot_be_spread_over(tiny_llama):
    if topologies.missing("v5e:2x2"):
        pytest.skip("there is no compiler for TPUs here")
    mesh = jax.sharding.Mesh(topologies.devices("v5e:2x2"), ("data",))
    with pytest.raises(InputError, match="is none that this process can use"):
        tiny_llama.shard(mesh)

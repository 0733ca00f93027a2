"""Logical axes on a mesh: the rules, and a model spread over eight virtual devices."""

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import pytest
from jax.sharding import PartitionSpec

from jaxinfer.model import abstract_params, param_axes
from jaxinfer.sharding import DATA_TENSOR, Rules


class Wide:
    """A mesh of 2 x 4, as far as rules look at one."""

    shape: ClassVar = {"data": 2, "tensor": 4}


def test_axes_map_by_the_table_and_unknown_ones_are_replicated():
    spec = DATA_TENSOR.spec(("batch", "tokens", "mlp"), (4, 7, 16), Wide)
    assert spec == PartitionSpec("data", None, "tensor")


def test_a_dimension_that_does_not_divide_is_replicated():
    assert DATA_TENSOR.spec(("layers", "embed", "heads", "head_dim"), (2, 8, 9, 64), Wide) == PartitionSpec(*[None] * 4)
    assert DATA_TENSOR.spec(("embed", "heads"), (8, 12), Wide) == PartitionSpec(None, "tensor")


def test_a_mesh_axis_used_twice_is_an_error():
    twice = Rules("twice", (("heads", "tensor"), ("mlp", "tensor")))
    with pytest.raises(ValueError, match=r"twice.*same mesh axis"):
        twice.spec(("heads", "mlp"), (4, 4), Wide)


def test_every_parameter_names_every_axis(tiny):
    axes = jax.tree.leaves(param_axes(tiny.config), is_leaf=lambda x: isinstance(x, tuple))
    shapes = jax.tree.leaves(abstract_params(tiny.config, "float32"))
    assert len(axes) == len(shapes)
    for names, leaf in zip(axes, shapes, strict=True):
        assert len(names) == leaf.ndim
        assert all(names)


ON_EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh
from jaxinfer import LayerKind, Lookup, Model, ModelConfig, Paged, Sample, Sampling, Segment, Window
from jaxinfer.programs import enable_compilation_cache
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
        k = spread.target.empty_cache(Window(), [1] * 4, 128).stores["global"].k
        assert k.addressable_shards[0].data.shape == (2, 2, 1, 128, 8), k.sharding
    drawn = Sample(), Sampling(temperature=[0.0, 0.9, 0.0, 1.1])
    for method, sampling in ((Lookup(width=4), None), drawn) if cfg is divisible else (drawn,):
        policy = Window() if cfg is divisible else Paged(block=16, pool=20)
        options = dict(method=method, policy=policy, sampling=sampling, seed=3)
        for new in (12, 9):  # the second call passes in what the first has compiled
            found = spread.generate(prompts, max_new_tokens=new, **options)
            assert found.tokens == model.generate(prompts, max_new_tokens=new, **options).tokens, (shape, method)
print("equal")
"""


def test_eight_devices_give_the_tokens_of_one():
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES], env=env, cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")

"""Every method, policy and weight format of the registries on a mixed mesh gives what one device gives."""

import os
import sys
from pathlib import Path

from until_done import run_until_done

ON_EIGHT_DEVICES = """
import dataclasses
import jax, numpy as np
from small_methods import SMALL, equip
from jaxinfer import METHODS, POLICIES, Greedy, LayerKind, Model, ModelConfig, Rope, Sampling, Segment
from jaxinfer.compress import quantize_weights
from jaxinfer.runtime.compiled import clear, enable_compilation_cache
from jaxinfer.sharding import MeshShape
from jaxinfer.weights.formats import FORMATS

enable_compilation_cache()
methods_mesh, mesh = MeshShape.of("data=2,tensor=2").on(), MeshShape.of("data=2,context=2,tensor=2").on()
local, whole = LayerKind("local", Rope(10_000.0), window=8), LayerKind("global", Rope(1e6))
cfg = ModelConfig("llama", 96, 64, 96, 4, 2, 16, (Segment((local, whole), 1),), 512, qk_norm="head")
model = Model.random(cfg)
rng = np.random.default_rng(0)
prompts = [rng.integers(0, 96, n).tolist() for n in (20, 3, 7, 33)]
limits = [14, 3, 9, 14]
cold = Sampling(temperature=0.0)
expected = model.generate(prompts, max_new_tokens=limits, method=Greedy()).tokens
for name, method in SMALL.items():
    spread = equip(model, method, expected).shard(methods_mesh)
    options = {"sampling": cold} if method.samples else {}
    found = spread.generate(prompts, max_new_tokens=limits, method=method, **options).tokens
    assert found == expected, name
    clear()
rest = set(METHODS) - set(SMALL)
for name in sorted(rest):
    method = METHODS[name]()
    if "heads" in method.needs:
        continue  # tests/sharding/test_head_groups.py
    options = {"sampling": cold} if method.samples else {}
    equipped = equip(model, method, expected)
    one, eight = (m.generate(prompts, max_new_tokens=6, method=method, **options).tokens
                  for m in (equipped, equipped.shard(methods_mesh)))
    assert one == eight, name
    clear()
spread = model.shard(mesh)
for name, policy in POLICIES.items():
    one, eight = (m.generate(prompts, max_new_tokens=limits, policy=policy()).tokens for m in (model, spread))
    assert one == eight, name
tokens = np.array([prompts[0], prompts[0][::-1]])
single = Model.random(cfg.replace(segments=(Segment((whole,), 1),)))
for name in FORMATS:
    rounded = quantize_weights(single, name)
    laid = rounded.shard(mesh)
    gate = jax.tree.leaves(laid.params["segment_0"]["layer_0"]["mlp"]["gate"]["kernel"])[0]
    assert gate.addressable_shards[0].data.shape[1] == 48, gate.sharding
    error = np.abs(np.asarray(laid.logits(tokens)) - np.asarray(rounded.logits(tokens))).max()
    assert error < (0.05 if name == "w8a8" else 1e-4), (name, error)
print("equal")
"""


def test_all_of_the_registries_on_a_mixed_mesh():
    tests = Path(__file__).parents[1]
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tests), os.environ.get("PYTHONPATH", "")])),
    }
    done = run_until_done(
        [sys.executable, "-c", ON_EIGHT_DEVICES], env=env, cwd=tests.parent, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")

"""Tensor parallelism of a dense decoder: what XLA makes of it moves activations twice a layer, and no weight."""

import os
import sys
from pathlib import Path

from until_done import run_until_done

LLAMA = """
import collections, jax, numpy as np
from jaxinfer import LayerKind, Model, ModelConfig, Segment
from jaxinfer.analysis.hlo import programs
from jaxinfer.analysis.hlo.findings import COLLECTIVES
from jaxinfer.analysis.hlo.scopes import layer_of
from jaxinfer.compress import quantize_weights
from jaxinfer.runtime.compiled import enable_compilation_cache
from jaxinfer.sharding import MeshShape
enable_compilation_cache()
# SmolLM2-135M in all but depth, with 8 and 4 heads in place of 9 and 3.
cfg = ModelConfig("llama", 49152, 576, 1536, 8, 4, 64, (Segment((LayerKind(),), 3),), 2048)
plain = Model.random(cfg)
for model, mesh, batch, options in (
    (plain, "tensor=4", 1, {}),
    (plain, "data=2,tensor=4", 4, {}),
    (quantize_weights(plain, "int8"), "tensor=4", 4, {}),
):
    shape = MeshShape.of(mesh)
    made = programs(model.shard(shape.on()), 17, batch=batch, max_new_tokens=8, **options)
    rows, width = batch // shape.shape.get("data", 1), 1
    one_byte = 4 if model is plain else 1  # codes are added up before they are numbers
    for one, tokens in ((made.step, width), *((p, w) for w, p in made.prefill.items())):
        report = one.report()
        items = [i for i in report.count.top() if i.instruction.opcode.removesuffix("-start") in COLLECTIVES]
        inside = [(x, item.path) for x, item in zip(report.collectives, items, strict=True)]
        moved = collections.Counter((x.opcode, x.bytes, x.times) for x, path in inside if layer_of(path))
        assert moved == {("all-reduce", rows * tokens * 576 * 4, 3.0): 2}, (mesh, one.name, moved)
        # Around the layers: rows of the embedding are added up, the best of the vocabulary found, texts written down.
        around = [x for x, path in inside if not layer_of(path)]
        assert {x.operator for x in around} <= {"embed", "sampling", "commit", "other"}, (mesh, around)
        embedded = [(x.opcode, x.bytes) for x in around if x.operator == "embed"]
        assert ("all-reduce", rows * tokens * 576 * one_byte) in embedded, (mesh, embedded)
        assert all(x.opcode == "all-reduce" for x in around if x.operator == "embed"), around
print("equal")
"""


def test_a_step_has_two_all_reduces_a_layer_and_gathers_no_weight():
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    root = Path(__file__).parents[2]
    script = [sys.executable, "-c", LLAMA]
    done = run_until_done(script, env=env, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")

"""Code that needs a mesh, run in a process of its own with eight virtual devices."""

import os
import sys
from pathlib import Path

from until_done import run_until_done

START = """
import jax, numpy as np
import jaxinfer
from jaxinfer import InputError, LayerKind, Lookup, Model, ModelConfig, Paged, Rope, Segment
from jaxinfer.analysis import hlo
from jaxinfer.config import MLA, SSM, MoE
from jaxinfer.runtime.compiled import enable_compilation_cache
from jaxinfer.sharding import MeshShape
assert len(jax.devices()) == 8
enable_compilation_cache()
rng = np.random.default_rng(0)
tokens = rng.integers(0, 96, (4, 16))
prompts = [rng.integers(0, 96, n).tolist() for n in (20, 3, 7, 11)]

def on(model, mesh, **changes):
    shape = MeshShape.of(mesh)
    return model.shard(shape.on(), dataclasses.replace(shape.rules, **changes))

def same(model, spread, given, new=(9, 6), **options):
    for count in new:  # the second call passes in what the first has compiled
        found = spread.generate(given, max_new_tokens=count, **options).tokens
        assert found == model.generate(given, max_new_tokens=count, **options).tokens, (spread.layout, options)

def close(model, spread, given=tokens, tolerance=1e-5):
    wanted, found = (np.asarray(m.logits(given)) for m in (model, spread))
    assert abs(found - wanted).max() < tolerance * abs(wanted).max(), (spread.layout, abs(found - wanted).max())

def collectives(compiled):
    "What the text says of each collective: name, its result's dtype and shape, groups, and the loops around it."
    loops, names = r'op_name="([^"]*)"', "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    for line in compiled.as_text().splitlines():
        form = r"= \\(?(\\w+)\\[([\\d,]*)\\][^=]*? (%s)\\(" % names
        if found := re.search(form, line):
            dtype, shape, name = found.groups()
            path = re.search(loops, line)
            yield name, dtype, tuple(map(int, filter(None, shape.split(",")))), path.group(1) if path else ""
"""


def run_on_eight(code: str) -> None:
    """Run code in a process with eight virtual CPU devices. It fails where that does, or does not end by "done"."""
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    whole = "import dataclasses, re\n" + START + code + "\nprint('done')\n"
    root = Path(__file__).parents[2]
    done = run_until_done(
        [sys.executable, "-W", "ignore", "-c", whole], env=env, cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert done.stdout.endswith("done\n")

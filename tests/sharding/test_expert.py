"""Experts spread over devices: one device's tokens, two all-to-alls a layer, no weight gathered."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxinfer.layers import expert_parallel

LAYERS = """
import dataclasses, jax, jax.numpy as jnp, numpy as np
from jaxinfer import LayerKind, Model, ModelConfig, Segment, sharding
from jaxinfer.compress import quantize_weights
from jaxinfer.config import MoE
from jaxinfer.layers.moe import Experts
from jaxinfer.runtime.compiled import enable_compilation_cache
from jaxinfer.sharding import MeshShape
from jaxinfer.weights.formats import FORMATS
assert len(jax.devices()) == 8
enable_compilation_cache()
MOE = MoE(experts=8, top_k=2, d_ff=64, normalize=True)
rng = np.random.default_rng(0)

def model(**changes):
    kind = LayerKind(moe=dataclasses.replace(MOE, **changes))
    made = Model.random(ModelConfig("mixtral", 96, 32, 64, 4, 2, 8, (Segment((kind,), 2),), 256))
    moe = made.params["segment_0"]["layer_0"]["moe"]
    for name in moe:  # biases begin as zeros
        if name.endswith("bias") or name == "correction":
            moe[name] = moe[name] + rng.standard_normal(moe[name].shape).astype(np.float32) / 4
    return made

def layer(model, x, tokens, live, decoding=False):
    moe = model.config.kinds[0].moe
    experts = Experts(model.config, moe, 2, jnp.dtype(model.dtype))
    def run(params, layer, x, tokens, live):
        with sharding.use(model.layout):
            return experts.apply({"params": params}, x, layer, tokens, live, decoding)
    if model.layout is not None:
        x, tokens, live = (model.layout.place(y, ("batch", "tokens", None)[: y.ndim]) for y in (x, tokens, live))
    return jax.jit(run)(model.params["segment_0"]["layer_0"]["moe"], jnp.int32(1), x, tokens, live)

def batch(b, t, alike=False):
    x = rng.standard_normal((b, t, 32)).astype(np.float32)
    x = np.broadcast_to(x[:1, :1], x.shape).copy() if alike else x  # one expert gets everything
    live = np.arange(t) < rng.integers(1, t + 1, (b, 1))
    return x, rng.integers(0, 96, (b, t)).astype(np.int32), live | (np.arange(b) % 3 == 0)[:, None]

def same(one, spread, given, what, atol=1e-5, **how):
    (y, stats), (found, theirs) = layer(one, *given, **how), layer(spread, *given, **how)
    live = np.asarray(given[2])
    np.testing.assert_allclose(np.asarray(found)[live], np.asarray(y)[live], atol=atol, err_msg=what)
    for name in ("z_loss", "balance_loss", "load", "dropped"):
        np.testing.assert_allclose(getattr(theirs, name), getattr(stats, name), atol=1e-5, err_msg=f"{what} {name}")
"""

DISPATCHES = """
mixed = MeshShape.of("data=2,expert=2,tensor=2").on()
kinds = [
    dict(dispatch="capacity", capacity_factor=0.5), dict(dispatch="capacity", capacity_factor=0.5, priority="gate"),
    dict(dispatch="dense"), dict(router="expert_choice"), dict(router="sinkhorn"), dict(router="auction", top_k=1),
    dict(router="hash", top_k=1), dict(router="soft", slots=2), dict(experts=5, bias=True),
    dict(router="sigmoid", groups=2, bias=True, activation="swiglu_clamped"),
]
for changes in kinds:
    activation = changes.pop("activation", "silu")
    one = model(**changes)
    one = dataclasses.replace(one, config=one.config.replace(activation=activation))
    same(one, one.shard(mixed), batch(8, 6), str(changes))
    if changes.get("router") in ("soft", "sinkhorn"):
        same(one, one.shard(mixed), batch(8, 1), f"{changes} alone", decoding=True)
for name in FORMATS:
    one = quantize_weights(model(shared_d_ff=64), name)
    spread = one.shard(mixed)
    codes = jax.tree.leaves(spread.params["segment_0"]["layer_0"]["moe"]["up"])[0]
    assert codes.addressable_shards[0].data.shape[:3] == (2, 4, 32), codes.sharding
    same(one, spread, batch(8, 5), name, atol=0.05 if name == "w8a8" else 2e-5)
one = model()
for shape in ("expert=8", "data=2,expert=4", "fsdp=2,expert=4"):
    spread = one.shard(MeshShape.of(shape).on())
    for alike in (False, True):  # of 32 tokens a device 16 have room in a round: all alike, two rounds
        same(one, spread, batch(8, 32, alike), f"{shape} {alike}")
    same(one, spread, batch(1, 7), f"{shape}: a single row")
wide = dataclasses.replace(one, dtype="bfloat16")
wide = dataclasses.replace(wide, params=jax.tree.map(lambda w: w.astype(jnp.bfloat16), wide.params))
given = batch(8, 3)
given = (given[0].astype(jnp.bfloat16), *given[1:])
same(wide, wide.shard(MeshShape.of("expert=4,tensor=2").on()), given, "bfloat16", atol=0.05)
print("equal")
"""

MODELS = """
import jax, numpy as np
from jaxinfer import LayerKind, Lookup, Model, ModelConfig, Segment
from jaxinfer.analysis.hlo import programs
from jaxinfer.config import MLA, MoE
from jaxinfer.layers.expert_parallel import buffer_bytes
from jaxinfer.runtime.compiled import enable_compilation_cache
from jaxinfer.sharding import MeshShape
enable_compilation_cache()
rng = np.random.default_rng(0)
sparse = LayerKind("sparse", moe=MoE(experts=8, top_k=2, d_ff=64, router="topk"))
mixtral = Model.random(ModelConfig("mixtral", 96, 32, 64, 4, 2, 8, (Segment((sparse,), 3),), 256, tie_embeddings=False))
fine = MoE(8, 3, 32, "sigmoid", normalize=True, scale=2.5, groups=4, top_groups=2, shared_d_ff=32)
mla = MLA(kv_rank=16, nope_dim=8, rope_dim=8, v_dim=8, q_rank=24)
stack = Segment((LayerKind("dense"),), 1), Segment((LayerKind("sparse", moe=fine),), 2)
deepseek = Model.random(ModelConfig("deepseek_v3", 96, 32, 64, 4, 4, 16, stack, 256, mla=mla))
moe = deepseek.params["segment_1"]["layer_0"]["moe"]
moe["correction"] = moe["correction"] + rng.standard_normal((2, 8)).astype(np.float32) / 8
prompts = [rng.integers(0, 96, n).tolist() for n in (20, 3, 7, 11, 1, 30, 5, 2)]
texts = rng.integers(0, 96, (8, 24))

def counted(report):
    found = {}
    for x in report.collectives:
        if x.operator in ("experts", "router"):
            found.setdefault(x.opcode, []).append((x.times, x.bytes))
    return found

for model, meshes in (
    (mixtral, ("expert=8", "data=2,expert=4", "expert=4,tensor=2", "data=2,expert=2,tensor=2")),
    (deepseek, ("expert=8", "data=2,expert=2,tensor=2")),
):
    cfg, layers = model.config, model.config.segments[-1].repeats
    k = cfg.layers[-1].moe.top_k
    expected = model.generate(prompts, max_new_tokens=12).tokens
    scores = model.logits(texts)
    for mesh in meshes:
        shape = MeshShape.of(mesh)
        spread = model.shard(shape.on())
        router = jax.tree.leaves(spread.params[f"segment_{len(cfg.segments) - 1}"]["layer_0"]["moe"]["router"])[0]
        assert router.sharding.is_fully_replicated, router.sharding
        np.testing.assert_allclose(spread.logits(texts), scores, atol=1e-5, err_msg=mesh)
        for new in (12, 9):  # the second call passes in what the first has compiled
            found = spread.generate(prompts, max_new_tokens=new).tokens
            assert found == [row[:new] for row in expected], (cfg.family, mesh)
        devices, rows = shape.shape["expert"], 8 // (shape.size // shape.shape.get("tensor", 1))
        if mesh in meshes[0::3]:
            assert spread.generate(prompts[0], max_new_tokens=12).tokens == [expected[0]], mesh
            drafted = spread.generate(prompts, max_new_tokens=12, method=Lookup(width=4)).tokens
            assert drafted == expected, (cfg.family, mesh)
        made = programs(spread, 17, batch=8, max_new_tokens=4)
        for tokens, one in ((1, made.step), *made.prefill.items()):
            collectives = counted(one.report())
            there, back = buffer_bytes(rows * tokens, k, cfg.d_model, devices, np.float32)
            assert sorted(collectives.pop("all-to-all")) == [(layers, back), (layers, there)], (mesh, one.name)
            sums = collectives.pop("all-reduce", [])
            width = [bytes for _, bytes in sums if bytes > 4]  # the other is the number of rounds
            assert width == ([rows * tokens * cfg.d_model * 4] if "tensor" in mesh else []), (mesh, sums)
            assert len(sums) <= 2, sums
            assert not collectives, (mesh, one.name, collectives)
print("equal")
"""


def run(script: str) -> None:
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")


def test_a_layer_gives_what_one_device_gives():
    run(LAYERS + DISPATCHES)


def test_models_give_the_tokens_of_one_device_by_two_all_to_alls_a_layer():
    run(MODELS)


@pytest.mark.quick
def test_a_buffer_holds_twice_an_even_load_and_no_more_than_all():
    assert expert_parallel.room(1, 2, 8) == 1
    assert expert_parallel.room(64, 2, 8) == 32
    assert expert_parallel.room(64, 2, 4) == 64
    assert expert_parallel.room(512, 8, 256) == 32
    assert expert_parallel.buffer_bytes(64, 2, 32, 8, jnp.float32) == (8 * 32 * (32 + 2 + 2) * 4, 8 * 32 * 32 * 4)
    assert expert_parallel.buffer_bytes(64, 2, 32, 8, jnp.bfloat16) == (8 * 32 * (32 + 2 + 4) * 2, 8 * 32 * 32 * 2)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_token_travels_with_its_experts_and_gates(dtype):
    x = jnp.arange(12, dtype=dtype).reshape(3, 4) / 7
    gates = jnp.asarray([[0.1, 1e-9], [jnp.inf, -3.0], [0.0, 1 / 3]], jnp.float32)
    experts = jnp.asarray([[255, 256], [0, 7], [40000, 3]], jnp.int32)
    found = expert_parallel._unpacked(expert_parallel._packed(x, gates, experts), 4, 2, x.dtype)
    for one, other in zip(found, (x, gates, experts), strict=True):
        assert one.dtype == other.dtype
        assert (one == other).all()

"""Experts spread over devices: one device's tokens, two all-to-alls a layer, no weight gathered."""

import os
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from until_done import run_until_done

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

def model(activation="silu", dtype="float32", **changes):
    kind = LayerKind(moe=dataclasses.replace(MOE, **changes))
    cfg = ModelConfig("mixtral", 96, 32, 64, 4, 2, 8, (Segment((kind,), 2),), 256, activation=activation)
    made = Model.random(cfg, dtype=dtype)
    moe = made.params["segment_0"]["layer_0"]["moe"]
    for name in moe:  # biases begin as zeros
        if name.endswith("bias") or name == "correction":
            moe[name] = moe[name] + rng.standard_normal(moe[name].shape).astype(np.float32) / 4
    return made

def batch(b, t, alike=False):
    x = rng.standard_normal((b, t, 32)).astype(np.float32)
    x = np.broadcast_to(x[:1, :1], x.shape).copy() if alike else x  # two experts get everything
    live = np.arange(t) < rng.integers(1, t + 1, (b, 1))
    return x, rng.integers(0, 96, (b, t)).astype(np.int32), live | (np.arange(b) % 3 == 0)[:, None]

def results(cases, mesh=None):
    # One program of all layers: most of a small one's time to compile goes by without it.
    models = [case[1] if mesh is None else case[1].shard(mesh) for case in cases]
    given = []
    for model, (_, _, arrays, *_) in zip(models, cases):
        if mesh is not None:
            arrays = [model.layout.place(y, ("batch", "tokens", None)[: y.ndim]) for y in arrays]
        given.append((model.params["segment_0"]["layer_0"]["moe"], *arrays))

    def run(given, layer):
        found = []
        for model, (_, _, _, decoding, _), (params, x, tokens, live) in zip(models, cases, given):
            experts = Experts(model.config, model.config.kinds[0].moe, 2, jnp.dtype(model.dtype))
            # One after the other: a CPU's devices share threads, which collectives that do not wait would take up.
            x = (x + (0 * jnp.sum(found[-1][0]) if found else 0)).astype(model.dtype)
            with sharding.use(model.layout):
                found.append(experts.apply({"params": params}, x, layer, tokens, live, decoding))
        return found

    return jax.jit(run)(given, np.int32(1))

def same(cases, *meshes):
    expected = results(cases)
    for mesh in meshes:
        found = results(cases, MeshShape.of(mesh).on())
        for (what, _, (_, _, live), _, atol), (y, stats), (x, theirs) in zip(cases, expected, found):
            one, other = (np.asarray(a, np.float32)[live] for a in (y, x))
            np.testing.assert_allclose(other, one, atol=atol, err_msg=f"{what} {mesh}")
            for name in ("z_loss", "balance_loss", "load", "dropped"):
                values = getattr(theirs, name), getattr(stats, name)
                np.testing.assert_allclose(*values, atol=max(atol / 10, 1e-5), err_msg=f"{what} {mesh} {name}")

mixed = "data=2,expert=2,tensor=2"
kinds = [
    dict(dispatch="capacity", capacity_factor=0.5), dict(dispatch="capacity", capacity_factor=0.5, priority="gate"),
    dict(dispatch="dense"), dict(router="expert_choice"), dict(router="sinkhorn"), dict(router="auction", top_k=1),
    dict(router="hash", top_k=1), dict(router="soft", slots=2), dict(experts=5, bias=True),
    dict(router="sigmoid", groups=2, bias=True, activation="swiglu_clamped"),
]
cases = [(str(changes), model(**changes), batch(8, 6), False, 1e-5) for changes in kinds]
cases += [(f"{changes} alone", model(**changes), batch(8, 1), True, 1e-5) for changes in (kinds[4], kinds[7])]
same(cases, mixed)
cases = []
for name in FORMATS:
    one = quantize_weights(model(), name)
    codes = jax.tree.leaves(one.shard(MeshShape.of(mixed).on()).params["segment_0"]["layer_0"]["moe"]["up"])[0]
    assert codes.addressable_shards[0].data.shape[:3] == (2, 4, 32), codes.sharding
    cases.append((name, one, batch(8, 5), False, 0.05 if name == "w8a8" else 2e-5))
same(cases, mixed)
# Of 32 tokens a device 16 have room in a round of expert=8: where all are alike, there are two rounds.
one = model()
cases = [(f"alike: {alike}", one, batch(8, 32, alike), False, 1e-5) for alike in (False, True)]
cases += [("a row", one, batch(1, 7), False, 1e-5), ("bfloat16", model(dtype="bfloat16"), batch(8, 3), False, 0.1)]
same(cases, "expert=8", "fsdp=2,expert=4")
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
prompts = [rng.integers(0, 96, n).tolist() for n in (16, 3, 7, 11, 1, 14, 5, 2)]
texts = rng.integers(0, 96, (8, 16))

def counted(report):
    found = {}
    for x in report.collectives:
        if x.operator in ("experts", "router", "shared_expert"):
            found.setdefault(x.opcode, []).append((x.times, x.bytes))
    return found

def two_all_to_alls(spread, made, mesh):
    cfg, shape = spread.config, mesh.shape
    layers, moe = cfg.segments[-1].repeats, cfg.layers[-1].moe
    for tokens, one in ((1, made.step), *made.prefill.items()):
        collectives = counted(one.report())
        n = 8 // (mesh.size // shape.get("tensor", 1)) * tokens  # of a device
        there, back = buffer_bytes(n, moe.top_k, cfg.d_model, shape["expert"], np.float32)
        assert sorted(collectives.pop("all-to-all")) == [(layers, back), (layers, there)], (mesh, one.name)
        sums = collectives.pop("all-reduce", [])
        assert all(times == layers for times, _ in sums), sums
        added = sum(bytes for _, bytes in sums if bytes > 4)  # the other is the number of rounds
        products = (1 + bool(moe.shared_d_ff)) if "tensor" in shape else 0
        assert added == products * n * cfg.d_model * 4, (mesh, one.name, sums)
        assert len(sums) <= products + 1, sums
        assert not collectives, (mesh, one.name, collectives)

for model, mesh, more in (
    (mixtral, "data=2,expert=2,tensor=2", ("logits", "method", "text")),
    (mixtral, "expert=8", ("row", "text")),
    (mixtral, "data=2,expert=4", ()),
    (mixtral, "expert=4,tensor=2", ()),
    (deepseek, "data=2,expert=2,tensor=2", ("logits", "text")),
):
    expected = model.generate(prompts, max_new_tokens=12).tokens
    mesh = MeshShape.of(mesh)
    spread = model.shard(mesh.on())
    router = jax.tree.leaves(spread.params[f"segment_{len(model.config.segments) - 1}"]["layer_0"]["moe"]["router"])[0]
    assert router.sharding.is_fully_replicated, router.sharding
    for new in (12, 9):  # the second call passes in what the first has compiled
        found = spread.generate(prompts, max_new_tokens=new).tokens
        assert found == [row[:new] for row in expected], (model.config.family, mesh)
    if "logits" in more:
        np.testing.assert_allclose(spread.logits(texts), model.logits(texts), atol=1e-5, err_msg=str(mesh))
    if "row" in more:
        assert spread.generate(prompts[:1], max_new_tokens=12).tokens == expected[:1], mesh
    if "method" in more:
        drafted = spread.generate(prompts, max_new_tokens=12, method=Lookup(width=4)).tokens
        assert drafted == expected, (model.config.family, mesh)
    if "text" in more:
        two_all_to_alls(spread, programs(spread, 17, batch=8, max_new_tokens=4), mesh)
print("equal")
"""


def run(script: str) -> None:
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    root = Path(__file__).parents[2]
    done = run_until_done(
        [sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")


def test_a_layer_gives_what_one_device_gives():
    run(LAYERS)


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

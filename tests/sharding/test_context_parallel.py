"""Devices that share the tokens of a row: slots of the cache, and the tokens of a prompt, on eight virtual devices."""

import os
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from until_done import run_until_done

from jaxinfer.cache.split import devices_of, names_of
from jaxinfer.cache.store import BLOCK, round_up
from jaxinfer.sharding import RULES, Sharding, rules_of


class Mesh:
    """A mesh of 2 x 4, as far as rules look at one."""

    shape: ClassVar = {"data": 2, "context": 4}


@pytest.mark.quick
def test_the_devices_of_the_axis_that_slots_are_split_over_share_them():
    assert devices_of(None) == 1
    assert devices_of(Sharding(Mesh, rules_of(Mesh.shape))) == 4
    assert devices_of(Sharding(Mesh, RULES["data"])) == 1
    assert names_of(None) == ()
    assert names_of("context") == ("context",)


@pytest.mark.quick
def test_a_store_has_whole_blocks_of_slots(monkeypatch):
    assert round_up(1) == BLOCK
    monkeypatch.setattr("jaxinfer.sharding.layouts.active", lambda: Sharding(Mesh, rules_of(Mesh.shape)))
    assert round_up(1) == 4 * BLOCK
    assert round_up(4 * BLOCK + 1) == 8 * BLOCK
    assert round_up(3, 2) == 4


ATTENTION = """
from functools import partial
import itertools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from jaxinfer import sharding
from jaxinfer.cache.codes import dequantize, quantize
from jaxinfer import Dense
from jaxinfer.cache.store import Cache, Store, causal, extent, reorder, write
from jaxinfer.config import LayerKind
from jaxinfer.kernels import context, dispatch
from jaxinfer.kernels.attention import attend
from jaxinfer.kernels.contract import Scoring
assert len(jax.devices()) == 8
LAYERS, LAYER, rng = 2, jnp.int32(1), np.random.default_rng(0)

def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

def store_of(batch, heads, slots, width, lengths, size=None):
    pos = np.full((batch, slots), -1, np.int32)
    for row, length in enumerate(lengths):
        pos[row, rng.permutation(slots)[:length]] = np.arange(length)  # any slot may hold any token
    empty = np.where(pos < 0, 1e3, 1.0)[None, :, None, :, None]
    k, v = (normal(LAYERS, batch, heads, slots, width) * empty for _ in "kv")
    return Store(k, v, jnp.asarray(pos))

def trees(batch, tokens):
    mask = np.zeros((batch, tokens, tokens), bool)
    for row, token in itertools.product(range(batch), range(tokens)):
        mask[row, token] = mask[row, rng.integers(0, token)] if token else False
        mask[row, token, token] = True
    return jnp.asarray(mask)

everything = Scoring(1.5, 2.0 ** -np.arange(8, dtype=np.float32), np.linspace(-1, 1, 8, dtype=np.float32))
numbers = lambda x, dtype: dequantize(x, dtype) if hasattr(x, "codes") else x.astype(dtype)
CASES = {  # mesh, heads, tokens, window, scoring, what else
    "a step": ("context=4,data=2", (8, 2), 1, None, Scoring(), ""),
    "a wide step in a window": ("context=8", (8, 2), 5, 30, everything, ""),
    "a tree": ("data=2,context=2,tensor=2", (8, 2), 6, None, everything, "tree"),
    "drafted tokens": ("context=4,tensor=2", (8, 2), 3, None, Scoring(), "ahead"),
    "8 bits": ("context=4,data=2", (8, 2), 2, None, Scoring(), "codes"),
    "a prompt": ("context=4,data=2", (8, 2), 128, None, everything, ""),
    "a prompt in a window": ("context=2,tensor=2,data=2", (8, 2), 96, 20, Scoring(), ""),
    "a prompt that does not divide": ("context=8", (4, 1), 65, None, Scoring(), ""),
    "latents": ("data=2,context=2,tensor=2", (8, 1), 3, None, Scoring(value_width=48), ""),
    "latents of a prompt": ("context=4,tensor=2", (8, 1), 72, None, Scoring(value_width=48), ""),
}
TIMES = {"xla": {}, "reference": {}, "pallas": dict(target="tpu", interpret=True)}
for name, (mesh, (n, k_heads), tokens, window, scoring, more) in CASES.items():
    layout = sharding.Sharding(*(lambda s: (s.on(), s.rules))(sharding.MeshShape.of(mesh)))
    batch, width, lengths = 2, 64, (0, 700)
    context.QUERIES = 64 if name == "a prompt in a window" else 512  # of its 48 tokens a device, 24 at a time
    slots = 128 * max(8, layout.size("context"))
    store = store_of(batch, k_heads, slots, width, lengths)
    if more == "codes":
        store = store.replace(k=quantize(store.k, jnp.int8), v=quantize(store.v, jnp.int8))
    q_pos = jnp.asarray(np.array(lengths)[:, None] + np.arange(tokens), jnp.int32)
    q = normal(batch, k_heads, tokens * n // k_heads, width) * 0.2
    k, v = normal(batch, k_heads, tokens, width), normal(batch, k_heads, tokens, width)
    ahead = None
    if more == "ahead":
        ahead = store_of(batch, k_heads, 4, width, (2, 3))
        ahead = ahead.replace(pos=jnp.where(ahead.pos >= 0, ahead.pos + q_pos[:, :1], -1))
        q_pos = q_pos + 3
    if scoring.value_width:
        v, store = v[..., :0], store.replace(v=store.v[..., :0])
    tree = trees(batch, tokens) if more == "tree" else None
    visible = partial(causal, LayerKind(window=window))

    def run(q, k, v, tree, store, ahead, q_pos):
        rest = (LAYER, q_pos, extent(store), visible, numbers, scoring, ahead)
        return attend(q, k, v, tree, store, *rest)

    args = (q, k, v, tree, store, ahead, q_pos)
    with dispatch.use("reference"):
        expected = np.asarray(jax.jit(lambda *x: run(*x))(*args))
    for kernel, options in TIMES.items():
        if kernel == "reference" and name not in ("a step", "a prompt"):
            continue
        if kernel == "pallas" and name not in ("a step", "8 bits", "a tree", "a prompt"):
            continue
        def on_mesh(*x):
            with sharding.use(layout):
                return run(*x)
        with dispatch.use(kernel, **options):
            found = jax.jit(on_mesh)(*args)
        assert found.shape == expected.shape, (name, kernel, found.shape, expected.shape)
        error = np.abs(np.asarray(found) - expected).max()
        assert error < 1e-5, (name, kernel, error)

# Within code that splits rows by hand, as stages do, the rest is split.
layout = sharding.Sharding(*(lambda s: (s.on(), s.rules))(sharding.MeshShape.of("data=2,context=4")))
inner = sharding.Sharding(layout.mesh, sharding.RULES["context"])
store, q_pos = store_of(2, 2, 1024, 64, (0, 700)), jnp.array([[0], [700]], jnp.int32)
q, k, v = (normal(2, 2, rows, 64) for rows in (4, 1, 1))
def by_row(q, k, v, store, q_pos):
    with sharding.use(inner):
        return attend(q, k, v, None, store, LAYER, q_pos, extent(store), partial(causal, LayerKind()), numbers)
specs = store.replace(k=P(None, "data"), v=P(None, "data"), pos=P("data"))
outer = jax.shard_map(
    by_row, mesh=layout.mesh, in_specs=(P("data"),) * 3 + (specs, P("data")), out_specs=P("data"),
    axis_names={"data"}, check_vma=False,
)
found = jax.jit(outer)(q, k, v, store, q_pos)
with dispatch.use("reference"):
    rest = store, LAYER, q_pos, None, partial(causal, LayerKind()), numbers
    expected = jax.jit(lambda: attend(q, k, v, None, *rest))()
assert np.abs(found - expected).max() < 1e-5

# What is written lies in slot s % C of a device's own, whatever came by all-to-all, was gathered, or was there.
for mesh, width, take, in_turn in (
    ("context=8", 72, False, True),
    ("context=4,data=2", 128, False, True),
    ("context=4,data=2", 128, False, False),
    ("data=2,context=2,tensor=2", 5, True, True),
):
    layout = sharding.Sharding(*(lambda s: (s.on(), s.rules))(sharding.MeshShape.of(mesh)))
    devices, slots, batch = layout.size("context"), 1024, 2
    store = store_of(batch, 2, slots, 16, (0, 0))
    fresh = tuple(normal(LAYERS, batch, 2, width, 16) for _ in "kv")
    taken = jnp.asarray([[0, 3, 4], [0, 1, 4]], jnp.int32) if take else None
    order = jnp.arange(3 if take else width)
    n = jnp.array([2, order.size - 1])
    pos = jnp.array([[1023], [6]]) + order
    slot = jnp.where(order < n[:, None], pos % slots, slots)
    args = store, fresh, taken, pos, slot
    one = jax.jit(lambda *x: write(*x, in_turn=in_turn))(*args)
    def on_mesh(*x):
        with sharding.use(layout):
            return write(*x, in_turn=in_turn)
    many = jax.jit(on_mesh)(*args)
    moved = np.arange(slots) % devices * (slots // devices) + np.arange(slots) // devices  # slot -> place
    assert (np.asarray(many.pos)[:, moved] == np.asarray(one.pos)).all(), mesh
    written = (np.asarray(one.pos) >= 0)[None, :, None, :, None]
    for a, b in ((many.k, one.k), (many.v, one.v)):
        assert (np.where(written, np.asarray(a)[:, :, :, moved], 0) == np.where(written, b, 0)).all(), mesh

# Beams go on from others, on whatever device those are.
layout = sharding.Sharding(*(lambda s: (s.on(), s.rules))(sharding.MeshShape.of("data=2,context=4")))
store, rows = store_of(4, 2, 1024, 16, (0, 3, 700, 5)), jnp.array([2, 2, 0, 3])
cache = Cache({"all": store}, length=jnp.array([0, 3, 700, 5]), aux=None, policy=Dense())
def on_mesh(cache, rows):
    with sharding.use(layout):
        return reorder(cache, rows)
found = jax.jit(on_mesh)(cache, rows)
seen = np.asarray(store.pos)[rows] >= 0
assert (np.asarray(found.stores["all"].pos) == np.asarray(store.pos)[rows]).all()
a, b = (np.where(seen[None, :, None, :, None], x, 0) for x in (found.stores["all"].k, np.asarray(store.k)[:, rows]))
assert (a == b).all()
print("equal")
"""


TOKENS = """
import warnings
import jax, numpy as np
from jaxinfer import Dense, Greedy, LayerKind, Lookup, Model, ModelConfig, Paged, Quantized, Recycling, Segment, Window
from jaxinfer.config import Rope
from jaxinfer.runtime.compiled import enable_compilation_cache
from jaxinfer.sharding import MeshShape
assert len(jax.devices()) == 8
enable_compilation_cache()
local, whole = LayerKind("local", Rope(10_000.0), window=20), LayerKind("global", Rope(1_000_000.0))
gemma = ModelConfig(
    "gemma3", 96, 32, 64, 4, 2, 8, (Segment((local, whole), 1),), 1024, norm_eps=1e-6, activation="gelu_tanh",
    qk_norm="head", post_norms=True, embed_scale=32**0.5, query_scale=0.3,
)
rng = np.random.default_rng(0)
long, short = ([rng.integers(0, 96, n).tolist() for n in lengths] for lengths in ((270, 3, 7, 131), (50, 3, 7, 31)))
model = Model.random(gemma, seed=1)
CASES = (
    ("context=8", long, Greedy(), Window()),
    ("data=2,context=4", short, Recycling(width=8), Quantized()),
    ("context=2,tensor=2,data=2", short, Lookup(width=4), Dense()),
    ("data=2,context=4", short, Greedy(), Paged(block=16)),
)
NEW = 24, 17  # the second call passes in what the first has compiled
def of_one(prompts, policy, new):
    exact = policy if isinstance(policy, Quantized) else Window()
    return model.generate(prompts, max_new_tokens=new, policy=exact).tokens
for shape, prompts, method, policy in CASES:
    spread = model.shard(MeshShape.of(shape).on())
    for new in NEW:
        found = spread.generate(prompts, max_new_tokens=new, method=method, policy=policy).tokens
        assert found == of_one(prompts, policy, new), (shape, method, policy, new)
given = np.array([long[0][:200], long[0][-200:]])
error = np.abs(np.asarray(spread.logits(given)) - np.asarray(model.logits(given))).max()
assert error < 1e-5, error

# Each device holds every eighth token, in order, and none more: of a ring those of the last round, over those before.
spread = model.shard(MeshShape.of("context=8").on())
lengths = np.array([len(p) for p in long])
tokens = np.zeros((4, 512), np.int32)
for row, prompt in enumerate(long):
    tokens[row, : len(prompt)] = prompt
cache, _, _ = spread.placed.read(Window(), tokens, lengths, lengths + 8)
for name, store in cache.stores.items():
    slots = store.pos.shape[1]
    assert slots == 1024
    assert {shard.data.shape for shard in store.k.addressable_shards} == {(1, 4, 2, 128, 8)}
    for shard in store.pos.addressable_shards:
        own = np.arange(128) * 8 + shard.index[1].start // 128
        assert (np.asarray(shard.data) == np.where(own < lengths[:, None] - 1, own, -1)).all(), (name, shard.index)

# Slots that the mesh does not divide are on every device, which is said.
three = model.shard(MeshShape.of("context=3").on())
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    cache = three.placed.empty_cache(Paged(block=16), lengths, 512)
assert any("policy Paged: blocks of 16 slots of local layers do not divide over the 3" in str(w.message) for w in said)
assert cache.stores["local"].k.is_fully_replicated
print("equal")
"""


PROGRAMS = """
import collections
import jax, numpy as np
from jaxinfer import Dense, Greedy, LayerKind, Model, ModelConfig, Segment
from jaxinfer.analysis.hlo import programs
from jaxinfer.sharding import MeshShape
assert len(jax.devices()) == 8
L, K, G, H, B, C = 2, 2, 2, 16, 2, 4
model = Model.random(ModelConfig("llama", 96, 32, 64, K * G, K, H, (Segment((LayerKind(),), L),), 4096))
spread = model.shard(MeshShape.of("context=4").on())
found = programs(spread, 257, batch=B, policy=Dense(), method=Greedy(), max_new_tokens=1000)

def moved(program):
    # opcode, bytes of a device's array -> times
    text = program.report()
    assert not text.unaliased, text.unaliased
    counts = collections.Counter()
    for one in text.collectives:
        counts[one.opcode, one.bytes] += one.times
    return counts, text

counts, text = moved(found.step)
rows = B * K * G
assert counts == {("all-reduce", 4 * rows): L, ("all-reduce", 4 * rows * (H + 1)): L}, counts
cache = 2 * L * B * K * 2048 // C * H * 4
assert text.memory.aliased >= cache, (text.memory, cache)
assert text.memory.temporaries < cache // 2, (text.memory, cache)  # no leaf of the cache is copied

(width, chunk), = found.prefill.items()
counts, text = moved(chunk)
rows, part = B * K * width * G, B * K * width // C * H * 4
exchange = L * B * K * width // C * H * 4
wanted = {
    ("collective-permute", part): 2 * (C - 1) * L,  # keys and values, around the ring
    ("all-gather", 4 * rows * H): L,  # queries
    ("all-reduce", 4 * rows): L,  # the largest log-sum-exps
    ("reduce-scatter", 4 * rows * (H + 1)): L,  # outputs and weights
    ("all-to-all", exchange): 2,  # keys and values of all layers, to their slots
}
assert counts == wanted, (counts, wanted)
print("equal")
"""


REAL = """
import jax, numpy as np
import jaxinfer
from jaxinfer.runtime.compiled import enable_compilation_cache
from jaxinfer.sharding import MeshShape
assert len(jax.devices()) == 8
enable_compilation_cache()
model = jaxinfer.load("smollm2-135m", dtype="float32")
prompts = ["Once upon a time there was a fox who wanted to " * 9, "The capital of France is"]
spread = model.shard(MeshShape.of("context=4").on())
found = spread.generate(prompts, max_new_tokens=8, logprobs=True)
for prompt, new, logprobs in zip(prompts, found.tokens, found.logprobs, strict=True):
    tokens = model.encode(prompt) + new
    logits = np.asarray(model.logits(np.array([tokens + [0] * (128 - len(tokens))])))[0]
    logits = logits[len(tokens) - len(new) - 1 : len(tokens) - 1]
    assert logits.argmax(-1).tolist() == new, found.texts
    expected = np.array(jax.nn.log_softmax(logits))[np.arange(len(new)), new]
    assert np.abs(expected - np.array(logprobs)).max() < 5e-5, (expected, logprobs)
print("equal")
"""


def on_eight_devices(script, **more):
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **more,
    }
    root = Path(__file__).parents[2]
    done = run_until_done(
        [sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")


def test_attention_of_shared_slots_is_that_of_one_device():
    on_eight_devices(ATTENTION)


def test_tokens_logits_and_slots_are_those_of_one_device():
    on_eight_devices(TOKENS)


def test_programs_move_partial_softmaxes_and_no_cache():
    on_eight_devices(PROGRAMS, JAX_DISABLE_MOST_OPTIMIZATIONS="0")


def test_a_real_model_writes_the_same_text():
    on_eight_devices(REAL)

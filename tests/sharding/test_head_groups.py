"""Heads that a mesh axis does not divide: the equal model whose heads it does, here and on eight virtual devices."""

import dataclasses
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from until_done import run_until_done

from jaxinfer import LayerKind, Model, ModelConfig, Segment
from jaxinfer.compress import quantize_weights
from jaxinfer.config import MLA, SSM
from jaxinfer.network.head_groups import ZEROS, HeadGroups, obstacle, regrouped
from jaxinfer.network.transformer import abstract_params, init_params
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.qtensor import dequantized, is_quantized

ODD = ModelConfig("llama", 96, 48, 64, 9, 3, 12, (Segment((LayerKind(),), 2),), 256)
EVEN = ODD.replace(n_heads=8, n_kv_heads=2)
FULL = dict(attention_bias=True, output_bias=True, sinks=True, query_scale=0.3)
LATENT = ODD.replace(n_kv_heads=9, mla=MLA(kv_rank=16, nope_dim=8, rope_dim=4, v_dim=10))
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 11))


def shape_of(groups):
    return None if groups is None else (len(groups.queries), len(groups.keys), groups.padding)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("heads", "kv_heads", "parts", "pad", "wanted"),
    [
        (64, 8, 64, False, (64, 64, 0)),  # Llama 3 70B: each KV head eight times, with one of its heads
        (64, 8, 16, False, (64, 16, 0)),
        (64, 8, 8, True, None),
        (9, 3, 2, False, None),
        (9, 3, 3, True, None),
        (9, 3, 2, True, (12, 4, 3)),
        (9, 3, 4, True, (12, 4, 3)),
        (9, 3, 8, True, (16, 8, 7)),
        (8, 2, 4, True, (8, 4, 0)),  # nothing is padded where heads divide
        (12, 6, 4, True, (12, 12, 0)),
        (71, 1, 2, True, (72, 2, 1)),  # Falcon 7B
        (4, 1, 4, False, (4, 4, 0)),
    ],
)
def test_heads_are_grouped_as_the_axis_takes_them(heads, kv_heads, parts, pad, wanted):
    groups = HeadGroups.of(ODD.replace(n_heads=heads, n_kv_heads=kv_heads), parts, pad)
    assert shape_of(groups) == wanted
    if groups is None:
        return
    queries, keys = groups.queries, groups.keys
    assert len(queries) % parts == len(keys) % parts == 0
    assert sorted(q for q in queries if q != ZEROS) == list(range(heads)), "every head is there, once"
    for at, query in enumerate(queries):  # and reads the KV head that it always read
        if query != ZEROS:
            assert keys[at // (len(queries) // len(keys))] == query // (heads // kv_heads)


@pytest.mark.quick
def test_models_without_such_heads_are_left_alone():
    state = LayerKind("ssm", rope=None, mixer=SSM(2, 96, 16, heads=6))
    assert HeadGroups.of(ODD.replace(segments=(Segment((state,), 2),)), 4, True) is None
    assert HeadGroups.of(LATENT, 4) is None
    assert shape_of(HeadGroups.of(LATENT, 4, True)) == (12, 12, 3)


def uneven(cfg, seed=3):
    """Random weights, in which biases, sinks and scales differ from head to head."""

    def drawn(path, x):
        if path[-1].key not in ("bias", "sinks", "scale"):
            return x
        key = jax.random.key(sum(map(ord, jax.tree_util.keystr(path))))
        return x + 0.3 * jax.random.normal(key, x.shape, x.dtype)

    params = init_params(cfg, jnp.float32, jax.random.key(seed))
    return Model(cfg, jax.tree_util.tree_map_with_path(drawn, params))


@pytest.mark.parametrize(
    ("cfg", "parts", "wanted"),
    [
        (ODD.replace(qk_norm="head", **FULL), 8, (16, 8)),
        (ODD.replace(qk_norm="head", attention_softcap=20.0, **FULL), 2, (12, 4)),
        (EVEN.replace(qk_norm="whole", **FULL), 4, (8, 4)),
        (EVEN.replace(alibi=1.0, segments=(Segment((LayerKind(rope=None),), 2),)), 8, (8, 8)),
        (LATENT, 4, (12, 12)),
    ],
    ids=["across groups", "whole groups", "norm over all heads", "alibi", "latent"],
)
def test_the_equal_model_computes_the_same(cfg, parts, wanted):
    model = uneven(cfg)
    config, params = regrouped(cfg, model.params, parts, pad=True)
    assert (config.n_heads, config.n_kv_heads) == wanted
    assert config.replace(n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads) == cfg
    forms = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert forms == jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(config, "float32"))
    other = dataclasses.replace(model, config=config, params=params)
    assert np.abs(model.logits(TOKENS) - other.logits(TOKENS)).max() < 1e-5


@pytest.mark.quick
def test_zeros_are_refused_where_they_would_count():
    for changes, named in ((dict(alibi=1.0), "ALiBi's slopes"), (dict(qk_norm="whole"), "a norm is over all heads")):
        cfg = ODD.replace(**changes)
        params = abstract_params(cfg, "float32")
        assert named in obstacle(cfg, params)
        assert regrouped(cfg, params, 4, pad=True) == (cfg, params)
    assert obstacle(ODD, abstract_params(ODD, "float32")) is None


@pytest.mark.parametrize("name", FORMATS)
def test_no_number_of_quantized_weights_changes(name):
    whole = uneven(ODD.replace(head_dim=24, **FULL))
    model = quantize_weights(whole, name)
    before = model.params["segment_0"]["layer_0"]["attention"]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params)
    groups = HeadGroups.of(model.config, 8, True)
    config, params = regrouped(model.config, model.params, 8, True)
    after = params["segment_0"]["layer_0"]["attention"]
    for weight, index, axis in (("q", "queries", 1), ("k", "keys", 1), ("v", "keys", 1), ("o", "queries", 2)):
        assert is_quantized(after[weight]["kernel"])
        index = np.array(getattr(groups, index))
        now, then = (np.moveaxis(np.asarray(dequantized(x[weight]["kernel"])), axis, 0) for x in (after, before))
        np.testing.assert_array_equal(now[index >= 0], then[index[index >= 0]])
        assert not now[index < 0].any()
    same_config, forms = regrouped(model.config, shapes, 8, True)
    assert same_config == config
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), forms)
    assert dataclasses.replace(model, config=config, params=params).weights == name


ON_EIGHT_DEVICES = """
import dataclasses
import jax, numpy as np
import jaxinfer
from jaxinfer import Eagle, LayerKind, Medusa, Model, ModelConfig, Segment, Speculative
from jaxinfer.compress import keep_layers, quantize_weights
from jaxinfer.heads import Heads, HeadsConfig, store
from jaxinfer.runtime.compiled import enable_compilation_cache
from jaxinfer.sharding import MeshShape
enable_compilation_cache()
assert len(jax.devices()) == 8

def spread(model, mesh, pad):
    shape = MeshShape.of(mesh)
    return model.shard(shape.on(), dataclasses.replace(shape.rules, pad_heads=pad))

def shards(model, *names):
    attention = model.params["segment_0"]["layer_0"]["attention"]
    first = [jax.tree.leaves(attention[name]["kernel"])[0] for name in names]
    return [array.addressable_shards[0].data.shape for array in first]

rng = np.random.default_rng(0)
odd = ModelConfig("llama", 96, 48, 64, 9, 3, 16, (Segment((LayerKind(),), 2),), 256)
model = Model.random(odd)
prompts = [rng.integers(0, 96, n).tolist() for n in (20, 3, 7, 11)]
# What a mesh does not divide is named once, and what splits it.
at = "segment_0.layer_0.attention"
notes = spread(model, "tensor=4", False).layout_notes
assert notes == (
    f"{at}.k and 1 more: 3 kv_heads over tensor=4 stay whole on each device; pad_heads splits them",
    f"{at}.o and 1 more: 9 heads over tensor=4 stay whole on each device; pad_heads splits them",
), notes
padded = spread(model, "data=2,tensor=4", True)
assert padded.layout_notes == (
    "9 heads and 3 KV heads are held as 12 and 4, 3 of the heads zeros for tensor=4",
), padded.layout_notes
held = padded.bytes_by_device()
assert len(held) == 8 and sum(held.values()) < 8 * sum(x.nbytes for x in jax.tree.leaves(padded.params)) / 3
alibi = spread(Model.random(odd.replace(alibi=1.0)), "tensor=2", True)
assert alibi.layout_notes[0].endswith("no head of zeros can be added, for ALiBi's slopes go by the number of heads")
# Models attached before and after, and heads: the same tokens.
plain = model.generate(prompts, max_new_tokens=9).tokens
draft = keep_layers(model, [0])
before, after = spread(model.attach(draft=draft), "data=2,tensor=4", True), padded.attach(draft=draft)
assert before.extras["draft"].layout == after.extras["draft"].layout == padded.layout
assert before.extras["draft"].config == after.extras["draft"].config
found = after.generate(prompts, max_new_tokens=9, method=Speculative(width=3))
assert found.tokens == plain
for kind, method in (("medusa", Medusa()), ("eagle", Eagle())):
    cfg = HeadsConfig.of(kind, model.name, model.config, 96, 3)
    heads = Heads(store.init_params(cfg), jax.numpy.arange(96), cfg)
    assert padded.attach(heads=heads).generate(prompts, max_new_tokens=9, method=method).tokens == plain
itself = spread(model.attach(draft=model), "tensor=2", True)
assert itself.extras["draft"].params is itself.params
assert found.stats.mesh == "data=2,tensor=4"
assert found.stats.device_weight_bytes < found.stats.weight_bytes / 2
assert 0 < found.stats.device_cache_bytes < found.stats.cache_bytes / 4
# As JAX's documentation makes a mesh; and a quantized model on it.
mesh = jax.make_mesh((2, 4), ("data", "tensor"))
rounded = quantize_weights(model, "int4")
assert model.shard(mesh).generate(prompts, max_new_tokens=9).tokens == plain
four = spread(rounded, "tensor=4", True)
assert four.weights == "int4" and shards(four, "q", "k") == [(2, 3, 16, 32), (2, 1, 16, 32)]
tokens = np.array([prompts[0], prompts[0][::-1]])
assert np.abs(four.logits(tokens) - rounded.logits(tokens)).max() < 1e-5

real = jaxinfer.load("smollm2-135m", dtype="float32")
prompt = "The capital of France is"
ids = np.array([real.encode(prompt + ", and the three largest rivers of")])
whole, said = np.asarray(real.logits(ids)), real.generate([prompt], max_new_tokens=6)
expected = {
    (2, True): [(30, 6, 64, 576), (30, 2, 64, 576), (30, 576, 6, 64)],
    (4, True): [(30, 3, 64, 576), (30, 1, 64, 576), (30, 576, 3, 64)],
    (8, True): [(30, 2, 64, 576), (30, 1, 64, 576), (30, 576, 2, 64)],
    (4, False): [(30, 9, 64, 576), (30, 3, 64, 576), (30, 576, 9, 64)],
}
for (devices, pad), shapes in expected.items():
    on = spread(real, f"tensor={devices}", pad)
    assert shards(on, "q", "k", "o") == shapes, shards(on, "q", "k", "o")
    furthest = np.abs(np.asarray(on.logits(ids)) - whole).max() / np.abs(whole).max()
    assert furthest < 1e-5, (devices, pad, furthest)
    if (devices, pad) in ((8, True), (4, False)):  # the command line's test has the others
        again = on.generate([prompt], max_new_tokens=6)
        assert again.tokens == said.tokens and again.texts == said.texts, (devices, pad)
print("equal")
"""


def test_eight_devices_give_the_tokens_of_one_whatever_the_heads(smollm2):  # which skips where it is not installed
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

"""What is compiled, how often, and how much memory it takes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_methods import SMALL, equip

from jaxinfer import (
    POLICIES,
    Beam,
    Dense,
    Greedy,
    LayerKind,
    Lookup,
    Model,
    ModelConfig,
    Paged,
    Quantized,
    Sample,
    Sampling,
    Segment,
    Window,
)
from jaxinfer.decoding import loop
from jaxinfer.runtime import compiled
from jaxinfer.runtime.generation import Generation
from jaxinfer.weights.layer_stack import LayerViews, for_cpu


@pytest.fixture
def traces():
    """The trace counter, with every program forgotten."""
    compiled.clear()
    compiled.TRACES.clear()
    return compiled.TRACES


@pytest.mark.parametrize(
    ("method", "policy"),
    [
        *((SMALL[name], policy) for name in ("greedy", "sample", "lookup") for policy in (Dense, Window)),
        *((SMALL["lookup"], policy) for policy in POLICIES.values() if policy not in (Dense, Window)),
        *((method, Dense) for name, method in SMALL.items() if name not in ("greedy", "sample", "lookup")),
    ],
    ids=str,
)
def test_one_trace_whatever_the_prompts_the_sampling_and_the_limits(tiny_gemma, ragged, traces, method, policy):
    model = equip(tiny_gemma, method, ragged((30, 20)))
    settings = [None] if method == Greedy() else [Sampling(temperature=t, top_p=p) for t, p in ((0.0, 1.0), (0.8, 0.9))]
    for lengths, limit, seed in (((9, 16, 2), 20, 0), ((1, 3, 12), [1, 30, 7], 5), ((14, 14, 14), 2, 9)):
        for sampling in settings:
            prompts = ragged(lengths, seed=seed)
            model.generate(prompts, max_new_tokens=limit, method=method, policy=policy(), sampling=sampling, seed=seed)
    assert traces["decode"] == 1
    assert (
        traces["prefill"] == 1
    )  # all of them fit in the smallest chunk, and a draft model of the same shape shares it


@pytest.mark.quick
def test_another_bucket_or_batch_is_traced_once_more(tiny_llama, ragged, traces):
    for _ in range(2):
        tiny_llama.generate(ragged((5,)), max_new_tokens=8)
        tiny_llama.generate(ragged((5, 5)), max_new_tokens=8)
        tiny_llama.generate(ragged((5,)), max_new_tokens=200)
    assert traces["decode"] == 3


def _decode_memory(model, prompts, method, policy):
    sampling = Sampling(temperature=0.0)
    generation = Generation.begin(model.placed, prompts, [8] * 3, method, policy, sampling, [0] * 3, (), False)
    generation.advance(1)
    return generation.temp_bytes, generation.cache_bytes


@pytest.mark.parametrize(
    ("method", "policy"),
    [
        (Greedy(), Dense),
        (Sample(), Window),
        (Lookup(width=4), Window),
        (Beam(beams=2), Window),
        (Greedy(), Quantized),
        (Beam(beams=2), partial(Paged, block=16, format="int8")),
    ],
)
@pytest.mark.usefixtures("usual_emitters")
def test_the_cache_is_never_copied(tiny_gemma, ragged, method, policy):
    prompts = ragged((3, 9, 1))
    small, small_cache = _decode_memory(tiny_gemma, prompts, method, policy(capacity=256))
    large, large_cache = _decode_memory(tiny_gemma, prompts, method, policy(capacity=8192))
    # Masks and the bound of the loop read the positions, 4 bytes a slot and row; keys and values would be far more, if
    # only one of the four buffers of the two global layers were copied, or widened as a whole.
    rows = 3 * method.rows_per_prompt
    assert large - small <= 4 * (rows * 8192 * 4)
    assert (large_cache - small_cache) / 2 > 4 * (rows * 8192 * 4)


def _compiled_size(n_layers: int, d_model: int) -> int:
    """Characters of the decode program that XLA has made: a stand-in for its compile time that every run agrees on."""
    cfg = ModelConfig("llama", 97, d_model, 2 * d_model, 4, 2, 16, (Segment((LayerKind(),), n_layers),), 512)
    model = Model.random(cfg)
    args = ([list(range(20))], [4], Greedy(), Dense(), Sampling(temperature=0.0), [0], (), False)
    generation = Generation.begin(model.placed, *args)
    static = (model.placed.model, generation.method)
    dynamic = (model.placed.params, {}, generation.state, np.int32(1))
    decode, _ = compiled.program(loop.decode, static, dynamic, carry=2)
    return len(decode.compiled.as_text())


def test_programs_make_room_before_the_memory_maps_run_out(tiny_llama, monkeypatch, tmp_path):
    """A compiler without a map left says that there is no memory. The one used last stays, and texts do not change."""
    maps, few, many, none = (tmp_path / name for name in ("maps", "few", "many", "none"))
    maps.write_text("a map\n" * 20)
    few.write_text("39\n")
    many.write_text("40\n")
    expected = [tiny_llama.generate([[1, 2, 3]], max_new_tokens=8, method=Lookup(width)).tokens for width in (2, 3)]
    for present, most, kept in ((maps, many, 3), (none, few, 3), (maps, few, 1)):
        monkeypatch.setattr(compiled, "_MAPS", (present, most))
        for _ in range(2):
            compiled.clear()
            found = [tiny_llama.generate([[1, 2, 3]], max_new_tokens=8, method=Lookup(w)).tokens for w in (2, 3)]
            assert found == expected
            assert len(compiled._PROGRAMS) == kept  # reading the prompt, and each method's loop


@pytest.mark.parametrize("d_model", [64, 256])
def test_a_deep_model_is_no_larger_a_program(d_model):
    """Layers are scanned, unless they are large and few."""
    shallow, deep = (_compiled_size(n, d_model) for n in (4, 64))
    assert deep <= 1.02 * shallow


def test_layers_are_apart_where_they_are_large_and_few():
    def kernels(n_layers, width):
        return {"segment_0": {"layer_0": {"mlp": {"up": {"kernel": jnp.zeros((n_layers, width, 256))}}}}}

    def is_apart(params, *most):
        return isinstance(for_cpu(params, *most)["segment_0"]["layer_0"]["mlp"]["up"]["kernel"], LayerViews)

    assert is_apart(kernels(32, 256))
    assert not is_apart(kernels(33, 256))
    assert is_apart(kernels(33, 256), 40)  # asked for
    assert not is_apart(kernels(32, 255))


def test_large_layers_are_views_that_share_memory():
    cfg = ModelConfig("llama", 97, 512, 1024, 8, 4, 64, (Segment((LayerKind(),), 3),), 512)
    model = Model.random(cfg)
    up = model.placed.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
    stacked = model.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
    assert [x.unsafe_buffer_pointer() for x in up.layers] == [
        stacked.unsafe_buffer_pointer() + i * 1024 * 512 * 4 for i in range(3)
    ]
    prompts = [[1, 2, 3, 4, 5], [6]]
    scanned = Model(cfg, model.params, separate_layers=False)
    assert isinstance(scanned.placed.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"], jax.Array)
    separate, whole = (m.generate(prompts, max_new_tokens=24, policy=Dense()).tokens for m in (model, scanned))
    assert separate == whole

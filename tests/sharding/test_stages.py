"""Pipeline parallelism: layers in stages give one device's tokens, and neither weights nor cache move."""

import dataclasses
import re

import jax
import pytest
from virtual import run_on_eight

from jaxinfer import InputError, LayerKind, ModelConfig, Segment
from jaxinfer.network import stages
from jaxinfer.network.transformer import layer_places
from jaxinfer.sharding import MeshShape, Sharding, layouts, rules_of

LOCAL, WHOLE, OTHER = LayerKind("local", window=8), LayerKind(), LayerKind("other")


def config(*segments):
    return ModelConfig("llama", 96, 32, 64, 4, 2, 8, segments, 256)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("segments", "size", "named"),
    [
        ((Segment((WHOLE,), 30),), 4, "pipeline=4 does not divide segment 0 .*30 repeats; sizes that do: 2, 3, 5, 6"),
        ((Segment((WHOLE,), 7),), 2, "7 repeats; sizes that do: 7"),
        ((Segment((LOCAL, WHOLE), 4), Segment((LOCAL,), 1)), 2, "segment 1 .*1 repeats; no size above 1 does"),
        ((Segment((OTHER,), 3), Segment((WHOLE,), 58)), 3, "segment 1 .*58 repeats; sizes that do: 2, 29, 58"),
    ],
    ids=["30 by 4", "7 by 2", "a kind that two segments share", "the largest segment"],
)
def test_layers_that_do_not_divide_are_one_line(segments, size, named):
    found = stages.problem(config(*segments), "pipeline", size)
    assert re.search(named, found), found
    assert "\n" not in found


@pytest.mark.quick
def test_a_small_segment_may_lie_whole():
    assert stages.problem(config(Segment((OTHER,), 3), Segment((WHOLE,), 58)), "pipeline", 2) is None
    # Its cache would be split all the same: four layers of one kind, over two.
    assert stages.problem(config(Segment((OTHER, OTHER), 3), Segment((WHOLE,), 58)), "pipeline", 2)


@pytest.mark.quick
def test_shard_refuses_before_anything_is_placed(tiny_llama):
    class Two:
        shape = {"pipeline": 2}  # noqa: RUF012

    with pytest.raises(InputError, match="mesh axis pipeline=2 does not divide segment 0 of the layers, 3 repeats"):
        stages.check(tiny_llama.config, Sharding(Two, rules_of(["pipeline"])))


@pytest.mark.quick
def test_a_store_holds_layers_stage_by_stage(monkeypatch):
    cfg = config(Segment((LOCAL, WHOLE), 4), Segment((LOCAL,), 2))
    in_order = [[place.slot.tolist() for place in places] for places in layer_places(cfg)]
    assert in_order == [[[0, 1, 2, 3], [0, 1, 2, 3]], [[4, 5]]]
    monkeypatch.setattr(stages, "count", lambda cfg: 2)
    by_stage = [[place.slot.tolist() for place in places] for places in layer_places(cfg)]
    assert by_stage == [[[0, 1, 3, 4], [0, 1, 2, 3]], [[2, 5]]]


@pytest.mark.quick
@pytest.mark.parametrize(("rows", "most", "parts"), [(8, 4, 4), (6, 4, 3), (7, 4, 1), (1, 4, 1), (4, 8, 4)])
def test_parts_of_a_batch_are_as_many_as_divide_it(rows, most, parts):
    assert stages.largest_divisor(rows, most) == parts


@pytest.mark.quick
def test_microbatches_below_one_are_refused():
    with pytest.raises(InputError, match="microbatches=0 must be at least 1"):
        dataclasses.replace(rules_of(["pipeline"]), microbatches=0)


@pytest.mark.quick
def test_programs_without_the_axis_are_as_they_were(tiny_llama):
    assert stages.count(tiny_llama.config) == 1
    mesh = MeshShape.of("data=1").on(jax.devices()[:1])
    with layouts.use(Sharding(mesh, rules_of(["data"]))):
        assert stages.count(tiny_llama.config) == 1


SMALL = """
local, whole = LayerKind("local", window=8), LayerKind()
cfg = ModelConfig("llama", 96, 32, 64, 4, 2, 8, (Segment((local, whole), 4), Segment((local,), 2)), 256, qk_norm="head")
model = Model.random(cfg)
spread = on(model, "data=2,pipeline=2,tensor=2")
up = spread.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
assert up.addressable_shards[0].data.shape == (2, 32, 32), up.sharding
k = spread.placed.empty_cache(jaxinfer.Window(), [1] * 4, 128).stores["local"].k
assert k.shape == (6, 4, 2, 128, 8) and k.addressable_shards[0].data.shape == (3, 2, 1, 128, 8), k.sharding
close(model, spread)
same(model, spread, prompts, method=Lookup(width=4))
same(model, spread, prompts[:1])

# A tick moves what one part of the rows is made of, and nothing else moves between stages but the result, once.
plain = Model.random(ModelConfig("llama", 96, 32, 64, 4, 2, 8, (Segment((whole,), 4),), 256, tie_embeddings=False))
staged = on(plain, "pipeline=2")
for options, rows, parts in ((dict(), 4, 2), (dict(microbatches=4), 4, 4), (dict(), 1, 1)):
    programs = hlo.programs(on(plain, "pipeline=2", **options), 20, batch=rows)
    found = list(collectives(programs.step.compiled))
    moved = [(name, shape) for name, dtype, shape, path in found if name != "collective-permute"]
    assert [name for name, _ in moved] == ["all-reduce"], found
    assert np.prod(moved[0][1]) == rows * 32, found
    passed = [(shape, path) for name, dtype, shape, path in found if name == "collective-permute"]
    assert [np.prod(shape) for shape, _ in passed] == [rows // parts * 32], found
    permutes = [c for c in programs.step.report().collectives if c.opcode == "collective-permute"]
    assert [(c.bytes, c.times) for c in permutes] == [(4 * rows // parts * 32, parts + 1)], permutes
    text = programs.loop.compiled.as_text()
    stores = [(4, rows, 2, 128, 8), (2, rows, 2, 128, 8), (2 * parts, rows // parts, 2, 128, 8)]
    for shape in (",".join(map(str, shape)) for shape in stores):
        copied = [line for line in text.splitlines() if re.search(r"= f32\\[%s\\]\\S* copy\\(" % shape, line)]
        assert not copied, copied
    assert stores[0] not in [shape for _, _, shape, _ in collectives(programs.loop.compiled)]

# Three stages of six devices, and weights in eight bits.
rounded = jaxinfer.compress.quantize_weights(Model.random(cfg.replace(segments=(Segment((local, whole), 3),))), "int8")
close(rounded, on(rounded, "data=2,pipeline=3"))

# Experts after a layer without, whose number does not divide: it lies whole. Rows share blocks of the cache.
dense, sparse = LayerKind("dense"), LayerKind("sparse", moe=MoE(4, 2, 24, shared_d_ff=16))
mixed = Model.random(cfg.replace(segments=(Segment((dense,), 1), Segment((sparse,), 4))))
for mesh in ("pipeline=2", "pipeline=2,fsdp=2"):
    close(mixed, on(mixed, mesh))
one, two = (m.routing(tokens)["sparse"] for m in (mixed, on(mixed, "pipeline=2,data=2")))
assert np.allclose(one.load, two.load, atol=1e-6) and np.allclose(one.z_loss, two.z_loss, rtol=1e-4)
same(mixed, on(mixed, "pipeline=2,fsdp=2"), prompts, policy=Paged(block=16, pool=20))
around = LayerKind("sparse", moe=MoE(4, 2, 24, dispatch="capacity"))
crowded = Model.random(cfg.replace(segments=(Segment((around,), 2),)))
close(crowded, on(crowded, "pipeline=2,data=2"))

# Latent attention, and carried states.
latent = Model.random(
    ModelConfig("x", 96, 32, 64, 4, 4, 12, (Segment((LayerKind(rope=Rope(width=4)),), 4),), 256, mla=MLA(8, 8, 4, 6))
)
close(latent, on(latent, "pipeline=4"))
state = LayerKind("mamba", rope=None, mixer=SSM(1, width=64, state=8, dt_rank=3))
carried = Model.random(cfg.replace(segments=(Segment((state, whole), 2),)))
same(carried, on(carried, "pipeline=2,data=2"), prompts)
try:
    on(model, "pipeline=4")
except InputError as error:
    assert "pipeline=4 does not divide segment 1 of the layers, 2 repeats; sizes that do: 2" in str(error), error
else:
    raise AssertionError("two layers in four stages")
"""


def test_small_models_of_every_kind_of_layer():
    run_on_eight(SMALL)


REAL = """
model = jaxinfer.load("smollm2-135m", dtype="float32")
text = model.encode("The quick brown fox jumps over the lazy dog. It was a dark and stormy night.")
rows = np.array([text[:16], text[:16][::-1]])
given = ["The capital of France is", "Once upon a time, in a village by the sea,"]
for mesh in ("pipeline=2", "data=2,pipeline=2,tensor=2"):
    spread = on(model, mesh)
    close(model, spread, rows)
    if mesh == "pipeline=2":
        same(model, spread, given, new=(6,))
"""


def test_smollm2_in_stages(smollm2):
    run_on_eight(REAL)

"""Fully sharded weights: one layer at a time is gathered, and activations are not summed in its place."""

from virtual import run_on_eight

SMALL = """
from jaxinfer.sharding import choices
from jaxinfer.weights.formats import FORMATS
whole = LayerKind()
cfg = ModelConfig("llama", 96, 32, 64, 4, 2, 8, (Segment((whole,), 3),), 256, tie_embeddings=False, attention_bias=True)
model = Model.random(cfg)
spread = on(model, "fsdp=4")
up = spread.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
assert up.addressable_shards[0].data.shape == (3, 64, 8), up.sharding
close(model, spread)
same(model, spread, prompts)
same(model, spread, prompts[:1], method=Lookup(width=4))

layer = {  # of one layer, each once
    "q": (4, 8, 32), "k": (2, 8, 32), "v": (2, 8, 32), "o": (32, 4, 8), "gate": (64, 32), "up": (64, 32),
    "down": (32, 64), "attention_norm": (32,), "mlp_norm": (32,),
}

def check(compiled, inside):
    found = list(collectives(compiled))
    gathered = [(shape, path) for name, _, shape, path in found if name == "all-gather"]
    looped = sorted(tuple(sorted(shape)) for shape, path in gathered if re.search(inside, path))
    assert looped == sorted(tuple(sorted(shape)) for shape in layer.values()), looped
    assert not [shape for shape, _ in gathered if len(shape) > 1 and shape[0] == 3], gathered  # of a stack
    summed = [(dtype, shape) for name, dtype, shape, _ in found if name in ("all-reduce", "reduce-scatter")]
    assert not [shape for dtype, shape in summed if dtype == "f32"], summed

programs = hlo.programs(spread, 20, batch=4)
check(programs.step.compiled, r"Transformer/while/body")
check(programs.prefill[32].compiled, r"Transformer/while/body")

for mesh in ("fsdp=2,tensor=2,data=2", "pipeline=3,fsdp=2"):
    close(model, on(model, mesh))
for name in FORMATS:
    rounded = jaxinfer.compress.quantize_weights(model, name)
    close(rounded, on(rounded, "fsdp=2,data=2"), tolerance=0.01 if name == "w8a8" else 1e-5)

# The next layer's weights are gathered while this one computes, where links and arithmetic are apart.
plain = choices.GATHER_AHEAD
object.__setattr__(choices.GATHER_AHEAD, "platforms", ("cpu",))
ahead = Model.random(cfg.replace(max_positions=255))  # other programs
spread = on(ahead, "fsdp=4")
close(ahead, spread)
same(ahead, spread, prompts)
text = hlo.programs(spread, 20, batch=4).step.compiled
gathers = [(shape, path) for name, _, shape, path in collectives(text) if name == "all-gather"]
inside = [shape for shape, path in gathers if "Transformer/while/body" in path]
assert sorted(tuple(sorted(s)) for s in inside) == sorted(tuple(sorted(s)) for s in layer.values()), inside

# Experts are gathered like other weights.
mixture = Model.random(cfg.replace(segments=(Segment((LayerKind("sparse", moe=MoE(4, 2, 24)),), 2),)))
close(mixture, on(mixture, "fsdp=2"))
object.__setattr__(choices.GATHER_AHEAD, "platforms", ("gpu", "tpu"))
mixture = Model.random(mixture.config.replace(max_positions=255))
close(mixture, on(mixture, "fsdp=2"))
"""


def test_small_models_with_weights_split_over_devices():
    run_on_eight(SMALL)


REAL = """
model = jaxinfer.load("smollm2-135m", dtype="float32")
text = model.encode("The quick brown fox jumps over the lazy dog. It was a dark and stormy night.")
rows = np.array([text[i : i + 8] for i in range(8)])
given = ["The capital of France is", "Once upon a time, in a village by the sea,"]
for mesh in ("fsdp=8", "data=2,fsdp=4", "fsdp=2,tensor=2,data=2"):
    spread = on(model, mesh)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(spread.params))
    whole = sum(x.nbytes for x in jax.tree.leaves(spread.params))
    assert held * spread.layout.size("fsdp") < 1.001 * whole, (mesh, held, whole)
    close(model, spread, rows)
    if mesh == "fsdp=8":  # a step moves every weight to every device: seconds, on one machine
        same(model, spread, given, new=(3,))
"""


def test_smollm2_with_weights_split_over_devices(smollm2):
    run_on_eight(REAL)

"""Each term that the analyzer counts, held to a slow and plain count that is made here."""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tally import Tally

from jaxinfer import Dense
from jaxinfer.analysis import hardware
from jaxinfer.analysis.roofline import Setting, Storage, analyze
from jaxinfer.checkpoint.presets import SHAPES
from jaxinfer.config import MLA, SSM, LayerKind, LinearAttention, ModelConfig, MoE, Rope, Segment
from jaxinfer.network.counting import parameters

pytestmark = pytest.mark.quick

A6000 = hardware.get("a6000")
H100 = hardware.get("h100-sxm")
LAYER = LayerKind(rope=Rope())


def model(kind=LAYER, layers=3, **changes):
    """A small model of ragged sizes, whose head width is not D / N."""
    plain = ModelConfig(
        family="small",
        vocab_size=131,
        d_model=48,
        d_ff=112,
        n_heads=6,
        n_kv_heads=2,
        head_dim=20,
        segments=(Segment((kind,), layers),),
        max_positions=512,
        tie_embeddings=False,
    )
    return plain.replace(**changes)


def operators(config, stage, device=A6000, **setting):
    """The operators of a stage by name."""
    found = analyze(config, device, Setting(**setting)).stages[stage]
    return {one.operator.name: one.operator for one in found}


def visible(tokens, context, reach=None):
    """The keys that each query sees, by position from 0: itself, those before it, the last `reach` of them."""
    for query in range(context - tokens, context):
        yield [key for key in range(query + 1) if reach is None or key > query - reach]


SIZES = [(1, 1, 1), (2, 37, 1), (3, 37, 5), (1, 128, 1), (2, 200, 3)]  # batch, prompt, width of a decode step
REACHES = [None, 1, 7, 100, 1000]


@pytest.mark.parametrize("stage", ["prefill", "decode"])
@pytest.mark.parametrize(("batch", "prompt", "width"), SIZES)
@pytest.mark.parametrize("window", REACHES)
def test_attention_counts_the_pairs_that_causality_and_a_window_leave(stage, batch, prompt, width, window):
    config = model(LayerKind(rope=Rope(), window=window))
    found = operators(config, stage, batch=batch, prompt=prompt, width=width)
    tokens, context = (prompt, prompt) if stage == "prefill" else (width, prompt + width - 1)
    pairs = products = 0
    keys = set()
    for seen in visible(tokens, context, window):
        pairs += len(seen)
        products += sum(20 for _ in seen)  # multiply-adds over the head's width
        keys |= set(seen)
    rows = batch * 6
    assert found["qk_matmul"].ops == found["sv_matmul"].ops == 2 * products * rows
    assert found["qk_matmul"].written == found["softmax"].read == found["softmax"].written == 2 * pairs * rows
    assert found["sv_matmul"].read == 2 * pairs * rows
    # Keys belong to 2 heads, not to 6: a group of three queries shares them.
    assert found["qk_matmul"].kv_read == found["sv_matmul"].kv_read == len(keys) * 20 * 2 * 2 * batch
    assert found["qk_matmul"].read == found["sv_matmul"].written == batch * tokens * 6 * 20 * 2
    flash = operators(config, stage, batch=batch, prompt=prompt, width=width, flash=True)["fused_attention"]
    assert flash.ops == sum(found[name].ops for name in ("qk_matmul", "softmax", "sv_matmul"))


@pytest.mark.parametrize(("prompt", "width"), [(50, 1), (50, 4), (9, 4)])
@pytest.mark.parametrize("window", [None, 13])
def test_a_budget_bounds_what_decode_steps_read_and_no_prompt(prompt, width, window):
    config = model(LayerKind(rope=Rope(), window=window))
    setting = dict(prompt=prompt, width=width, batch=2)
    plain, bound = (operators(config, "decode", **setting, **more) for more in ({}, {"kv_budget": 16}))
    reach = min(16, window or 16)
    seen = list(visible(width, prompt + width - 1, reach))
    assert bound["qk_matmul"].ops == 2 * 20 * 6 * 2 * sum(map(len, seen))
    assert bound["qk_matmul"].kv_read == len(set().union(*seen)) * 20 * 2 * 2 * 2
    assert bound["out_proj"] == plain["out_proj"]
    assert operators(config, "prefill", **setting) == operators(config, "prefill", **setting, kv_budget=16)
    found = analyze(config, A6000, Setting(**setting, generate=5, kv_budget=16)).peak_memory["kv"]
    assert found == 3 * 2 * min(prompt + 5, reach) * 2 * (20 + 20) * 2


@pytest.mark.parametrize(
    ("batch", "prompt", "on_chip", "window", "heads", "kv_heads", "width"),
    [
        (1, 1, 1e6, None, 6, 2, 20),
        (2, 37, 1e6, None, 6, 6, 20),
        (1, 200, 1e6, None, 6, 6, 20),
        (1, 200, 640, None, 6, 6, 20),
        (1, 333, 1e6, None, 8, 2, 16),
        (1, 333, 1e6, 50, 8, 2, 16),
        (1, 333, 1e6, 50, 8, 8, 16),
        (1, 333, 300, 10, 8, 4, 16),
        (3, 100, 1e6, 1000, 8, 1, 128),
        (1, 100, 1e6, 30, 8, 1, 4),
    ],
)
def test_fused_attention_reads_the_keys_that_each_block_of_queries_sees(
    batch, prompt, on_chip, window, heads, kv_heads, width
):
    config = model(LayerKind(rope=Rope(), window=window), n_heads=heads, n_kv_heads=kv_heads, head_dim=width)
    device = hardware.Hardware(**{**vars(A6000), "on_chip": on_chip})
    found = operators(config, "prefill", device, batch=batch, prompt=prompt, flash=True)["fused_attention"]
    block = min(math.ceil(on_chip / (4 * width * 2)), width)  # FlashAttention, algorithm 1, line 1
    group = heads // kv_heads
    tokens = max(1, block // group)  # of a block: a group's queries of a token read the same keys
    seen = list(visible(prompt, prompt, window))
    read = sum(len(set().union(*seen[i : i + tokens])) for i in range(0, prompt, tokens)) * math.ceil(group / block)
    assert found.kv_read == pytest.approx(read * kv_heads * batch * 2 * width * 2, rel=1e-12)
    assert found.written == found.read == batch * prompt * heads * width * 2  # once, and no scores
    step = operators(config, "decode", device, batch=batch, prompt=prompt, flash=True)["fused_attention"]
    if group <= block:
        assert step.kv_read == batch * kv_heads * min(prompt, window or prompt) * 2 * width * 2


def softmax(scores):
    largest = scores[0]
    for score in scores:
        largest = largest.most(score)
    raised = [(score - largest).exp() for score in scores]
    total = sum(raised)
    return [one / total for one in raised]


def sigmoid(x):
    return 1 / Reciprocal(1 + (-x).exp())


class Reciprocal:
    """A divisor of a plain number: `1 / x` is one operation."""

    def __init__(self, x):
        self.x = x

    def __rtruediv__(self, one):
        return self.x._do(lambda value: one / value)


def test_softmax_takes_five_operations_a_visible_score():
    found = operators(model(), "prefill", batch=2, prompt=11)["softmax"]
    tally = Tally()
    for _ in range(2 * 6):
        for seen in visible(11, 11):
            softmax(tally.numbers(range(len(seen))))
    assert found.ops == tally.ops


ACTIVATIONS = {
    "silu": lambda x: x / (1 + (-x).exp()),
    "gelu": lambda x: x * 0.5 * (1 + (x / math.sqrt(2)).erf()),
    "gelu_tanh": lambda x: 0.5 * x * (1 + (0.797885 * (x + 0.044715 * (x * x * x))).tanh()),
    "relu": lambda x: x.most(0),
    "relu2": lambda x: (lambda y: y * y)(x.most(0)),
}


@pytest.mark.parametrize("name", [*ACTIVATIONS, "swiglu_clamped"])
@pytest.mark.parametrize("is_gated", [True, False])
def test_the_activation_is_over_the_width_of_the_mlp(name, is_gated):
    if name == "swiglu_clamped" and not is_gated:
        return
    found = operators(model(activation=name, gated=is_gated), "prefill", batch=2, prompt=7)["mlp_act"]
    tally = Tally()
    for _ in range(2 * 7 * 112):
        gate, up = tally.numbers((0.3, 0.7))
        if name == "swiglu_clamped":
            gate, up = gate.least(7), up.least(7).most(-7)
            gate * sigmoid(1.702 * gate) * (up + 1)
        elif is_gated:
            ACTIVATIONS[name](gate) * up
        else:
            ACTIVATIONS[name](up)
    assert found.ops == tally.ops
    assert (found.read, found.written) == (2 * 7 * 112 * 2 * (2 if is_gated else 1), 2 * 7 * 112 * 2)
    assert found.layers == 3


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_take_their_operations_a_number(kind):
    found = operators(model(norm=kind), "prefill", batch=2, prompt=7)
    tally = Tally()
    for _ in range(2 * 7):
        xs, scale, bias = (tally.numbers(range(1, 49)) for _ in range(3))
        if kind == "layer":
            mean = sum(xs[1:], xs[0] + 0) / 48
            xs = [x - mean for x in xs]
        squares = [x * x for x in xs]
        root = (sum(squares) / 48 + 1e-5).inverse_root()
        xs = [x * root * s for x, s in zip(xs, scale, strict=True)]
        if kind == "layer":
            [x + b for x, b in zip(xs, bias, strict=True)]
    of_a_row = 3 if kind == "rms" else 4  # mean, epsilon and root: not one a number
    assert found["attn_norm"].ops == tally.ops - of_a_row * 2 * 7
    assert found["mlp_norm"].ops == found["final_norm"].ops == found["attn_norm"].ops
    assert found["attn_norm"].weights == 48 * 4


@pytest.mark.parametrize("width", [None, 8])
def test_rope_turns_queries_and_keys_by_pairs(width):
    found = operators(model(LayerKind(rope=Rope(width=width))), "prefill", batch=2, prompt=7)["rope"]
    tally = Tally()
    for _ in range(2 * 7 * (6 + 2)):
        for _ in range((width or 20) // 2):
            a, b, cos, sin = tally.numbers((1, 2, 3, 4))
            a * cos - b * sin, a * sin + b * cos
    assert found.ops == tally.ops
    assert found.read == found.written == 2 * 7 * 8 * (width or 20) * 2
    assert "rope" not in operators(model(LayerKind(rope=None)), "prefill", prompt=7)


def product(tally, a, b):
    """The product of arrays [..., m, k] and [..., k, n], counted: two operations a multiply-add."""
    tally.ops += (
        2 * math.prod(np.broadcast_shapes(a.shape[:-2], b.shape[:-2])) * a.shape[-2] * a.shape[-1] * b.shape[-1]
    )
    return a @ b


def test_linears_have_the_head_width_of_the_model_and_the_head_is_a_multiply_add():
    """Gemma 3's heads are as wide as they please: here 6 of 20 for a residual of 48."""
    found = operators(model(), "prefill", batch=2, prompt=7)
    shapes = {"q_proj": (48, 120), "k_proj": (48, 40), "v_proj": (48, 40), "out_proj": (120, 48)}
    shapes |= {"gate_proj": (48, 112), "up_proj": (48, 112), "down_proj": (112, 48)}
    for name, (ic, oc) in shapes.items():
        tally, one = Tally(), found[name]
        product(tally, np.zeros((14, ic)), np.zeros((ic, oc)))
        assert (one.ops, one.weights, one.read) == (tally.ops, 2 * ic * oc, 2 * 14 * ic)
        to_cache = name in ("k_proj", "v_proj")
        assert (one.kv_written, one.written) == ((2 * 14 * oc, 0) if to_cache else (0, 2 * 14 * oc))
    tally, head = Tally(), found["lm_head"]
    product(tally, np.zeros((2, 48)), np.zeros((48, 131)))  # the last token of each prompt
    assert (head.ops, head.weights, head.read, head.written) == (tally.ops, 2 * 48 * 131, 2 * 2 * 48, 4 * 2 * 131)
    assert operators(model(), "decode", batch=2, prompt=7, width=5)["lm_head"].ops == 5 * tally.ops
    assert "lm_head" not in operators(model(), "prefill", prompt=7, prompt_logits=False)


def test_the_embedding_reads_a_row_a_token():
    found = operators(model(), "prefill", batch=2, prompt=7)["embedding"]
    table, ids = np.zeros((131, 48), np.float16), np.arange(14)
    assert (found.ops, found.weights, found.written) == (0, table[ids].nbytes, table[ids].nbytes)
    int8 = operators(model(), "prefill", batch=2, prompt=7, weights=8)["embedding"]
    assert int8.weights == 14 * (48 + 2)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 16), (3, 8), (2, 16)])
def test_codes_bring_their_scales(bits, group):
    """A scale of 16 bits an output; or a scale and a zero point, 16 bits each, a group of inputs."""
    stored = Storage(bits, scales=32 / group) if group else Storage(bits, row_scales=16)
    found = operators(model(), "decode", prompt=7, weights=stored)
    for name, (ic, oc) in {"up_proj": (48, 112), "down_proj": (112, 48), "q_proj": (48, 120)}.items():
        total = 0
        for _ in range(oc):
            total += sum(bits for _ in range(ic)) + (32 * len(range(0, ic, group)) if group else 16)
        assert found[name].weights == pytest.approx(total / 8, rel=1e-12)
    for bits, by in ((8, 16 / 4096), (4, 32 / 128), (2, 32 / 128), (16, 0)):
        one = operators(SHAPES["llama-2-7b"], "decode", weights=bits)["up_proj"]
        assert one.weights == pytest.approx(4096 * 11008 * (bits + by) / 8)


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_keys_and_values_bring_theirs(bits):
    found = operators(model(), "decode", batch=2, prompt=7, kv=bits)
    a_key = (20 * bits + (0 if bits == 16 else 32)) / 8  # a float32 scale a token and head
    assert found["qk_matmul"].kv_read == pytest.approx(2 * 2 * 7 * a_key)
    assert found["k_proj"].kv_written == found["v_proj"].kv_written == pytest.approx(2 * 2 * a_key)
    kept = analyze(model(), A6000, Setting(batch=2, prompt=7, generate=4, kv=bits)).peak_memory["kv"]
    assert kept == pytest.approx(3 * 2 * (7 + 4) * 2 * 2 * a_key)


@pytest.mark.parametrize(
    ("weights", "activations", "rate"),
    [(16, 16, "bfloat16"), (4, 16, "bfloat16"), (8, 8, "int8"), (4, 8, "int8"), (4, 4, "int4"), (32, 32, "float32")],
)
def test_the_wider_operand_decides_the_peak(weights, activations, rate):
    setting = Setting(prompt=4096, weights=weights, activations=activations, kv=activations)
    found = {one.operator.name: one for one in analyze(SHAPES["llama-2-7b"], A6000, setting).stages["prefill"]}
    assert found["up_proj"].rate == A6000.flops[rate]
    assert found["up_proj"].seconds == pytest.approx(2 * 4096 * 4096 * 11008 / A6000.flops[rate])


EXPERTS = LayerKind(rope=Rope(), moe=MoE(experts=8, top_k=2, d_ff=56, shared_d_ff=24))


def routed(rounds, tokens):
    """Two of eight experts for each token, all as likely: i[rounds, tokens, 2]."""
    return np.argsort(np.random.default_rng(0).random((rounds, tokens, 8)))[..., :2]


@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
def test_experts_are_read_as_often_as_uniform_routing_touches_them(tokens):
    rounds = 1000
    touched = sum(len(set(chosen.flat)) for chosen in routed(rounds, tokens))
    found = operators(model(EXPERTS), "decode", batch=tokens, prompt=7)
    size = 48 * 56 * 2
    assert found["experts_up"].weights == pytest.approx(touched / rounds * size, rel=0.02)
    assert found["experts_up"].held == 8 * size
    assert found["experts_up"].ops == 2 * tokens * 2 * 48 * 56
    assert found["experts_act"].ops == tokens * 2 * 56 * 5
    assert found["router"].ops == 2 * tokens * 48 * 8
    assert found["up_proj[shared]"].ops == 2 * tokens * 48 * 24
    most = operators(model(EXPERTS), "decode", batch=tokens, prompt=7, routing="all")
    assert most["experts_up"].weights == min(8, 2 * tokens) * size


@pytest.mark.parametrize("devices", [2, 3, 6])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_ring_all_reduce_sends_what_its_simulation_sends(devices, stage):
    """Each device passes a part on to its neighbour, n - 1 times to add and n - 1 times to spread the sums."""
    tokens = 7 if stage == "prefill" else 1
    numbers = 2 * tokens * 48
    rng = np.random.default_rng(0)
    held = [rng.normal(size=(devices, numbers // devices)) for _ in range(devices)]  # partial outputs, in parts
    wanted, sent = sum(held), 0
    for step in range(2 * (devices - 1)):
        adding = step < devices - 1
        parts = [(rank - step + (0 if adding else 1 + devices - 1)) % devices for rank in range(devices)]
        moving = [held[rank][parts[rank]].copy() for rank in range(devices)]
        sent += moving[0].size * 2
        for rank in range(devices):
            to = held[(rank + 1) % devices]
            to[parts[rank]] = moving[rank] + (to[parts[rank]] if adding else 0)
    assert all(np.allclose(one, wanted) for one in held)
    found = operators(model(), stage, H100, batch=2, prompt=7, tensor=devices)
    assert found["attn_all_reduce"].wire == found["mlp_all_reduce"].wire == pytest.approx(sent)
    times = {one.operator.name: one for one in analyze(model(), H100, Setting(prompt=7, tensor=2)).stages[stage]}
    assert times["attn_all_reduce"].bound == "network"
    assert times["attn_all_reduce"].seconds == pytest.approx(tokens * 48 * 2 / H100.link)


def test_experts_elsewhere_get_their_tokens_and_send_them_back():
    """Tokens are spread over 4 devices of 2 experts each; an assignment crosses unless its expert is at home."""
    found = operators(model(EXPERTS), "prefill", H100, batch=4, prompt=10, expert=4)
    rounds, crossing = 300, 0
    for chosen, token in itertools.product(routed(rounds, 40), range(40)):
        crossing += sum(int(expert // 2 != token % 4) for expert in chosen[token])
    sent = 2 * crossing / rounds / 4 * 48 * 2  # there and back, by one of four devices
    assert found["experts_all_to_all"].wire == pytest.approx(sent, rel=0.02)
    assert found["experts_up"].ops == 2 * 40 * 2 * 48 * 56 / 4
    assert found["experts_up"].held == 2 * 48 * 56 * 2


def test_stages_of_a_pipeline_send_the_residual():
    found = operators(model(layers=6), "decode", H100, batch=2, prompt=7, pipeline=3)["pipeline_send"]
    assert (found.layers, found.wire) == (2, 2 * 48 * 2)


LATENT = MLA(kv_rank=24, nope_dim=12, rope_dim=8, v_dim=10, q_rank=18)


@pytest.mark.parametrize("q_rank", [None, 18])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_latent_attention_is_counted_in_its_absorbed_form(q_rank, stage):
    """The products of DeepSeek-V2, section 2.1, in numpy, whose result is that of the form that is not absorbed."""
    latent = MLA(kv_rank=24, nope_dim=12, rope_dim=8, v_dim=10, q_rank=q_rank)
    config = model(mla=latent, n_kv_heads=6, head_dim=20)
    found = operators(config, stage, prompt=9)
    rng, tallies = np.random.default_rng(0), collections.defaultdict(Tally)
    text, w = rng.normal(size=(9, 48)), {}
    x = text if stage == "prefill" else text[-1:]
    shapes = {"q": (q_rank or 48, 6 * 20), "kv": (48, 24 + 8), "k": (6, 24, 12), "v": (6, 24, 10), "o": (60, 48)}
    for name, shape in shapes.items():
        w[name] = 0.1 * rng.normal(size=shape)
    queries = x
    if q_rank:
        queries = product(tallies["q_down_proj"], x, rng.normal(size=(48, q_rank)))
    q = product(tallies["q_proj"], queries, w["q"]).reshape(-1, 6, 20).transpose(1, 0, 2)
    stored = product(tallies["kv_down_proj"], x, w["kv"])
    stored = text @ w["kv"]
    absorbed = product(tallies["q_absorb"], q[..., :12], w["k"].transpose(0, 2, 1))
    absorbed = np.concatenate([absorbed, q[..., 12:]], axis=-1)
    scores = absorbed @ stored.T
    seen = list(visible(len(x), 9))
    mask = np.array([[key in keys for key in range(9)] for keys in seen])
    weights = np.where(mask, np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    tallies["qk_matmul"].ops = sum(2 * (24 + 8) for keys in seen for _ in keys) * 6
    tallies["sv_matmul"].ops = sum(2 * 24 for keys in seen for _ in keys) * 6
    read = weights @ stored[:, :24]
    values = product(tallies["v_absorb"], read, w["v"])
    product(tallies["out_proj"], values.transpose(1, 0, 2).reshape(-1, 60), w["o"])
    # The same without absorbing: every head makes its own keys and values from the latents.
    keys = np.concatenate([stored[:, :24] @ w["k"], np.broadcast_to(stored[:, 24:], (6, 9, 8))], axis=-1)
    plain = np.where(mask, np.exp(q @ keys.transpose(0, 2, 1)), 0)
    plain = plain / plain.sum(-1, keepdims=True) @ (stored[:, :24] @ w["v"])
    assert np.allclose(values, plain)
    assert {name: found[name].ops for name in tallies} == {name: tally.ops for name, tally in tallies.items()}
    assert found["qk_matmul"].kv_read == 9 * 32 * 2
    assert found["kv_down_proj"].kv_written == len(x) * 32 * 2
    fused = operators(config, "decode", prompt=9, flash=True)["fused_attention"]
    assert fused.kv_read == 9 * 32 * 2  # values are columns of the keys that are read anyway


MAMBA = SSM(version=1, width=96, state=5, conv=4, dt_rank=3)
MAMBA2 = SSM(version=2, width=96, state=5, conv=4, heads=6, groups=2)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_scan_changes_every_number_of_the_state_a_token(version, stage):
    ssm = MAMBA if version == 1 else MAMBA2
    config = model(LayerKind("state", rope=None, mixer=ssm), d_ff=0)
    found = operators(config, stage, batch=2, prompt=7)
    tokens, tally = 2 * (7 if stage == "prefill" else 1), Tally()
    for _ in range(tokens):
        for head in range(96 if version == 1 else 6):
            del head
            x, dt, a = tally.numbers((0.5, 0.1, -1.0))
            channels = 1 if version == 1 else 16
            decay = None if version == 1 else (dt * a).exp()  # one a head
            for _ in range(channels):
                fed, out = dt * x, tally.number(0)
                for _ in range(5):
                    h, b, c = tally.numbers((0.2, 0.3, 0.4))
                    h = ((dt * a).exp() if version == 1 else decay) * h + fed * b
                    out = out + h * c
    assert found["scan"].ops == tally.ops
    assert found["scan"].weights == 4 * (96 * 5 if version == 1 else 6)
    assert found["scan"].kv_read == found["scan"].kv_written == 2 * 96 * 5 * 4  # once a call, whatever the tokens
    convolved = 96 if version == 1 else 96 + 2 * 2 * 5
    tally = Tally()
    for _ in range(tokens * convolved):
        total = tally.number(0)
        for _ in range(4):
            total = total + tally.number(1) * tally.number(2)
    assert found["conv"].ops == tally.ops
    assert found["conv"].kv_read == 2 * convolved * 3 * 4


def test_linear_attention_has_no_decay():
    config = model(LayerKind("state", rope=None, mixer=LinearAttention()), n_kv_heads=6)
    found = operators(config, "decode", batch=2, prompt=7)
    tally = Tally()
    for _ in range(2 * 6 * 21):  # the values of a head, and the sum that they are divided by
        out = tally.number(0)
        for _ in range(20):
            h, k, v, q = tally.numbers((1, 2, 3, 4))
            h = h + k * v
            out = out + h * q
    assert found["scan"].ops == tally.ops
    assert found["scan"].kv_read == 2 * 6 * 21 * 20 * 4


ONE_OF_EACH = (
    "llama-2-7b",
    "llama-3.2-1b",
    "mistral-7b",
    "mixtral-8x7b",
    "qwen2.5-0.5b",
    "qwen3-0.6b",
    "qwen3-30b-a3b",
    "gemma3-270m",
    "opt-125m",
    "falcon-7b",
    "gpt-oss-20b",
    "deepseek-v3",
    "smollm2-135m",
    "mamba-2.8b",
)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_weights_in_memory_are_the_parameters(name):
    """Bytes of the memory, two a parameter, are within 0.5 % of the model's own count; so are those of 4 bits."""
    config = SHAPES[name]
    found = analyze(config, A6000, Setting(prompt=16)).memory("decode").weights
    assert found == pytest.approx(2 * parameters(config), rel=5e-3)
    few = analyze(config, A6000, Setting(prompt=16, weights=Storage(4))).memory("decode").weights
    if not (config.mla or config.kinds[0].mixer or config.absolute_positions):  # of which a part keeps its bits
        assert few == pytest.approx(parameters(config) / 2, rel=0.015)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_cache_in_memory_is_dense_s(name):
    config = SHAPES[name]
    made = jax.eval_shape(lambda: Dense().init(config, 3, 256, jnp.float32)).stores
    stores = [(kind, made[kind.name]) for kind in config.kinds]
    wanted = 0
    for kind, store in stores:
        leaves = jax.tree.leaves(store.state if kind.mixer else (store.k, store.v))
        share = 1 if kind.mixer else min(kind.window or 256, 256) / 256  # layers with a window need no more
        wanted += share * sum(math.prod(leaf.shape) * 4 for leaf in leaves)
    setting = Setting(batch=3, prompt=200, generate=56, kv=32)
    assert analyze(config, A6000, setting).memory("decode").kv == pytest.approx(wanted)


def test_neurons_at_rest_and_layers_left_out_are_held_and_not_read():
    plain, early, sparse = (
        analyze(model(layers=8), A6000, Setting(prompt=7, **more)) for more in ({}, {"depth": 0.75}, {"active": 0.25})
    )
    ops = [[one.operator for one in found.stages["decode"]] for found in (plain, early, sparse)]
    assert [sum(one.ops * one.layers for one in made if one.name == "up_proj") for made in ops] == [
        2 * 48 * 112 * 8,
        2 * 48 * 112 * 6,
        2 * 48 * 28 * 8,
    ]
    assert plain.memory("decode").weights == early.memory("decode").weights == sparse.memory("decode").weights
    assert early.seconds("decode") < plain.seconds("decode")
    assert sparse.total("decode", "weights") < plain.total("decode", "weights")


@pytest.mark.parametrize(("generate", "width", "emitted"), [(1, 1, 1.0), (7, 1, 1.0), (200, 1, 1.0), (150, 4, 2.5)])
def test_a_generation_is_the_sum_of_its_steps(generate, width, emitted):
    found = analyze(model(), A6000, Setting(prompt=30, generate=generate, width=width, tokens_per_step=emitted))
    steps = math.ceil(generate / emitted)
    one_by_one = sum(found.step_seconds(int(30 + i * emitted)) for i in range(steps))
    assert found.generation["steps"] == steps
    assert found.generation["decode_seconds"] == pytest.approx(one_by_one, rel=1e-3)
    assert found.generation["seconds"] == pytest.approx(one_by_one + found.seconds("prefill"), rel=1e-3)

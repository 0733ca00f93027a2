"""The roofline on a mesh: collectives, links, pipelines and memory, each held to a slow count that is made here."""

import collections
import dataclasses
import itertools
import math

import numpy as np
import pytest

from jaxinfer.analysis import hardware
from jaxinfer.analysis.hardware.interconnect import Interconnect, links
from jaxinfer.analysis.roofline import Setting, analyze
from jaxinfer.analysis.roofline.analysis import call
from jaxinfer.analysis.roofline.meshes import axes_of, decode_step, local_seconds, prefill, stacked
from jaxinfer.analysis.roofline.network import operators
from jaxinfer.analysis.roofline.setting import AXES
from jaxinfer.config import MLA, LayerKind, ModelConfig, MoE, Rope, Segment
from jaxinfer.errors import InputError

pytestmark = pytest.mark.quick

V5E, H200 = hardware.get("v5e"), hardware.get("h200")
PLAIN = LayerKind(rope=Rope())
EXPERTS = LayerKind(rope=Rope(), moe=MoE(experts=8, top_k=2, d_ff=56, shared_d_ff=24))
LATENT = MLA(kv_rank=24, nope_dim=12, rope_dim=8, v_dim=10, q_rank=18)


def model(*kinds, layers=4, **changes):
    """A small model of ragged sizes, whose head width is not D / N."""
    plain = ModelConfig(
        family="small",
        vocab_size=132,
        d_model=48,
        d_ff=112,
        n_heads=8,
        n_kv_heads=2,
        head_dim=20,
        segments=(Segment(kinds or (PLAIN,), layers),),
        max_positions=4096,
        tie_embeddings=False,
    )
    return plain.replace(**changes)


def made(config, stage, device=V5E, **setting):
    """The operators of a stage by name."""
    one = call(config, Setting(**setting), stage, device.on_chip)
    return {operator.name: operator for operator in operators(one)}


def ring_gather(parts):
    """All parts on every device, by a ring: what each holds at the end, and the numbers that one of them sent."""
    n, sent = len(parts), 0
    held = [{rank: parts[rank]} for rank in range(n)]
    for step in range(n - 1):
        moving = [held[rank][(rank - step) % n] for rank in range(n)]
        sent += moving[0].size
        for rank in range(n):
            held[(rank + 1) % n][(rank - step) % n] = moving[rank]
    return held, sent


@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_fully_sharded_weights_are_gathered_layer_by_layer_in_every_call(devices, stage):
    config = model()
    shapes = [(48, 160), (48, 40), (48, 40), (160, 48), (48, 112), (48, 112), (112, 48)]
    weights = np.concatenate([np.zeros(math.prod(shape)) for shape in shapes])
    norms = 2 * 48 * 4  # float32
    held, sent = ring_gather(np.array_split(weights[: len(weights) // devices * devices], devices))
    assert all(sum(part.size for part in one.values()) == len(weights) // devices * devices for one in held)
    found = made(config, stage, batch=12, prompt=7, fsdp=devices)["fsdp_gather"]
    assert found.layers == 4
    assert found.wire == pytest.approx(2 * sent + norms * (devices - 1) / devices, rel=1e-3)
    # A tensor axis splits what is gathered, and rows are split over fsdp.
    half = made(config, stage, batch=12, prompt=7, fsdp=devices, tensor=2)["fsdp_gather"]
    assert half.wire - norms * (devices - 1) / devices == pytest.approx(sent, rel=1e-3)
    rows = made(config, stage, batch=12, prompt=7, fsdp=devices)["up_proj"]
    assert rows.ops == 2 * 12 // devices * (7 if stage == "prefill" else 1) * 48 * 112


def test_without_such_axes_nothing_is_sent():
    names = set(made(model(EXPERTS), "decode", batch=2, prompt=7))
    assert not {name for name in names if "gather" in name or "context" in name or "all" in name}


def softmax_parts(scores, values):
    top = scores.max()
    weights = np.exp(scores - top)
    return top, weights.sum(), weights @ values


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("width", [1, 3])
def test_a_decode_step_over_context_merges_partial_softmaxes(devices, width):
    """Each device attends to its own slots; a maximum, a sum and a value vector of each query and head are reduced."""
    rng, batch, slots, heads = np.random.default_rng(0), 2, 16, 8
    numbers = 0
    for _ in range(batch * heads * width):
        scores, values = rng.normal(size=slots), rng.normal(size=(slots, 20))
        parts = [softmax_parts(scores[d::devices], values[d::devices]) for d in range(devices)]
        top = max(part[0] for part in parts)
        sums = sum(part[1] * math.exp(part[0] - top) for part in parts)
        whole = sum(part[2] * math.exp(part[0] - top) for part in parts) / sums
        weights = np.exp(scores) / np.exp(scores).sum()
        assert np.allclose(whole, weights @ values)
        numbers += 1 + 1 + values.shape[1]
    sent = 2 * (devices - 1) * numbers / devices * 4  # a ring all-reduce in float32
    found = made(model(), "decode", batch=batch, prompt=slots, width=width, context=devices)
    assert found["context_merge"].wire + found["context_max"].wire == pytest.approx(sent)
    alone = made(model(), "decode", batch=batch, prompt=slots, width=width)
    if width == 1:  # the slots are read by one device each
        for name in ("qk_matmul", "sv_matmul"):
            assert found[name].kv_read == alone[name].kv_read / devices
            assert found[name].ops == alone[name].ops / devices
    assert found["q_proj"].ops == alone["q_proj"].ops  # the token's own products are computed on every device


@pytest.mark.parametrize("devices", [2, 4])
def test_a_prompt_over_context_sends_its_keys_around_a_ring(devices):
    tokens = 32
    keys = np.arange(tokens)
    seen = [set() for _ in range(devices)]
    sent = 0
    holding = np.split(keys, devices)
    for step in range(devices):
        for rank in range(devices):
            seen[rank] |= set(holding[rank])
        if step < devices - 1:
            sent += holding[0].size
            holding = [holding[rank - 1] for rank in range(devices)]
    assert all(one == set(keys) for one in seen)
    found = made(model(), "prefill", batch=3, prompt=tokens, context=devices)
    assert found["context_ring"].wire == sent * 3 * 2 * (20 + 20) * 2
    # The last device has the most pairs: its tokens see all before them.
    pairs = sum(query + 1 for query in np.split(keys, devices)[-1])
    assert found["qk_matmul"].ops == 2 * pairs * 20 * 8 * 3
    assert found["up_proj"].ops == 2 * 3 * tokens / devices * 48 * 112
    assert not any(one.layers for name, one in found.items() if name == "context_queries")  # nothing came before


def test_later_chunks_of_a_prompt_meet_the_slots_by_their_queries():
    config, devices, by = model(), 2, axes_of(V5E, (2, 2), {"context": 2})
    setting = Setting(batch=2, prompt=4096, generate=1, context=devices, flash=True)
    seconds, one = prefill(config, V5E, setting, by)
    chunk, calls = 1024, 4
    there, back, top = (devices - 1) / devices * 2 * 8 * chunk * np.array([20 * 2, 21 * 4, 2 * 4])
    ring = 2 * chunk / 2 * 2 * 40 * 2
    assert one.sent["context"] == pytest.approx(4 * (there + back + top + ring + ring / 2))
    assert seconds == pytest.approx(calls * one.seconds)


@pytest.mark.parametrize(("stages", "parts"), [(2, 1), (2, 2), (2, 6), (4, 4), (4, 1)])
def test_a_pipeline_takes_the_ticks_of_its_schedule(stages, parts):
    """Microbatches go through the stages one after the other; a stage takes one at a time (GPipe, figure 2)."""
    free, done, last_sends = [0] * stages, {}, 0
    for part in range(parts):
        for stage in range(stages):
            start = max(free[stage], done.get((part, stage - 1), 0))
            free[stage] = done[part, stage] = start + 1
    ticks = max(done.values())
    last_sends = ticks - 1
    setting = dict(batch=12, prompt=40, flash=True)
    config, by = model(layers=8), axes_of(H200, (8,), {"pipeline": stages})
    found = decode_step(config, H200, Setting(**setting, pipeline=stages, microbatches=parts), by, 40)
    layer = model(layers=8 // stages)
    of_stage = made(layer, "decode", H200, **{**setting, "batch": 12 // parts})
    outside = ("embedding", "final_norm", "lm_head")
    tick = sum(one.layers * local_seconds(one, H200) for name, one in of_stage.items() if name not in outside)
    whole = made(layer, "decode", H200, **setting)
    rest = sum(local_seconds(whole[name], H200) for name in outside)
    residual = 12 // parts * 48 * 2
    sends = last_sends * (residual / H200.link + H200.between.hop + H200.between.start)
    assert found.seconds == pytest.approx(ticks * tick + rest + sends)
    assert found.sent["pipeline"] == last_sends * residual
    alone = decode_step(config, H200, Setting(**setting), axes_of(H200, (1,), {}), 40).memory
    tables = 2 * 132 * 48 * 2
    assert found.memory.weights == pytest.approx((alone.weights - tables) / stages + tables)
    assert found.memory.kv == pytest.approx(alone.kv / stages)


@pytest.mark.parametrize(("kv_heads", "devices"), [(2, 1), (2, 2), (2, 4), (2, 8), (8, 4), (1, 4)])
def test_key_heads_fewer_than_the_devices_are_held_by_groups(kv_heads, devices):
    """Device d has an equal run of the query heads, and the keys and values that these read."""
    config = model(n_kv_heads=kv_heads)
    group, own = 8 // kv_heads, 8 // devices
    held = [{head // group for head in range(d * own, (d + 1) * own)} for d in range(devices)]
    assert len({len(heads) for heads in held}) == 1
    setting = Setting(batch=3, prompt=30, generate=10, tensor=devices)
    found = decode_step(config, H200, setting, axes_of(H200, (8,), {"tensor": devices}), 30)
    assert found.memory.kv == 4 * 3 * 40 * len(held[0]) * 2 * 20 * 2
    assert made(config, "decode", prompt=7, tensor=devices)["k_proj"].weights == 48 * 20 * len(held[0]) * 2


@pytest.mark.parametrize("experts", [2, 4])
def test_rows_and_experts_are_split_over_the_expert_axis(experts):
    alone, found = (made(model(EXPERTS), "decode", batch=8, prompt=7, expert=n) for n in (1, experts))
    assert found["q_proj"].ops == alone["q_proj"].ops / experts
    assert found["experts_up"].ops == pytest.approx(alone["experts_up"].ops / experts)
    assert found["experts_up"].held == alone["experts_up"].held / experts
    crossing = 0  # tokens lie on the devices in turn; of eight experts each is as likely, twice a token
    for token, expert in itertools.product(range(8), range(8)):
        crossing += 2 / 8 * int(token % experts != expert // (8 // experts))
    assert found["experts_all_to_all"].wire == pytest.approx(2 * crossing / experts * 48 * 2)
    kept = analyze(model(EXPERTS), H200, Setting(batch=8, prompt=7, expert=experts)).memory("decode").kv
    assert kept == 4 * 8 / experts * 8 * 2 * 40 * 2
    few = analyze(model(EXPERTS), H200, Setting(batch=1, prompt=7, expert=experts)).memory("decode").kv
    assert few == 4 * 8 * 2 * 40 * 2  # one row cannot be split


def test_fully_sharded_weights_are_held_in_part_and_two_layers_in_whole():
    config = model()
    alone, found = (
        decode_step(config, V5E, Setting(batch=4, prompt=7, fsdp=n), axes_of(V5E, (2, 2), {"fsdp": n}), 7).memory
        for n in (1, 4)
    )
    assert found.weights == alone.weights / 4
    layer = (alone.weights - 2 * 132 * 48 * 2) / 4
    rows = decode_step(config, V5E, Setting(batch=1, prompt=7), axes_of(V5E, (1, 1), {}), 7).memory
    assert found.activations == pytest.approx(rows.activations + 2 * layer)
    assert found.kv == rows.kv == alone.kv / 4


# Links: what passes over every link of a torus, counted message by message.


def places(slice_, stride, size):
    """The groups of an axis: coordinates of the devices in each, in the order of the axis."""
    grid = list(itertools.product(*map(range, slice_)))
    starts = [i for i in range(len(grid)) if i // stride % size == 0]
    return [[grid[start + stride * k] for k in range(size)] for start in starts]


def paths(slice_, a, b, ring):
    """The directed links of the ways from a to b in one dimension, each with its share."""
    (axis,) = [i for i in range(len(a)) if a[i] != b[i]]
    n, ways = slice_[axis], []
    for sign in (1, -1):
        hops = (b[axis] - a[axis]) * sign
        if hops < 0 and not ring:
            continue
        way, at = [], a[axis]
        for _ in range(hops % n):
            way.append((a[:axis], at, a[axis + 1 :], sign))
            at = (at + sign) % n
        ways.append(way)
    shortest = min(map(len, ways))
    ways = [way for way in ways if len(way) == shortest]
    return [(link, 1 / len(ways)) for way in ways for link in way]


CASES = [  # a slice, the stride and size of an axis in one dimension of it
    ((4, 4), 1, 4),
    ((4, 4), 4, 4),
    ((8, 8), 1, 4),
    ((8, 8), 2, 4),
    ((2, 4), 1, 2),
    ((16, 16), 1, 16),
    ((16, 16), 16, 16),
]


@pytest.mark.parametrize(("slice_", "stride", "size"), CASES)
def test_rates_of_a_torus_are_what_its_busiest_link_allows(slice_, stride, size):
    ring = size == 16
    load, exchanged = collections.Counter(), collections.Counter()
    for group in places(slice_, stride, size):
        for i, a in enumerate(group):
            for step in range(1, size):  # of an all-gather: a part goes on to the next device, both ways round
                for sign in (1, -1):
                    j, before = i + sign * step, i + sign * (step - 1)
                    if ring and step > size / 2:
                        continue
                    if not ring and not 0 <= j < size:
                        continue
                    share = 0.5 if ring and step == size / 2 else 1.0  # half of it from each side
                    way = paths(slice_, group[before % size], group[j % size], ring)
                    load.update({link: share * part for link, part in way})
            for b in group[:i] + group[i + 1 :]:
                exchanged.update({link: part / size for link, part in paths(slice_, a, b, ring)})
    one = V5E.link / 4
    found = links(V5E.link, V5E.between, slice_, stride, size)
    assert (size - 1) / found.reduce == pytest.approx(max(load.values()) / one)
    assert (size - 1) / size / found.exchange == pytest.approx(max(exchanged.values()) / one)
    next_ = collections.Counter()
    for group in places(slice_, stride, size):
        for a, b in itertools.pairwise(group):
            next_.update(dict(paths(slice_, a, b, ring)))
    assert 1 / found.neighbour == pytest.approx(max(next_.values()) / one)


def test_an_axis_over_both_dimensions_has_the_links_of_both():
    row, column, both = (links(V5E.link, V5E.between, (8, 8), *at) for at in ((1, 8), (8, 8), (1, 64)))
    assert both.reduce == row.reduce + column.reduce == V5E.link / 2
    assert both.hops == row.hops + column.hops == 14
    whole = links(V5E.link, V5E.between, (16, 16), 1, 256)
    assert whole.reduce == V5E.link  # rings in both
    assert whole.hops == 16
    cube, part = (links(600e9, Interconnect(3, 4, 8960, 0, 0, None), slice_, 1, 4) for slice_ in ((4, 4, 4), (2, 4, 4)))
    assert (cube.reduce, part.reduce) == (200e9, 100e9)  # a part of a cube has no rings


def test_a_switch_has_the_full_rate_everywhere_and_the_network_beyond_it():
    for stride, size in ((1, 8), (2, 4), (4, 2)):
        found = links(450e9, H200.between, (8,), stride, size)
        assert (found.reduce, found.exchange, found.neighbour, found.hops) == (450e9, 450e9, 450e9, size - 1)
    assert links(450e9, H200.between, (16,), 1, 16).reduce == links(450e9, H200.between, (16,), 8, 2).reduce == 50e9
    alone = dataclasses.replace(H200, link=None)
    assert axes_of(alone, (1, 8), {"tensor": 8})["tensor"].reduce == H200.host_link  # PCIe
    with pytest.raises(InputError, match="has no links"):
        axes_of(dataclasses.replace(alone, host_link=None), (1, 8), {"tensor": 8})


def test_small_collectives_take_the_latency_of_their_hops():
    config, size = model(), {"tensor": 8}
    found = decode_step(config, V5E, Setting(prompt=7, tensor=8), axes_of(V5E, (2, 4), size), 7)
    bytes_ = 2 * 4 * 48 * 2 * (2 * 7 / 8)
    hops = 1 + 3
    assert found.wire == pytest.approx(bytes_)
    assert found.collectives == pytest.approx(bytes_ / (V5E.link / 2) + 2 * 4 * 2 * hops * 1e-6)


MODELS = {
    "dense": model(),
    "windows": model(LayerKind("local", rope=Rope(), window=24), PLAIN, layers=2),
    "experts": model(EXPERTS),
    "latent": model(EXPERTS, mla=LATENT, n_kv_heads=8),
}


@pytest.mark.parametrize("name", MODELS)
def test_many_settings_at_once_are_each_of_them(name):
    config, rng = MODELS[name], np.random.default_rng(1)
    rows = []
    for _ in range(12):
        sizes = {axis: int(rng.choice([1, 2, 4])) for axis in AXES}
        sizes["expert"] = sizes["expert"] if config.kinds[0].moe else 1
        parts = int(rng.choice([1, 2]))
        rows.append((sizes, 16 * 4 * parts * int(rng.choice([1, 3])), parts))
    plain = dict(prompt=640, generate=8, weights=8, kv=8, flash=True)
    by = [axes_of(V5E, (64, 64), sizes) for sizes, _, _ in rows]
    columns = {axis: np.array([float(sizes[axis]) for sizes, _, _ in rows]) for axis in AXES}
    batch, parts = (np.array([float(row[i]) for row in rows]) for i in (1, 2))
    many = Setting(**plain, **columns, batch=batch, microbatches=parts)
    together = decode_step(config, V5E, many, stacked(by), 640.5), prefill(config, V5E, many, stacked(by))[1]
    for i, (sizes, size, microbatches) in enumerate(rows):
        one = Setting(**plain, **sizes, batch=size, microbatches=microbatches)
        alone = decode_step(config, V5E, one, by[i], 640.5), prefill(config, V5E, one, by[i])[1]
        for all_, single in zip(together, alone, strict=True):
            assert np.broadcast_to(all_.seconds, 12)[i] == pytest.approx(single.seconds)
            assert np.broadcast_to(all_.wire, 12)[i] == pytest.approx(single.wire)
            for kind, value in single.memory.as_dict().items():
                assert np.broadcast_to(all_.memory.as_dict()[kind], 12)[i] == pytest.approx(value), kind


def test_on_one_device_it_is_the_roofline():
    config = model()
    setting = Setting(batch=4, prompt=300, generate=20, flash=True, prompt_logits=False)
    known, by = analyze(config, V5E, setting), axes_of(V5E, (1, 1), {})
    found = decode_step(config, V5E, setting, by, 300)
    assert found.seconds == pytest.approx(known.seconds("decode"))
    assert prefill(config, V5E, setting, by)[0] == pytest.approx(known.seconds("prefill"))
    assert found.memory.as_dict() == known.memory("decode").as_dict()
    # In chunks the pairs are the same, and weights are read again.
    long = analyze(config, V5E, setting.replace(prompt=2048))
    _, chunk = prefill(config, V5E, setting.replace(prompt=2048), by)
    pairs = sum(one.operator.ops for one in long.stages["prefill"] if one.operator.kind == "attention")
    chunks = [call(config, setting.replace(prompt=512), "prefill", V5E.on_chip)] * 4
    contexts = [dataclasses.replace(one, context=512 * (i + 1)) for i, one in enumerate(chunks)]
    made_ = [x for one in contexts for x in operators(one) if x.kind == "attention"]
    assert sum(one.ops for one in made_) == pytest.approx(pairs)
    assert 4 * chunk.seconds > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (dict(batch=3, data=2), r"^batch=3 must be a multiple of data=2: each"),
        (dict(batch=6, data=2, fsdp=2), r"^batch=6 must be a multiple of data=2 x fsdp=2: each"),
        (dict(batch=2, microbatches=4), r"^batch=2 must be a multiple of microbatches=4: each"),
        (dict(context=0), r"^context=0 must be a whole number from 1$"),
        (dict(fsdp=-1), r"^fsdp=-1 must be a whole number from 1$"),
    ],
)
def test_sizes_that_cannot_be_are_named(setting, message):
    with pytest.raises(InputError, match=message):
        Setting(**setting)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ("{dimensions: 2}", "constant 'interconnect.wraps' is missing"),
        ("{dimension: 2}", "interconnect has no constant 'dimension'; nearest: 'dimensions'"),
        ("3", "must be a mapping, not 3"),
        (
            "{dimensions: -1, wraps: 1, domain: 8, hop: 0, start: 0, network: null}",
            "dimensions: must be a whole number",
        ),
        ("{dimensions: 0, wraps: 1, domain: 8, hop: -1, start: 0, network: null}", "hop: must be seconds, 0 or above"),
        ("{dimensions: 0, wraps: 1, domain: 8, hop: 0, start: 0, network: 0}", "network: must be a positive finite"),
    ],
)
def test_an_interconnect_of_a_file_is_checked(tmp_path, between, message):
    path = tmp_path / "mine.yaml"
    text = "name: a\ntitle: b\nkind: gpu\nbandwidth: 1e12\nflops: {float32: 2e13}\nmemory: 8e9\non_chip: 2e7\n"
    path.write_text(f"{text}link: 1e9\nhost_link: null\npower: null\ninterconnect: {between}\n")
    with pytest.raises(InputError, match=message):
        hardware.get(path)

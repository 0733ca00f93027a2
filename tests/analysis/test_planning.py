"""Plans: the best of a small space found by brute force, limits, memory, proofs, the command and bad input."""

import dataclasses
import itertools
import json
import math
import re

import pytest

from jaxinfer.analysis import hardware
from jaxinfer.analysis.planning import FAMILIES, Family, Goal, Proof, family, plan, planner, slices
from jaxinfer.analysis.planning.predicting import USABLE
from jaxinfer.analysis.planning.smallest import fastest, smallest
from jaxinfer.analysis.roofline import Setting, analyze
from jaxinfer.analysis.roofline.formats import kv_storage, weight_storage
from jaxinfer.analysis.roofline.meshes import axes_of, decode_step, prefill
from jaxinfer.checkpoint.presets import SHAPES
from jaxinfer.cli import commands as cli
from jaxinfer.cli import plan as command
from jaxinfer.config import LayerKind, ModelConfig, MoE, Rope, Segment
from jaxinfer.errors import InputError

pytestmark = pytest.mark.quick

GOAL = Goal(prompt=96, output=32)
EXPERTS = LayerKind(rope=Rope(), moe=MoE(experts=4, top_k=2, d_ff=256))


def model(kind=EXPERTS):
    return ModelConfig(
        family="small",
        vocab_size=512,
        d_model=128,
        d_ff=256,
        n_heads=8,
        n_kv_heads=2,
        head_dim=32,
        segments=(Segment((kind,), 4),),
        max_positions=4096,
        tie_embeddings=False,
    )


@pytest.fixture
def few(monkeypatch):
    """A family of two small slices whose chips hold little."""
    device = dataclasses.replace(hardware.get("v5e"), memory=2.5e6)
    monkeypatch.setattr(slices.hardware, "get", lambda name: device)
    found = Family("v5e", "tpu-v5e", ((2, 2), (2, 4)))
    monkeypatch.setitem(FAMILIES, "v5e", found)
    return found


def brute_force(config, machines, goal, weights, kv, dollars):
    """Every mesh and batch, one by one: (cost, tpot, ttft, target, mesh, batch, microbatches) of those that fit."""
    axes = ("data", "fsdp", "pipeline", "expert", "context", "tensor")
    found = []
    for slice_ in machines.slices:
        chips = math.prod(slice_)
        for sizes in itertools.product((1, 2, 4, 8), repeat=6):
            mesh = dict(zip(axes, sizes, strict=True))
            if math.prod(sizes) != chips or mesh["pipeline"] > 4 or mesh["expert"] > 4:
                continue
            rows = mesh["data"] * mesh["fsdp"] * mesh["expert"]
            for batch, times in itertools.product((2**i for i in range(13)), (0, 1, 2)):
                parts = max(1, times * mesh["pipeline"])
                if batch % (rows * parts) or (mesh["pipeline"] == 1 and times):
                    continue
                setting = Setting(
                    batch=batch, prompt=goal.prompt, generate=goal.output, weights=weight_storage(weights),
                    kv=kv_storage(kv), flash=True, microbatches=parts, **mesh,
                )  # fmt: skip
                by = axes_of(machines.hardware, slice_, mesh)
                reading, chunk = prefill(config, machines.hardware, setting, by)
                steps = [
                    decode_step(config, machines.hardware, setting, by, goal.prompt + i)
                    for i in (0, (goal.output + 1) / 2)
                ]
                held = steps[1].memory
                temporaries = max(x.activations + x.logits for x in (chunk.memory, held))
                if held.weights + held.kv + temporaries > USABLE * machines.hardware.memory:
                    continue
                seconds = reading + goal.output * steps[1].seconds
                cost = dollars * chips * seconds / 3600 / (batch * goal.output) * 1e6
                named = ",".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1)
                found.append((cost, steps[1].seconds, reading + steps[0].seconds, slice_, named, batch, parts))
    return found


def test_the_best_is_what_a_loop_over_the_whole_space_finds(few):
    config = model()
    wanted = brute_force(config, few, GOAL, "int8", "bfloat16", 2.0)
    found = plan(config, "v5e", GOAL, weights=["int8"], kv=["bf16"], price=2.0)
    assert found.fitting == len(wanted) > 100
    assert found.points > found.fitting
    assert found.by_cost[0].cost == pytest.approx(min(wanted)[0])
    assert found.by_latency[0].tpot == pytest.approx(min(one[1] for one in wanted))
    known = {(one[3], one[4], one[5], one[6]): one[:3] for one in wanted}
    for one in found.options:
        key = (slices.dims(one.target.split(":")[1]), str(one.mesh), one.batch, one.microbatches)
        assert known[key] == pytest.approx((one.cost, one.tpot, one.ttft))
        better = [x for x in wanted if x[0] < one.cost * (1 - 1e-9) and x[1] < one.tpot * (1 - 1e-9)]
        assert not [x for x in better if x[2] < one.ttft * (1 - 1e-9)]
    # Nothing that is beaten by none is left out.
    for cost, tpot, ttft in known.values():
        assert any(
            one.cost <= cost * (1 + 1e-9) and one.tpot <= tpot * (1 + 1e-9) and one.ttft <= ttft * (1 + 1e-9)
            for one in found.options
        )


def test_memory_is_the_roofline_s():
    found = plan("llama-3-8b", "h200:1", Goal(prompt=512, output=256, batch=8), weights=["int8"], kv=["int8"])
    (one,) = found.options
    setting = Setting(  # the cache has a power of two of slots
        batch=8, prompt=512, generate=512, weights=weight_storage("int8"), kv=kv_storage("int8"), flash=True
    )
    known = analyze(SHAPES["llama-3-8b"], hardware.get("h200"), setting.replace(prompt_logits=False))
    decode, reading = known.memory("decode"), known.memory("prefill")
    assert one.bytes["weights"] == pytest.approx(decode.weights)
    assert one.bytes["cache"] == pytest.approx(decode.kv)
    assert one.bytes["temporaries"] == pytest.approx(max(x.activations + x.logits for x in (decode, reading)))


def test_limits_are_kept_and_cost_what_they_cost():
    free = plan("llama-3-70b", "v5e:4x4", Goal(), weights=["int8"], kv=["int8"])
    tight = plan("llama-3-70b", "v5e:4x4", Goal(ttft=1.0, tpot=0.012), weights=["int8"], kv=["int8"])
    assert free.by_cost[0].ttft > 1.0
    assert tight.meeting < free.meeting == free.fitting == tight.fitting
    assert all(one.ttft <= 1.0 and one.tpot <= 0.012 for one in tight.options)
    assert tight.by_cost[0].cost > free.by_cost[0].cost
    assert [one.cost for one in tight.by_cost] == sorted(one.cost for one in tight.options)
    assert [one.tpot for one in tight.by_latency] == sorted(one.tpot for one in tight.options)
    more = plan("llama-3-70b", "v5e:4x4", Goal(context=4096), weights=["int8"], kv=["int8"])
    assert more.fitting < free.fitting


def test_a_rate_takes_as_many_slices_as_it_needs():
    alone = plan("llama-3-8b", "v5e:2x2", Goal(batch=16), weights=["int8"], kv=["int8"]).by_cost[0]
    rate = 3.4 * alone.rate
    found = plan("llama-3-8b", "v5e:2x2", Goal(batch=16, rate=rate), weights=["int8"], kv=["int8"], price=1.0)
    one = next(x for x in found.options if x.mesh == alone.mesh)
    assert (one.copies, one.chips) == (4, 16)
    assert one.rate == pytest.approx(4 * alone.rate)
    assert one.cost == pytest.approx(16 / 3600 / rate * 1e6)  # what is not used is paid for


def test_thousands_of_combinations_take_seconds():
    found = plan("llama-3-70b", "v5e")
    assert found.points > 100_000
    assert found.seconds < 20
    assert {(one.weights, one.kv) for one in found.options} == set(
        itertools.product(("bfloat16", "int8", "int4"), ("bfloat16", "int8"))
    )
    assert len({one.target for one in found.options}) > 3
    assert found.price == 1.2
    assert "Google" in found.source


def test_the_smallest_slice_is_the_first_that_fits():
    config, goal = SHAPES["llama-3-70b"], Goal(prompt=1024, output=1024, batch=16)
    sizes = {weights: smallest(config, family("v5e"), goal, weights, "bfloat16") for weights in planner.WEIGHTS}
    # 141 GB of weights in 16 bits; chips of 17 GB.
    assert [sizes[weights].chips for weights in planner.WEIGHTS] == [16, 8, 8]
    below = Family("v5e", "tpu-v5e", family("v5e").slices[:3])
    assert smallest(config, below, goal, "bfloat16", "bfloat16") is None
    assert sizes["bfloat16"] == fastest(config, family("v5e"), (4, 4), goal, "bfloat16", "bfloat16")
    assert sizes["bfloat16"].total < USABLE * 2**34


def test_devices_of_a_chip_share_it():
    found, chip = family("v7"), hardware.get("tpu-v7")
    assert (found.hardware.memory, found.hardware.bandwidth) == (chip.memory / 2, chip.bandwidth / 2)
    one = fastest(SHAPES["llama-3-8b"], found, (2, 2, 1), Goal(batch=8), "bfloat16", "bfloat16")
    assert (one.mesh.size, one.chips) == (8, 4)


class Fake:
    """A compiler: it remembers what it was asked, and answers in turn."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, config, option, goal):
        self.asked.append(option)
        return self.answers.pop(0)


FITS = Proof(True, {"weights": 3e9, "cache": 1e9}, 16e9)


def test_the_cheapest_are_proved_and_the_others_are_not():
    fake, said = Fake(FITS, Proof(False, {"weights": 2e10}, 16e9)), []
    found = plan("llama-3-8b", "v5e:2x2", GOAL, prove=2, prover=fake, say=said.append)
    assert fake.asked == [dataclasses.replace(one, proof=None) for one in found.by_cost[:2]]
    assert [one.proof.fits for one in found.by_cost[:2]] == [True, False]
    assert {one.proof for one in found.by_cost[2:]} == {None}
    assert len(said) == 2
    assert "compiling 1 of 2: v5e:2x2" in said[0]
    plain = found.as_dict()["options"]
    assert plain[0]["proved"]["total"] == 4e9
    assert plain[0]["proved"]["fits"] is True
    assert plain[5]["proved"] is None
    assert set(plain[0]["predicted"]) == {"ttft", "tpot", "rate", "cost", "sent", "waited", "bytes"}


def test_a_compiler_that_is_not_there_is_no_proof(monkeypatch):
    monkeypatch.setattr("jaxinfer.analysis.planning.proving.STUDY", "jaxinfer.no_such_module")
    found = plan("llama-3-8b", "v5e:2x2", GOAL, prove=1)
    assert found.by_cost[0].proof.fits is None
    assert "no_such_module" in found.by_cost[0].proof.why


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llama-3-80b", "v5e"), r"llama-3-80b: is no known shape.*nearest: 'llama-3-8"),
        (("llama-3-8b", "v5"), r"^target v5: is none of v4, v5e, .*; nearest: 'v5"),
        (("llama-3-8b", "v5e:3x3"), r"^target v5e:3x3: the slices of v5e are 1x1, 2x2"),
        (("llama-3-8b", ""), r"^target='' must be one of"),
        (("llama-3-8b", "v5e", Goal(prompt=8000, output=1000)), r"9000 tokens of a request are more than the 8192"),
        (("llama-3-8b", "v5e", GOAL, ["int5"]), r"^weights='int5' must be one of .*; nearest: 'int"),
        (("llama-3-8b", "v5e", GOAL, []), r"^weights: give at least one of"),
        (("llama-3-8b", "v5e", GOAL, ["int8"], ["int7"]), r"^kv='int7' must be one of"),
        (("llama-3-8b", "v5e", GOAL, ["int8"], ["int8"], -1.0), r"^plan: price=-1.0 must be a number above 0"),
        (("llama-3-8b", "v5e", GOAL, ["int8"], ["int8"], 1.0, -1), r"^prove=-1 must be a whole number from 0"),
        (("llama-3-8b", "v7"), r"^target v7: no price is known; give --price"),
        (
            ("llama-3-70b", "v5e:2x2", Goal(), ["bfloat16"]),
            r"nothing fits: the nearest is v5e:2x2 with .* GiB a chip of",
        ),
        (
            ("llama-3-70b", "v5e:4x4", Goal(tpot=0.001, batch=16)),
            r"nothing meets the goal: the nearest is v5e:4x4 .* with tpot [\d.]+ ms of 1 ms \([\d.]+ times\)$",
        ),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        plan(*arguments)
    assert "\n" not in str(caught.value)


def test_the_nearest_miss_is_the_nearest():
    goal = Goal(tpot=0.001, ttft=0.01, batch=16)
    with pytest.raises(InputError) as caught:
        plan("llama-3-70b", "v5e:4x4", goal, weights=["int8"], kv=["int8"])
    times = max(float(x) for x in re.findall(r"\(([\d.]+) times\)", str(caught.value)))
    free = plan("llama-3-70b", "v5e:4x4", Goal(batch=16), weights=["int8"], kv=["int8"])
    least = min(max(one.tpot / goal.tpot, one.ttft / goal.ttft) for one in free.options)
    assert times == pytest.approx(least, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompt=0), "prompt=0 must be a whole number from 1"),
        (dict(output=-3), "output=-3 must be"),
        (dict(batch=0), "batch=0 must be"),
        (dict(batch=1.5), "batch=1.5 must be"),
        (dict(prompt=True), "prompt=True must be"),
        (dict(context=100), "context=100 must be at least prompt \\+ output = 1280"),
        (dict(ttft=0), "ttft=0 must be a number above 0"),
        (dict(tpot=math.nan), "tpot=nan must be"),
        (dict(rate=-1), "rate=-1 must be"),
    ],
)
def test_goals_are_checked(changes, message):
    with pytest.raises(InputError, match=f"^goal: {message}"):
        Goal(**changes)


@pytest.fixture
def jaxinfer_(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["jaxinfer", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr()

    return call


LINE = ("plan", "--model", "llama-3-8b", "--target", "v5e:2x2", "--prompt", "96", "--output", "32")


def test_the_command_tells_what_is_predicted_from_what_is_proved(jaxinfer_, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "compiled", Fake(FITS, Proof(None, why="pip install this")))
    file = tmp_path / "plan.html"
    code, out, err = jaxinfer_(*LINE, "--prove", "2", "--top", "4", "--html", str(file))
    assert code == 0
    head = next(line for line in out.splitlines() if line.startswith("| target"))
    assert head.count("predicted") == 5
    assert "proved GiB" in head
    assert out.count("v5e:2x2") >= 8
    assert "fits" in out
    assert "not compiled: pip install this" in out
    assert "nothing is measured" in out
    assert "compiling 1 of 2" in err
    page = file.read_text()
    assert page.count("<svg") == 1
    assert "proved to fit" in page
    assert not re.search(r"(src|href)=\"(?!#)|url\(|@import|https?://(?!www.w3.org)", page)


def test_the_command_prints_json(jaxinfer_):
    code, out, _ = jaxinfer_(*LINE, "--prove", "0", "--json", "--weights", "int8", "--tpot", "50", "--price", "3")
    found = json.loads(out)
    assert code == 0
    assert (found["price"], found["source"], found["goal"]["tpot"]) == (3.0, "given", 0.05)
    assert {one["weights"] for one in found["options"]} == {"int8"}
    assert found["points"] >= found["fitting"] >= found["meeting"] >= len(found["options"]) > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tpot", "0"), "--tpot: 0.0 must be a number of ms above 0"),
        (("--batch", "-2"), "goal: batch=-2 must be a whole number from 1"),
        (("--top", "0"), "--top: 0 must be a whole number from 1"),
        (("--html", "/no/such/folder/x.html"), "--html: /no/such/folder/x.html: give a file in a folder that exists"),
        (("--weights", "int9"), "weights='int9' must be one of"),
        (("--tpot", "0.0001"), "nothing meets the goal"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(jaxinfer_, more, message):
    code, out, err = jaxinfer_(*LINE, *more)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""

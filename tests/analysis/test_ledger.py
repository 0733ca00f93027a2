"""The ledger: what physics allows, what the compiler made, what the clock said."""

import json
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer
from jaxinfer.analysis import profile
from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.ledger import ledger, losses, meter
from jaxinfer.analysis.ledger.measuring import described
from jaxinfer.analysis.ledger.physics import compulsory, physics, setting_of, storage
from jaxinfer.analysis.ledger.running import Timing
from jaxinfer.analysis.roofline import Setting, Storage
from jaxinfer.analysis.step_cost import standing
from jaxinfer.compress import quantize_weights
from jaxinfer.decoding.contract import Draft
from jaxinfer.errors import InputError
from jaxinfer.runtime import compiled

pytestmark = pytest.mark.quick

DEVICE = Hardware("test", "A test", "cpu", 1e9, {"float32": 1e11}, 1e10, 1e6, None, None, None, {})
SLEEP = 0.02


@pytest.fixture(scope="module")
def found(tiny_llama):
    return ledger(tiny_llama, prompt=20, batch=2, steps=4, rounds=2, hardware=DEVICE)


@pytest.fixture(scope="module")
def generation(tiny_llama):
    return standing(tiny_llama, 1, 2, 20, 100)


def test_parts_add_up_to_what_the_clock_said_beyond_the_bound(found):
    assert set(found.stages) == {"prefill", "decode"}
    for stage in found.stages.values():
        lost = sum(loss.milliseconds for loss in stage.losses)
        assert lost == pytest.approx(1e3 * (stage.timing.seconds - stage.physics.seconds), rel=1e-6)
        assert [loss.milliseconds for loss in stage.losses] == sorted(
            (loss.milliseconds for loss in stage.losses), reverse=True
        )
        assert all(loss.why for loss in stage.losses)


def test_the_clock_is_that_of_the_loop(generation, found):
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        generation.advance(4)
        taken.append((time.perf_counter() - start) / 4)
    clock = found.stages["decode"].timing
    assert 0.1 * min(taken) < clock.seconds < 20 * max(taken)
    parts = sum(clock.operators.values()) + clock.between + clock.host
    assert parts == pytest.approx(clock.seconds)


def test_as_plain_data(found):
    data = json.loads(json.dumps(found.as_dict()))
    assert set(data) == {"hardware", "setting", "stages", "sentence"}
    assert data["hardware"] == "test"
    assert data["setting"]["prompt"] == [20, 20]
    for stage in data["stages"].values():
        assert set(stage) == {"physics", "compiler", "clock", "losses"}
        assert {"seconds", "ops", "bytes", "bound", "operators"} == set(stage["physics"])
        operator = {"name", "kind", "layers", "ops", "bytes", "intensity", "bound", "rate", "seconds"}
        assert all(set(one) == operator for one in stage["physics"]["operators"])
        made = {"ops", "bytes", "fusions", "kernels", "copies", "unaliased", "temp_bytes", "peak_bytes"}
        assert set(stage["compiler"]) == made
        assert {"seconds", "mbu", "mfu", "operators"} <= set(stage["clock"])
        assert all(set(one) == {"name", "seconds"} for one in stage["clock"]["operators"])
        assert all(set(one) == {"name", "milliseconds", "why"} for one in stage["losses"])
    largest = data["stages"]["decode"]["losses"][0]["name"]
    assert largest in data["sentence"]
    assert largest in found.markdown()
    assert found.table().row_count == len(found.rows())


def test_operators_of_the_clock_are_those_of_the_roofline(found):
    for stage in found.stages.values():
        clock = set(stage.timing.operators)
        expected = {"q_proj", "k_proj", "v_proj", "out_proj", "gate_proj", "up_proj", "down_proj"}
        assert expected <= clock
        assert expected <= {one.operator.name for one in stage.physics.operators}
    assert "lm_head" in found.stages["decode"].timing.operators
    assert "lm_head" not in found.stages["prefill"].timing.operators


def test_compulsory_bytes_are_those_that_a_step_reads(tiny_llama, generation):
    length = np.asarray(generation.state.n).tolist()
    step = physics(tiny_llama.config, DEVICE, setting_of(tiny_llama, generation.state.cache), "decode", length)
    cfg = tiny_llama.config
    layer = (2 * cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim * cfg.d_model + 3 * cfg.d_model * cfg.d_ff
    norms = 2 * cfg.d_model * cfg.n_layers + cfg.d_model
    weights = 4 * (cfg.n_layers * layer + norms + cfg.vocab_size * cfg.d_model)
    kv = 4 * 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * (sum(length) + len(length))  # read, and the new ones
    assert step.bytes == pytest.approx(weights + kv + 4 * 2 * cfg.d_model, rel=1e-6)
    assert step.seconds == pytest.approx(step.bytes / 1e9)
    assert sum(step.share(one.operator) for one in step.operators) == pytest.approx(step.seconds)


def test_a_prefill_that_is_bound_by_arithmetic_shares_that(tiny_llama):
    slow = Hardware("slow", "Slow", "cpu", 1e12, {"float32": 1e6}, 1e10, 1e6, None, None, None, {})
    stage = physics(tiny_llama.config, slow, Setting(weights=32, activations=32, kv=32), "prefill", [50])
    assert stage.bound == "compute"
    assert stage.seconds == pytest.approx(stage.ops / 1e6)
    assert sum(stage.share(one.operator) for one in stage.operators) == pytest.approx(stage.seconds)


def test_rows_of_unlike_length_read_the_weights_once(tiny_gemma):
    setting = Setting(weights=32, activations=32, kv=32)

    def step(*lengths):
        return physics(tiny_gemma.config, DEVICE, setting, "decode", lengths)

    def kv(one):
        return sum((x.operator.kv_read + x.operator.kv_written) * x.operator.layers for x in one.operators)

    both, short, long = step(5, 90), step(5), step(90)
    assert kv(both) == pytest.approx(kv(short) + kv(long))
    assert both.ops == pytest.approx(short.ops + long.ops)
    assert short.bytes < both.bytes < short.bytes + long.bytes
    assert step(7, 7).bytes == pytest.approx(step(7, 7, 7).bytes - (kv(step(7))) - 4 * tiny_gemma.config.d_model)


def test_a_setting_is_described_by_what_is_not_the_default():
    assert described(jaxinfer.Lookup(width=4)) == {"name": "lookup", "width": 4}
    assert described(jaxinfer.Paged(format="int8")) == {"name": "paged", "format": "int8"}


def test_bits_are_those_of_what_is_stored(tiny_llama, generation):
    assert storage(100, 25) == Storage(32)
    assert storage(9, 16) == Storage(4, scales=0.5)
    small = quantize_weights(tiny_llama, "int8")
    found = setting_of(small, generation.state.cache)
    assert found.stored_weights.bits == 8
    assert found.stored_kv == Storage(32)
    assert found.activations == 32


def test_rows_of_unlike_length_and_a_second_call_that_compiles_nothing(tiny_gemma):
    first = ledger(tiny_gemma, prompt=[3, 17, 9], steps=2, rounds=1, hardware=DEVICE)
    before = dict(compiled.TRACES)
    second = ledger(tiny_gemma, prompt=[3, 17, 9], steps=2, rounds=1, hardware=DEVICE)
    assert dict(compiled.TRACES) == before
    assert second.setting["prompt"] == [3, 17, 9]
    for name in ("prefill", "decode"):
        assert first.stages[name].compiler == second.stages[name].compiler
    names = set(second.stages["decode"].timing.operators)
    assert {f"q_proj[{kind.name}]" for kind in tiny_gemma.config.kinds} <= names


@dataclass(frozen=True)
class Sleepy(jaxinfer.Greedy):
    """Greedy decoding whose guesses take long."""

    def propose(self, ctx, state):
        draft = super().propose(ctx, state)

        def slow(tokens):
            time.sleep(SLEEP)
            return np.asarray(tokens)

        shape = jax.ShapeDtypeStruct(draft.tokens.shape, draft.tokens.dtype)
        return Draft(jax.pure_callback(slow, shape, draft.tokens), draft.size)


def test_a_slow_part_is_the_largest_loss(tiny_llama):
    found = ledger(tiny_llama, prompt=8, method=Sleepy(), steps=4, rounds=1, hardware=DEVICE)
    largest = found.stages["decode"].losses[0]
    assert largest.name == "proposing"
    assert 0.9e3 * SLEEP < largest.milliseconds <= 1e3 * found.stages["decode"].timing.seconds
    assert "proposing" in found.sentence


def test_a_slow_operator_is_named_with_its_rate(tiny_llama):
    stage = physics(tiny_llama.config, DEVICE, Setting(weights=32, activations=32, kv=32), "decode", [50])
    bounds = {one.operator.name: stage.share(one.operator) for one in stage.operators}
    taken = bounds | {"down_proj": 2 * bounds["down_proj"] + 1e-3}
    timing = Timing(sum(taken.values()) + 3e-4, 0.0, taken, dict.fromkeys(taken, 1.0), 2e-4, 1e-4)
    first, *others = losses.losses(stage, timing, "once a step")
    assert first.name == "mlp up, gate and down"
    assert first.milliseconds == pytest.approx(1e3 * bounds["down_proj"] + 1)
    moved = sum(compulsory(o.operator) for o in stage.operators if losses.group_of(o.operator.name) == first.name)
    seconds = sum(taken[name] for name in ("up_proj", "gate_proj", "down_proj"))
    assert first.why == f"reads at {1e-9 * moved / seconds:.1f} of 1.0 GB/s" or "us each" in first.why
    named = {loss.name: loss.milliseconds for loss in others}
    assert named[losses.DISPATCH] == pytest.approx(0.2)
    assert named[losses.HOST] == pytest.approx(0.1)


def test_a_program_that_only_reads_is_near_the_bandwidth(monkeypatch):
    monkeypatch.setattr(meter, "SWEEP", 1 << 27)
    now = meter.Meter(1 << 27)
    x = jnp.ones((2, 1 << 12, 1 << 12), jnp.float32)
    read = jax.jit(lambda x, y: jnp.einsum("cns,cs->cn", x, y)).lower(x, x[:, 0]).compile()
    y = x[:, 0]
    shares = []
    for _ in range(5):
        device = meter.now(DEVICE, [now()])
        with profile.traced() as runs:
            jax.block_until_ready(read(x, y))
        seconds = min(run.seconds for run in runs if len(run.events) and "lambda" in run.program)
        shares.append(x.nbytes / seconds / device.bandwidth)
    assert max(shares) > 0.5
    assert np.median(shares) < 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 0}, "prompt"),
        ({"prompt": "text"}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [3, 4], "batch": 3}, "batch=3"),
        ({"batch": 0}, "batch"),
        ({"steps": 0}, "steps"),
        ({"hardware": "h1000"}, "h1000"),
    ],
)
def test_bad_input_is_named(tiny_llama, options, message):
    with pytest.raises(InputError, match=message):
        ledger(tiny_llama, **{"hardware": DEVICE} | options)

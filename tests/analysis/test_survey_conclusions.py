"""The survey's conclusions (Yuan et al. 2024), asserted on our figures, each derived by hand."""

import pytest

from jaxinfer.analysis import hardware
from jaxinfer.analysis.roofline import Setting, Storage, analyze
from jaxinfer.checkpoint.presets import SHAPES

pytestmark = pytest.mark.quick

A6000 = hardware.get("a6000")
SMALL, LARGE = SHAPES["llama-2-7b"], SHAPES["llama-2-13b"]
RIDGE = 154.8385e12 / 768e9  # operations a byte at which the roof bends: 201.6


def of(config=SMALL, device=A6000, **setting):
    return analyze(config, device, Setting(**{"prompt": 2048, **setting}))


def test_the_roof_of_the_a6000_bends_at_201_6_operations_a_byte_and_int8_has_twice_the_peak():
    assert A6000.peak(16) / A6000.bandwidth == pytest.approx(RIDGE)
    assert pytest.approx(201.6, abs=0.05) == RIDGE
    assert A6000.peak(8) / A6000.peak(16) == pytest.approx(2, rel=1e-3)


def test_memory_bounds_every_operator_of_a_decode_step_of_one_row():
    """A weight of two bytes is used for one multiply-add: an operation a byte. No other operator has more than two."""
    step = of().stages["decode"]
    assert {one.bound for one in step} == {"memory"}
    assert max(one.operator.intensity for one in step) < 2
    linears = [one.operator for one in step if one.operator.kind == "linear"]
    assert len(linears) == 7
    assert all(one.intensity == pytest.approx(1, rel=1e-3) for one in linears)


def test_compute_bounds_the_linears_of_a_prefill_and_memory_what_is_between_them():
    """s tokens, D x D weights: 2 s D^2 operations, 2 D^2 + 4 s D bytes; s = 2048, D = 4096 makes 1024 a byte."""
    prompt = {one.operator.name: one for one in of().stages["prefill"]}
    assert prompt["q_proj"].operator.intensity == pytest.approx(2048 * 4096 / (4096 + 2 * 2048))
    for name, one in prompt.items():
        assert one.bound == ("compute" if one.operator.kind == "linear" else "memory"), name


def test_four_bits_of_weights_do_not_speed_up_a_prefill_and_four_of_both_do():
    plain, four = (of(weights=bits).seconds("prefill") for bits in (16, 4))
    assert four == pytest.approx(plain, rel=2e-3)
    names = ("q_proj", "out_proj", "gate_proj", "up_proj", "down_proj")
    times = [{one.operator.name: one.seconds for one in of(weights=bits).stages["prefill"]} for bits in (16, 4)]
    assert all(times[0][name] == times[1][name] for name in names)
    assert plain / of(weights=4, activations=4, kv=4).seconds("prefill") > 2.5
    assert of(weights=16).seconds("decode") / of(weights=4).seconds("decode") > 2.9


def test_decode_turns_compute_bound_at_a_batch_of_about_the_ridge():
    """B rows times W[oc, ic] in 16 bits: 2 B ic oc operations, 2 ic oc + 2 B (ic + oc) bytes.

    Their quotient is at least r from B = r / (1 - r (1 / ic + 1 / oc)) on: r = 201.6, ic = 4096 and oc = 11008 make
    216.2, so 217 rows. Weights of 4 bits (a quarter of the bytes, widened to 16) turn at about a quarter of that.
    """
    wanted = RIDGE / (1 - RIDGE * (1 / 4096 + 1 / 11008))
    assert wanted == pytest.approx(216.2, abs=0.05)
    assert of().batch_to_compute_bound("up_proj") == 217
    few = RIDGE * 4 / 16 / (1 - RIDGE * (1 / 4096 + 1 / 11008))
    assert of(weights=Storage(4)).batch_to_compute_bound("up_proj") == int(few) + 1 == 55
    # Attention never does: each row brings a cache of its own.
    many = {one.operator.name: one for one in of(batch=4096).stages["decode"]}
    assert many["qk_matmul"].bound == many["sv_matmul"].bound == "memory"


def test_the_cache_outweighs_the_weights_of_13b_from_31778_tokens_on():
    """A token has 40 layers of a key and a value of 5120 numbers: 819,200 bytes. The weights are 26.03 GB."""
    a_token = 2 * 40 * 5120 * 2
    weights = of(LARGE).peak_memory["weights"]
    assert weights == pytest.approx(13_015_864_320 * 2, rel=5e-3)
    length = int(weights / a_token) + 1
    assert length in (31_778, 31_779)
    below, above = (of(LARGE, prompt=tokens).memory("decode") for tokens in (length - 5, length + 5))
    assert below.kv < below.weights
    assert above.kv > above.weights
    assert of(LARGE, prompt=200_000).memory("decode").kv / weights == pytest.approx(200_001 * a_token / weights)


@pytest.mark.parametrize(("batch", "least", "most"), [(1, 1.55, 1.7), (256, 1.0, 1.005), (512, 1.0, 1.005)])
def test_two_bits_of_weights_in_place_of_four_are_useless_at_large_batches(batch, least, most):
    """One row: 4.25 bits over 2.25 with their scales, beside the cache. Many: compute bounds the linears at both."""
    four, two = (of(LARGE, batch=batch, weights=bits).seconds("decode") for bits in (4, 2))
    assert least <= four / two <= most


def test_quantizing_the_cache_is_what_saves_memory_at_large_batches():
    def share(batch, **setting):
        held = [of(LARGE, batch=batch, **more).memory("decode").total for more in (setting, {})]
        return held[0] / held[1]

    assert share(1, weights=4) < 0.35 < 0.95 < share(1, kv=4)
    assert share(32, kv=4) < 0.55 < 0.7 < share(32, weights=4)


def test_fused_attention_saves_much_in_a_prefill_and_little_in_a_decode_step():
    def access(stage, flash):
        found = [one.operator for one in of(flash=flash).stages[stage]]
        return sum(one.bytes for one in found if one.kind == "attention")

    assert access("prefill", True) / access("prefill", False) < 0.55
    # Scores of one row are 32 numbers a token of context, written and read twice, beside 8192 of its key and value.
    assert access("decode", True) / access("decode", False) == pytest.approx(1 / (1 + 4 * 32 / 8192), rel=1e-3)
    assert of(flash=True).seconds("prefill") < 0.96 * of().seconds("prefill")
    assert of(flash=True).seconds("decode") > 0.995 * of().seconds("decode")


def test_throughput_saturates_over_batch_while_latency_and_memory_grow():
    rates = [batch / of(batch=batch).seconds("decode") for batch in (1, 16, 256, 512)]
    assert rates[1] > 7 * rates[0]
    assert rates[3] == pytest.approx(rates[2], rel=0.02)
    assert of(batch=512).seconds("decode") > 1.9 * of(batch=256).seconds("decode")


def test_a_spatial_architecture_is_fast_and_takes_many_chips():
    lpu = hardware.get("groq-lpu")
    assert of().seconds("decode") / of(device=lpu).seconds("decode") == pytest.approx(80e12 / 768e9, rel=0.02)
    assert of(device=lpu).peak_memory["total"] / lpu.memory > 60


def test_experts_save_time_for_one_row_and_none_for_many():
    """Two of eight experts are read for a token; of 64 tokens 1 - 0.75^64 leaves none out."""
    found = [analyze(SHAPES["mixtral-8x7b"], A6000, Setting(batch=batch, prompt=16)) for batch in (1, 64)]
    read = [one.total("decode", "weights") for one in found]
    held = found[0].memory("decode").weights
    assert read[0] / held == pytest.approx(0.276, abs=0.01)  # 12.9 of 46.7 billion parameters, in Mixtral's paper
    assert read[1] / held > 0.99

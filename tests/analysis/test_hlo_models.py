"""The compiled programs of a real model: operations beside XLA's own count, bytes beside weights and cache."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex

from jaxinfer.analysis import hardware, hlo
from jaxinfer.analysis.roofline import Setting, analyze
from jaxinfer.runtime.prefill import hidden, prefill

PROMPT = 513  # the last token is the first decode step's
LAYERS, WIDTH, HIDDEN, VOCAB, KV = 30, 576, 1536, 49152, 192
WEIGHTS = LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * KV + 3 * WIDTH * HIDDEN)  # of products in the layers


@pytest.fixture(scope="module")
def made(smollm2):
    return hlo.programs(smollm2, PROMPT, max_new_tokens=32)


def unrolled(function):
    """The same function with its scans written out: XLA's count is right for it."""

    def evaluate(jaxpr, consts, given):
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *given], strict=True))

        def read(var):
            return var.val if isinstance(var, jex.Literal) else values[var]

        for equation in jaxpr.eqns:
            given = [read(var) for var in equation.invars]
            params = equation.params
            if equation.primitive.name in ("jit", "pjit"):
                results = evaluate(params["jaxpr"].jaxpr, params["jaxpr"].consts, given)
            elif equation.primitive.name == "scan":
                body, first, last = params["jaxpr"], params["num_consts"], params["num_consts"] + params["num_carry"]
                carry, made = given[first:last], []
                for i in range(params["length"]):
                    found = evaluate(body.jaxpr, body.consts, [*given[:first], *carry, *(x[i] for x in given[last:])])
                    carry, ys = found[: last - first], found[last - first :]
                    made.append(ys)
                results = [*carry, *map(jnp.stack, zip(*made, strict=True))]
            else:
                bound = equation.primitive.get_bind_params(params)
                subfuns, params = bound if isinstance(bound, tuple) else ([], bound)
                results = equation.primitive.bind(*subfuns, *given, **params)
                results = results if equation.primitive.multiple_results else [results]
            values.update(zip(equation.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def flat(*arguments):
        closed = jax.make_jaxpr(function)(*arguments)
        return evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))

    return flat


def test_operations_of_a_prefill_agree_with_xla_where_xla_is_right(smollm2, made):
    program = made.prefill[512]
    text = program.compiled.as_text()
    cache = program.arguments[1]
    tokens, n = jnp.zeros((1, 512), jnp.int32), jnp.full(1, 512, jnp.int32)
    # The hidden states are asked for: else the end of the last layer would be dead code, once it is written out.
    lowered = jax.jit(unrolled(lambda *given: prefill(smollm2.network, hidden, *given))).lower(
        smollm2.params, cache, tokens, n
    )
    theirs = lowered.cost_analysis()["flops"]
    ours = hlo.count(text, {"attention/while": 1})  # XLA counts the loop over the cache once, in each layer
    assert ours.total.operations == pytest.approx(theirs, rel=0.01)
    once = hlo.count(text, once=True).total
    assert once.operations == pytest.approx(program.compiled.cost_analysis()["flops"], rel=0.01)
    # By hand: weights, and attention in blocks of 128 queries over the keys up to them.
    pairs = sum(128 * end for end in (128, 256, 384, 512))
    assert hlo.count(text, program.trips).total.work.matmul == 2 * 512 * WEIGHTS + LAYERS * 2 * 2 * pairs * WIDTH


def test_bytes_of_a_decode_step_are_those_of_weights_and_cache(smollm2, made):
    report = made.step.report()
    weights = 4 * (WEIGHTS + VOCAB * WIDTH)
    cache = 4 * LAYERS * 2 * KV * (PROMPT - 1)  # 512 tokens, which are whole blocks
    assert report.total.arguments == pytest.approx(weights + cache, rel=0.01)
    assert made.step_bytes == pytest.approx(weights + cache, rel=0.01)
    assert weights + cache < report.total.bytes < 1.12 * (weights + cache)  # blocks of the cache are copied on a CPU
    wanted = {
        "q_proj": LAYERS * WIDTH * WIDTH,
        "k_proj": LAYERS * WIDTH * KV,
        "gate_proj": LAYERS * WIDTH * HIDDEN,
        "down_proj": LAYERS * WIDTH * HIDDEN,
        "lm_head": VOCAB * WIDTH,
    }
    for name, size in wanted.items():
        assert report.operators[name].work.matmul == 2 * size, name
        assert report.operators[name].bytes == pytest.approx(4 * size, rel=0.03), name
    for name in ("qk_matmul", "sv_matmul"):  # of the token itself, XLA may make a sum
        assert report.operators[name].work.matmul == pytest.approx(LAYERS * 2 * WIDTH * PROMPT, rel=0.01), name
    assert report.unaliased == ()
    assert [x for x in report.copies if x.opcode == "copy"] == []
    assert report.memory.aliased == made.loop.report().memory.aliased > 4 * LAYERS * 2 * KV * PROMPT


def test_the_roofline_counts_what_the_compiled_programs_do(smollm2, made):
    asked = Setting(prompt=PROMPT, weights=32, activations=32, kv=32, prompt_logits=False)
    ours = analyze(smollm2.config, hardware.get("a100"), asked)
    theirs = hlo.count(made.prefill[512].compiled.as_text(), made.prefill[512].trips).total.operations
    assert ours.replace(prompt=512).total("prefill", "ops") == pytest.approx(theirs, rel=0.03)
    moved = sum(ours.total("decode", name) for name in ("weights", "kv_read", "kv_written"))
    assert moved == pytest.approx(made.step.report().total.arguments, rel=0.05)
    assert moved == pytest.approx(made.step_bytes, rel=0.05)


def test_loops_over_the_cache_read_the_blocks_that_their_trips_say(made):
    for program in (made.step, made.prefill[512]):
        ((_, trips),) = program.trips.items()
        text = program.compiled.as_text()
        sizes = [int(x) for x in re.findall(r" = f32\[3,(\d+),64\]\S* fusion\(.*dynamic_slice", text)]
        assert len(set(sizes)) == len(trips)
    assert made.step.trips == {"segment_0/layer_0/attention/attention/while": (1.0, 0.0)}  # one of 512, none of 128
    assert made.prefill[512].trips == {"segment_0/layer_0/attention/attention/while": (0.0,)}


def test_the_loop_is_its_steps(made):
    one, many = made.step.report(), made.loop.report()
    assert many.total.work.matmul == 64 * one.total.work.matmul
    assert many.total.arguments == pytest.approx(64 * one.total.arguments, rel=0.001)


def test_a_program_of_a_real_model_is_read_in_well_under_two_seconds(made):
    text = made.loop.compiled.as_text()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        hlo.count(hlo.parse(text), made.loop.trips)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 2


def test_fusion_saves_little_of_a_step_that_reads_weights(made):
    saved = hlo.saving_of(made.step, rounds=1)
    assert saved.apart.unknown_loops == ()
    assert saved.apart.total.work.matmul == saved.fused.total.work.matmul
    assert 0 < saved.bytes_saved < 0.05
    operators = saved.operators()
    assert operators["mlp_act"][1].bytes > 2 * operators["mlp_act"][0].bytes
    assert operators["lm_head"][1].bytes == pytest.approx(operators["lm_head"][0].bytes, rel=0.01)
    assert np.isfinite([saved.fused_seconds, saved.apart_seconds]).all()
    assert {"lm_head", "down_proj"} <= set(saved.apart_times)

"""Small compiled programs, whose operations and bytes are counted by hand."""

import json
import os
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxinfer import Dense, Lookup
from jaxinfer.analysis import hlo
from jaxinfer.analysis.hlo.findings import collectives, fusions
from jaxinfer.analysis.hlo.fusion import with_barriers
from jaxinfer.errors import InputError
from jaxinfer.runtime.compiled import TRACES

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def _optimized(request):
    """Programs whose bytes are counted by hand are fused as users have them; those of small models need not be."""
    if not {"tiny_gemma", "tiny_llama"} & set(request.fixturenames):
        jax.config.update("jax_disable_most_optimizations", False)


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile()


def counted(function, *arguments, trips=None, branches=None, **options):
    return hlo.count(compiled(function, *arguments, **options).as_text(), trips, branches)


def ones(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


@pytest.mark.parametrize(
    ("form", "one", "other", "wanted"),
    [
        ("ij,jk->ik", (5, 7), (7, 3), 2 * 5 * 7 * 3),
        ("bij,bkj->bik", (3, 5, 7), (3, 4, 7), 2 * 3 * 5 * 4 * 7),
        ("bkrh,bksh->bkrs", (2, 3, 5, 7), (2, 3, 11, 7), 2 * 2 * 3 * 5 * 11 * 7),
        ("ij,j->i", (129, 65), (65,), 2 * 129 * 65),
        ("abc,bcd->ad", (3, 5, 7), (5, 7, 2), 2 * 3 * 35 * 2),
    ],
)
def test_products(form, one, other, wanted):
    found = counted(partial(jnp.einsum, form), ones(*one), ones(*other))
    assert found.total.work.matmul == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1,), "padding": [(3, 0)]},
        {"window_strides": (2,), "padding": [(1, 4)]},
        {"window_strides": (1,), "padding": [(2, 2)], "rhs_dilation": (3,)},
        {"window_strides": (1,), "padding": [(0, 0)], "lhs_dilation": (2,)},
    ],
)
def test_convolutions_count_no_padding(options):
    x, w = ones(2, 3, 17), ones(5, 3, 4)
    convolve = partial(jax.lax.conv_general_dilated, **options)
    # A product of ones counts the pairs: the sum of the result is one for each multiply-add.
    wanted = 2 * float(jnp.sum(convolve(x, w)))
    assert counted(convolve, x, w).total.work.matmul == wanted


def test_grouped_convolution():
    x, w = ones(2, 6, 17), ones(12, 3, 4)
    convolve = partial(jax.lax.conv_general_dilated, window_strides=(1,), padding=[(3, 0)], feature_group_count=2)
    assert counted(convolve, x, w).total.work.matmul == 2 * float(jnp.sum(convolve(x, w)))


def layer(x, w):
    return jnp.tanh(x @ w), None


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_a_scan_counts_its_body_as_often_as_it_runs(layers):
    x, w = ones(3, 33), ones(layers, 33, 33)
    one = counted(lambda x, w: layer(x, w)[0], x, w[0]).total
    found = counted(lambda x, w: jax.lax.scan(layer, x, w)[0], x, w)
    assert found.unknown_loops == ()
    assert found.total.work.matmul == layers * one.work.matmul == layers * 2 * 3 * 33 * 33
    assert found.total.work.transcendental == layers * 3 * 33
    # Each layer reads its own slice of the stack, and XLA for a CPU may copy it before the product reads it.
    assert w.nbytes <= found.total.arguments <= 1.5 * w.nbytes + 2 * x.nbytes


def test_a_loop_that_its_data_end():
    def function(x, n):
        return jax.lax.fori_loop(0, n, lambda i, x: layer(x, x)[0], x)

    text = compiled(function, ones(9, 9), jnp.int32(3)).as_text()
    unknown = hlo.count(text)
    (name,) = unknown.unknown_loops
    assert name.endswith("jit(function)/while")
    assert unknown.total.work.matmul == 2 * 9**3
    given = hlo.count(text, {"jit(function)/while": 11})
    assert given.unknown_loops == ()
    assert given.total.work.matmul == 11 * 2 * 9**3


def test_loops_of_one_name_take_their_numbers_in_turn():
    def function(x, n):
        for width in (9, 5):
            x = jax.lax.fori_loop(0, n, lambda i, x, width=width: x.at[:, :width].set(x @ x[:, :width]), x)
        return x

    found = counted(function, ones(9, 9), jnp.int32(3), trips={"while": (2, 10)})
    assert found.total.work.matmul == 2 * 2 * 9**3 + 10 * 2 * 9 * 9 * 5


def test_conditionals():
    def function(i, x):
        return jax.lax.switch(i, [lambda x: x + 1, lambda x: x @ x, lambda x: x @ x[:, :3] @ x[:3]], x)

    text = compiled(function, jnp.int32(0), ones(16, 16)).as_text()
    assert hlo.count(text).total.work.matmul == 2 * 16**3  # the dearest
    path = "cond"
    for branch, wanted in ((0, 0), (1, 2 * 16**3), (2, 2 * 2 * 16 * 16 * 3)):
        assert hlo.count(text, branches={path: branch}).total.work.matmul == wanted


@pytest.mark.parametrize("rows", [1, 10, 33])
def test_a_slice_is_read_and_not_the_whole(rows):
    def function(x, i):
        return jax.lax.dynamic_slice(x.astype(jnp.float32), (i, 0), (rows, 64)) * 2

    found = counted(function, ones(1000, 64, dtype=jnp.int8), jnp.int32(5)).total
    assert rows * 64 <= found.arguments <= rows * 64 + 16
    assert rows * 64 * 4 <= found.written <= rows * 64 * 4 + 16


def test_rows_that_are_looked_up():
    found = counted(lambda x, i: x[i] + 1, ones(5000, 48), jnp.array([1, 7, 7])).total
    assert 3 * 48 * 4 <= found.arguments < 3 * 48 * 4 + 64


def test_an_update_in_place_writes_the_update():
    def function(cache, x, i):
        return jax.lax.dynamic_update_slice(cache, jnp.tanh(x), (i, 0))

    cache, x = ones(4096, 64), ones(3, 64)
    report = hlo.report(compiled(function, cache, x, jnp.int32(3), donate_argnums=0))
    assert report.unaliased == ()
    assert report.memory.aliased == cache.nbytes
    assert x.nbytes <= report.total.written <= 3 * x.nbytes  # where it is computed before it is written: twice
    assert report.total.bytes < 8 * x.nbytes
    kept = hlo.report(compiled(function, cache, x, jnp.int32(3)))  # not donated: copied
    (copy,) = kept.copies
    assert (copy.bytes, copy.times) == (cache.nbytes, 1)
    assert kept.memory.peak >= report.memory.peak + cache.nbytes


def test_elementwise_operations_are_one_each_and_transcendentals_apart():
    found = counted(lambda x: jnp.exp(x) * 3 + x, ones(7, 5)).total
    assert (found.work.elementwise, found.work.transcendental) == (2 * 35, 35)
    assert (found.read, found.written) == (35 * 4, 35 * 4)
    reduced = counted(lambda x: jnp.sum(x, axis=1), ones(7, 5)).total
    assert reduced.work.elementwise == 7 * 4


def test_donations_in_vain_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compiled(lambda a, b, c: (a @ b, b + 1), ones(4, 8), ones(8, 3), ones(5), donate_argnums=(0, 1, 2))
    lost = {x.name: (x.shape, x.bytes, x.reason) for x in hlo.report(found).unaliased}
    assert set(lost) == {"a", "[0][2]"}
    assert lost["a"] == ("f32[4,8]", 128, "no result of its form is left for it")
    assert lost["[0][2]"] == ("float32[5]", 20, "the program does not use it")


COLLECTIVE = """
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
def function(x, w):
    x = jax.lax.psum(x @ w, "b")
    y = jax.lax.all_gather(x, "a", axis=0, tiled=True)
    return jax.lax.ppermute(x, "a", [(0, 1), (1, 0)]), y
f = jax.shard_map(function, mesh=mesh, in_specs=(P("a", "b"), P("b", None)), out_specs=(P("a"), P()), check_vma=False)
print(jax.jit(f).lower(jnp.ones((6, 10)), jnp.ones((10, 7))).compile().as_text())
"""


def test_collectives_of_four_devices():
    flags = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", COLLECTIVE], env=flags, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = hlo.count(done.stdout)
    array = 3 * 7 * 4
    assert found.total.work.matmul == 2 * 3 * 5 * 7  # of one device
    kinds = {x.opcode: (x.bytes, x.group, x.wire) for x in collectives(found)}
    assert kinds == {
        "all-reduce": (array, 2, array),
        "all-gather": (2 * array, 2, array),
        "collective-permute": (array, 2, array),
    }


def test_report_is_written_in_three_ways():
    report = hlo.report(compiled(lambda x: jnp.tanh(x @ x) + 1, ones(65, 65)), "small")
    told = json.loads(json.dumps(report.as_dict()))
    assert told["total"]["matmul"] == 2 * 65**3
    assert told["xla"]["operations"] == pytest.approx(told["total"]["operations"])
    assert told["memory"]["arguments"] == 65 * 65 * 4
    assert "| operations | 553 k | 553 k |" in report.markdown()
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.table())
    assert "553 k" in console.export_text()


def test_two_programs_differ_by_what_they_fuse():
    def function(x):
        return jnp.tanh(x) * 2 + x

    one = hlo.report(compiled(function, ones(64, 64)), "one")
    assert hlo.diff(one, one).is_empty
    other = hlo.report(compiled(lambda x: function(x) @ x, ones(64, 64)), "other")
    changed = hlo.diff(one, other)
    assert changed.totals["matmul"] == (0, 2 * 64**3)
    assert changed.opcodes["dot"] == (0, 1)
    assert "| dot | 0 | 1 |" in changed.markdown()
    assert json.loads(json.dumps(changed.as_dict()))["names"] == ["one", "other"]


def test_fusion_saves_what_stands_between_operators():
    x = ones(256, 256)
    saved = hlo.saving(lambda x: (jnp.tanh(x) + 1) * x, (x,), rounds=1)
    assert saved.fused.total.bytes == 2 * x.nbytes
    assert saved.apart.total.bytes == 7 * x.nbytes  # tanh 2, add 2, multiply 3
    assert saved.bytes_saved == pytest.approx(5 / 7)
    assert saved.left_fused() == ()
    assert len(fusions(saved.fused)) == 1
    assert len(list(saved.apart.top())) == 3
    assert saved.apart.total.work == saved.fused.total.work
    assert min(saved.fused_seconds, saved.apart_seconds) > 0
    assert json.loads(json.dumps(saved.as_dict()))["bytes"] == [2 * x.nbytes, 7 * x.nbytes]


def branching(x, n):
    def body(carry, w):
        y = jax.nn.silu(carry @ w) + jax.nn.relu(carry)
        return jax.lax.cond(jnp.sum(y) > 0, lambda y: y * 2 - 1, lambda y: -y, y), jnp.max(y)

    last, tops = jax.lax.scan(body, x, jnp.stack([x, x / 3, x / 7]))
    return jax.lax.fori_loop(0, n, lambda i, y: jnp.sin(y) + i, last), {"tops": tops}


def test_barriers_stand_in_loops_and_branches_and_change_nothing():
    x, n = jnp.linspace(-1, 1, 81).reshape(9, 9), jnp.int32(4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), with_barriers(branching)(x, n), branching(x, n))
    saved = hlo.saving(branching, (x, n), trips={"jit(branching)/while": 4}, rounds=1)
    assert saved.apart.total.work.matmul == saved.fused.total.work.matmul == 3 * 2 * 9**3
    assert saved.bytes_saved > 0
    assert [x.signature for x in saved.left_fused() if "sine" in x.signature or "maximum" in x.signature] == []


def test_retraces_are_counted():
    @jax.jit
    def a_function_of_its_own(x):
        return x * 2

    with hlo.watch() as seen:
        for width in (3, 3, 4, 5):
            a_function_of_its_own(np.ones(width, np.float32))
    assert seen.compiles["a_function_of_its_own"] == 3
    assert seen.traces["a_function_of_its_own"] == 3
    assert seen.retraces == {"a_function_of_its_own": 2}
    a_function_of_its_own(np.ones(6, np.float32))
    assert seen.retraces == {"a_function_of_its_own": 2}
    report = hlo.report(
        "HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n", retraces=seen.retraces
    )
    assert "traced again: a_function_of_its_own" in report.markdown()


def test_programs_are_those_that_generate_runs(tiny_gemma):
    made = hlo.programs(tiny_gemma, 150, batch=2, method=Lookup(), max_new_tokens=8)
    before = TRACES.copy()
    rows = np.random.default_rng(0).integers(0, tiny_gemma.config.vocab_size, (2, 150)).tolist()
    tiny_gemma.generate(rows, method=Lookup(), max_new_tokens=8, seed=0)
    assert TRACES - before == {}
    assert set(made.prefill) == {160}
    for program in (*made.prefill.values(), made.step, made.loop):
        report = program.report()
        assert report.count.unknown_loops == ()
        assert report.unaliased == ()
        assert {"q_proj", "out_proj", "down_proj", "embed"} <= set(report.operators)


def test_the_head_is_counted_once_a_step_and_by_hand(tiny_llama):
    made = hlo.programs(tiny_llama, 40, batch=3, policy=Dense(), max_new_tokens=8)
    operators, cfg = made.step.report().operators, tiny_llama.config
    rows = -(-3 // 8) * 8 if operators["lm_head"].work.matmul > 2 * 3 * cfg.vocab_size * cfg.d_model else 3
    assert operators["lm_head"].work.matmul == 2 * rows * cfg.vocab_size * cfg.d_model
    assert made.loop.report().operators["lm_head"].work.matmul == 64 * operators["lm_head"].work.matmul


@pytest.mark.parametrize(
    ("prompt", "options", "named"),
    [
        (0, {}, "prompt"),
        (True, {}, "prompt"),
        (1.5, {}, "prompt"),
        (8, {"batch": 0}, "batch"),
        (8, {"policies": None}, "policies"),
    ],
)
def test_what_generate_cannot_do_is_refused(tiny_llama, prompt, options, named):
    with pytest.raises(InputError, match=named):
        hlo.programs(tiny_llama, prompt, **options)

"""The Pallas kernels, interpreted on a CPU, against the reference in float32."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import EDGES, LAYER, Case, check, check_half, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.cache.store import Store, extent
from jaxinfer.kernels import dispatch, reference, schedule, tpu
from jaxinfer.kernels.attention import attend
from jaxinfer.kernels.contract import PLAIN, Scoring

SCORING = Scoring(softcap=1.5, slopes=2.0 ** -np.arange(8, dtype=np.float32))


def kernel(*args, **options):
    return tpu.partial(*args, interpret=True, **options)


def small(tokens, group, heads=1, block=128):
    """A plan with small blocks, so that small caches have edges too."""
    return tpu.Plan(tokens, -(-tokens * group // 16) * 16, heads, block)


@pytest.mark.parametrize(
    ("heads", "width", "tokens"), [((9, 3), 64, 1), ((32, 8), 96, 1), ((4, 1), 256, 5), ((8, 2), 128, 64)], ids=str
)
def test_ragged_rows(heads, width, tokens):
    case = Case(heads, width, tokens, EDGES, slots=256)
    found = case.found(kernel, plan=small(tokens, case.group, heads=1 + (heads == (9, 3)) * 2))
    check(found, case.expected())
    assert np.isneginf(found.lse[0]).all()


@pytest.mark.parametrize(("window", "first"), [(5, 0), (128, 4), (300, 130)])
def test_windows_and_attention_sinks(window, first):
    case = Case((4, 2), 64, 3, (0, 2, 300, 512), slots=512, window=window, first=first)
    check(case.found(kernel, plan=small(3, 2)), case.expected())


def test_scattered_slots():
    """What a ring, or a policy that drops tokens, leaves."""
    case = Case((4, 2), 64, 2, EDGES, slots=384, window=90, scattered=True)
    check(case.found(kernel, plan=small(2, 2)), case.expected())


def test_soft_cap_and_slopes():
    case = Case((8, 2), 64, 3, (0, 130, 256), slots=256)
    check(case.found(kernel, SCORING, plan=small(3, 4)), case.expected(SCORING))


@pytest.mark.parametrize("stored", ["int8", "float8_e4m3fn"])
def test_keys_in_eight_bits(stored):
    case = Case((4, 2), 64, 3, (0, 1, 200), slots=256, stored=stored)
    check(case.found(kernel, plan=small(3, 2)), case.expected())


@pytest.mark.parametrize("scoring", [PLAIN, SCORING], ids=["plain", "softcap-alibi"])
def test_bfloat16_is_as_exact_as_the_reference(scoring):
    case = Case((8, 2), 64, 5, (1, 129, 512), slots=512, window=400)
    check_half(case, kernel, scoring, plan=small(5, 4))


@pytest.mark.parametrize("window", [None, 70])
def test_prefill(window):
    """Fresh tokens over themselves, in blocks of 48 queries and 128 keys; the last rows are padding."""
    case = Case((6, 2), 64, 200, (7, 7), slots=256, window=window)
    pos = jnp.where(jnp.arange(256) < 200, jnp.arange(256) + 7, -1)
    case.q_pos, case.kv_pos = pos[None, :200].repeat(2, 0), pos[None].repeat(2, 0)
    found = case.found(kernel, plan=small(48, 3), ordered=True)
    check(found, case.expected())


def test_no_token_sees_a_later_one_even_at_the_same_position():
    case = Case((2, 1), 64, 70, (0,), slots=128)
    case.q_pos = jnp.zeros((1, 70), jnp.int32)
    case.kv_pos = jnp.where(jnp.arange(128) < 70, 0, -1)[None]
    mask = np.tril(np.ones((70, 128), bool))[None]
    k, v = case.read()
    expected = reference.partial(case.q, k, v, jnp.asarray(mask), case.q_pos, case.kv_pos)
    check(case.found(kernel, plan=small(16, 2), ordered=True), expected)


def test_blocks_that_no_query_sees_are_not_read():
    """NaN in them would reach the output: 0 x NaN is NaN."""
    case = Case((4, 2), 64, 2, (150, 500), slots=512, window=100)
    expected = case.expected()
    # Row 0 sees slots 51 to 149, row 1 slots 401 to 499.
    for row, blocks in ((0, (2, 3)), (1, (0, 1, 2))):
        for block in blocks:
            at = np.s_[:, row, :, block * 128 : (block + 1) * 128]
            case.k, case.v = case.k.at[at].set(jnp.nan), case.v.at[at].set(jnp.nan)
    other = 1 - LAYER
    case.k, case.v = case.k.at[other].set(jnp.nan), case.v.at[other].set(jnp.nan)
    check(case.found(kernel, plan=small(2, 2)), expected)


def test_the_schedule_lists_every_block_in_which_something_is_seen():
    case = Case((4, 2), 8, 4, (0, 150, 500), slots=512, window=100, first=3)
    mask = np.asarray(case.mask()).reshape(3, 2, 2, 4, 128).any(axis=(2, 4))
    found = schedule.visits(case.q_pos.reshape(3, 2, 2), case.kv_pos, case.visible, 128, ordered=False)
    for row in range(3):
        for i in range(2):
            listed = np.flatnonzero(mask[row, i])
            assert found.total[row, i] == len(listed)
            np.testing.assert_array_equal(found.blocks[row, i, : len(listed)], listed)
            assert (np.asarray(found.blocks[row, i, len(listed) :]) == (listed[-1] if len(listed) else 3)).all()


def test_pages_are_read_through_the_table():
    """The same cache, cut into pages that lie anywhere, one of them shared between rows."""
    case = Case((4, 2), 64, 3, (5, 140, 384), slots=384, window=350)
    rng = np.random.default_rng(3)
    case.k, case.v = (x.at[:, 1, :, :128].set(x[:, 0, :, :128]) for x in (case.k, case.v))
    table = rng.permutation(12)[:9].reshape(3, 3)
    table[1, 0] = table[0, 0]

    def paged(x):
        pool = np.full((x.shape[0], 12, x.shape[2], 128, x.shape[4]), np.nan, np.float32)
        for row in range(3):
            for i in range(3):
                pool[:, table[row, i]] = x[:, row, :, i * 128 : (i + 1) * 128]
        return jnp.asarray(pool)

    expected = case.expected()
    case.k, case.v = paged(case.k), paged(case.v)
    check(case.found(kernel, pages=jnp.asarray(table, jnp.int32), plan=small(3, 2, heads=2)), expected)


def steps(case, shape, seed=0, scoring=PLAIN):
    """Both parts and their merge, as a layer asks for them, by the kernels and by the reference."""
    rng = np.random.default_rng(seed)
    k_heads, width, batch = case.q.shape[1], case.q.shape[3], case.q.shape[0]
    k, v = (jnp.asarray(rng.normal(size=(batch, k_heads, case.tokens, width)), jnp.float32) for _ in "kv")
    mask = jnp.asarray(tree(rng, batch, case.tokens)) if shape == "tree" else None
    store = Store(case.k, case.v, case.kv_pos)
    args = (case.q, k, v, mask, store, jnp.int32(LAYER), case.q_pos, extent(store), case.visible)

    def run(name, **options):
        with dispatch.use(name, **options):
            return jax.jit(lambda *x: attend(*x, *args[8:], lambda x, t: x.astype(t), scoring))(*args[:8])

    return run("pallas", target="tpu", interpret=True), run("reference")


@pytest.mark.parametrize(("tokens", "shape"), [(7, "tree"), (1, "chain"), (100, "chain")])
def test_a_layer_of_attention(tokens, shape):
    case = Case((4, 2), 64, tokens, (0, 1, 128), slots=128, window=110)
    sinks = Scoring(sinks=jnp.asarray([0.5, -1.0, 3.0, 0.0]))
    found, expected = steps(case, shape, scoring=sinks)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape(data):
    k_heads, group = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.integers(1, 9))
    slots = 128 * data.draw(st.sampled_from([1, 2, 3]))
    lengths = data.draw(st.lists(st.integers(0, slots), min_size=1, max_size=3))
    tokens = data.draw(st.integers(1, 64))
    case = Case(
        (k_heads * group, k_heads),
        data.draw(st.sampled_from([64, 96])),
        tokens,
        lengths,
        slots,
        window=data.draw(st.none() | st.integers(1, slots)),
        first=data.draw(st.sampled_from([0, 4])),
        stored=data.draw(st.sampled_from([None, "int8"])),
        scattered=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)),
    )
    plan = small(data.draw(st.integers(1, tokens)), group, heads=data.draw(st.sampled_from([1, k_heads])))
    check(case.found(kernel, plan=plan), case.expected())


@pytest.mark.parametrize("group", [1, 3, 4, 8, 71])
@pytest.mark.parametrize("tokens", [1, 64, 4096])
@pytest.mark.parametrize(("width", "size"), [(64, 2), (128, 1), (128, 2), (256, 4)])
def test_plans_fit_a_v5e(group, tokens, width, size):
    plan = tpu.Plan.of(tokens, group, 8, 8192, width, size)
    assert plan.vmem(width, size) <= 16 << 20
    assert plan.rows >= plan.tokens * group
    assert plan.rows % 16 == 0
    if tokens == 1:
        assert plan.heads * plan.block * width * size >= 512 << 10  # enough bytes a step to hide what a step costs


def test_codes_are_read_where_they_lie():
    """The kernel gets the stack as it is stored: no copy of it in another dtype exists outside."""
    case = Case((4, 2), 64, 1, (100,), slots=256, stored="int8")
    lowered = jax.make_jaxpr(lambda q, k, v, p, s: kernel(q, k, v, LAYER, p, s, case.visible))(
        case.q, case.k, case.v, case.q_pos, case.kv_pos
    )
    wide = [v.aval for eqn in lowered.eqns for v in eqn.outvars if v.aval.size >= case.k.codes.size]
    assert not wide


ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
from cases import LAYER, Case
from jaxinfer import sharding
from jaxinfer.cache.store import STORE_AXES, Store, extent
from jaxinfer.kernels import dispatch
from jaxinfer.kernels.attention import attend
from jaxinfer.kernels.contract import Scoring

jax.config.update("jax_disable_most_optimizations", True)
case = Case((4, 2), 64, 1, (1, 130), 256, stored="int8")
layout = sharding.Sharding(Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "tensor")))
rng = np.random.default_rng(0)
k, v = (jnp.asarray(rng.normal(size=(2, 2, 1, 64)), jnp.float32) for _ in "kv")
keys, values = (jax.tree.map(lambda x: layout.place(x, STORE_AXES[: x.ndim]), x) for x in (case.k, case.v))
scoring = Scoring(slopes=2.0 ** -np.arange(4, dtype=np.float32), sinks=jnp.arange(4.0))
decode = lambda x, dtype: (x.codes * x.scale[..., None]).astype(dtype)

def run(layout, *choice, **options):
    store = Store(keys, values, case.kv_pos)
    def layer(q, k, v, store):
        return attend(q, k, v, None, store, jnp.int32(LAYER), case.q_pos, extent(store), case.visible, decode, scoring)
    with sharding.use(layout), dispatch.use(*choice, **options):
        return jax.jit(layer)(case.q, k, v, store)

found, expected = run(layout, "pallas", target="tpu", interpret=True), run(None, "reference")
np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
assert found.sharding.spec[:2] == ("data", "tensor"), found.sharding
"""


def test_on_a_mesh_each_device_attends_to_its_own_rows_and_heads():
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", ON_A_MESH], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

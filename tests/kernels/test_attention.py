"""Both parts of attention, and what joins them, against a softmax in float64 numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import tree
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.cache.store import BLOCK, Store, causal, extent, round_up
from jaxinfer.config import LayerKind
from jaxinfer.kernels.contract import Partial, fold_heads, merge, unfold_heads
from jaxinfer.kernels.xla import WIDE_BLOCK, attend, cached_partial, fresh_partial

LAYERS, LAYER = 3, 1
GROUPS = [(9, 3), (4, 1), (32, 8), (5, 5)]  # query heads, key/value heads
LENGTHS = (0, 1, 127, 128, 129, 256)


def slow(q, k, v, mask):
    """q[B, K, R, H] over k, v[B, K, S, H] under mask[B, T, S], in float64: out, and log-sum-exp [B, K, R]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    rows = np.repeat(mask, q.shape[2] // mask.shape[1], axis=1)[:, None]
    scores = np.where(rows, np.einsum("bkrh,bksh->bkrs", q, k), -np.inf)
    top = scores.max(axis=-1, keepdims=True, initial=-1e300)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.einsum("bkrs,bksh->bkrh", weights, v) / np.maximum(total, 1e-300), (top + np.log(total))[..., 0]


def normal(rng, *shape, dtype=np.float32):
    return jnp.asarray(rng.normal(size=shape), dtype)


class Case:
    """Random queries, fresh tokens and a store. Slots are scattered, and empty ones hold large numbers."""

    def __init__(self, heads, width, tokens, lengths, slots, window=None, seed=0, dtype=np.float32, scale=None):
        rng, (n, k_heads), batch = np.random.default_rng(seed), heads, len(lengths)
        self.kind = LayerKind(window=window)
        q = rng.normal(size=(batch, tokens, n, width)) * (width**-0.5 if scale is None else scale)
        self.q = fold_heads(jnp.asarray(q, dtype), k_heads)
        self.k, self.v = (normal(rng, batch, k_heads, tokens, width, dtype=dtype) for _ in "kv")
        pos = np.full((batch, slots), -1, np.int32)
        for row, length in enumerate(lengths):
            pos[row, rng.permutation(min(slots, max(length, 1) + 3))[:length]] = np.arange(length)
        shape = (LAYERS, batch, k_heads, slots, width)
        empty = np.where(pos < 0, 1e4, 1.0)[None, :, None, :, None]
        self.store = Store(*(jnp.asarray(rng.normal(size=shape) * empty, dtype) for _ in "kv"), jnp.asarray(pos))
        self.q_pos = jnp.asarray(np.array(lengths)[:, None] + np.arange(tokens), jnp.int32)

    @property
    def visible(self):
        return partial(causal, self.kind)

    def cached(self):
        @jax.jit
        def run(q, store, q_pos):
            layer = jnp.int32(LAYER)
            return cached_partial(q, store, layer, q_pos, extent(store), self.visible, lambda x, dtype: x.astype(dtype))

        return run(self.q, self.store, self.q_pos)

    def attended(self, mask):
        @jax.jit
        def run(q, k, v, store, q_pos):
            read = (store, jnp.int32(LAYER), q_pos, extent(store), self.visible, lambda x, dtype: x.astype(dtype))
            return attend(q, k, v, mask, *read)

        return run(self.q, self.k, self.v, self.store, self.q_pos)

    def cached_mask(self):
        return np.asarray(self.visible(self.q_pos[:, :, None], self.store.pos[:, None, :]))

    def slow_cached(self):
        return slow(self.q, self.store.k[LAYER], self.store.v[LAYER], self.cached_mask())

    def slow_attended(self, mask):
        k, v = (np.concatenate([x[LAYER], y], axis=2) for x, y in ((self.store.k, self.k), (self.store.v, self.v)))
        return slow(self.q, k, v, np.concatenate([self.cached_mask(), mask], axis=2))[0]


def chain(case):
    """The mask of a chain, and of the layer's window."""
    seen = case.visible(case.q_pos[:, :, None], case.q_pos[:, None, :])
    return np.asarray(seen) & np.tril(np.ones(seen.shape[1:], bool))


def check(found, expected, rtol=2e-5, atol=2e-5):
    (out, lse), (slow_out, slow_lse) = found, expected
    assert not np.isnan(out).any()
    np.testing.assert_allclose(out, slow_out, rtol=rtol, atol=atol)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(slow_lse))
    seen = np.isfinite(slow_lse)
    np.testing.assert_allclose(np.asarray(lse)[seen], slow_lse[seen], rtol=rtol, atol=atol)


@pytest.mark.parametrize("heads", GROUPS, ids=str)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_cached_part_over_ragged_rows(heads, width):
    case = Case(heads, width, tokens=3, lengths=LENGTHS, slots=256)
    found, expected = case.cached(), case.slow_cached()
    check(found, expected)
    assert np.isneginf(found.lse[0]).all()  # the empty row sees nothing
    assert not np.asarray(found.out[0]).any()


@pytest.mark.parametrize("window", [1, 5, 128, 1000])
@pytest.mark.parametrize("tokens", [1, 16])
def test_cached_part_under_a_window(window, tokens):
    case = Case((4, 2), 64, tokens, LENGTHS, slots=384, window=window)
    check(case.cached(), case.slow_cached())


@pytest.mark.parametrize(("tokens", "slots"), [(63, 1024), (64, 1024), (130, 512), (64, 640)])
def test_cached_part_of_wide_steps(tokens, slots):
    """Many queries read larger blocks, where the store holds a whole number of those."""
    case = Case((4, 2), 64, tokens, (0, 1, 511, 512, 300), slots, window=400)
    check(case.cached(), case.slow_cached())


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(
    "longest", [511, 512, 513, 1279, 1530]
)  # large blocks as far as they are full, then small ones
def test_cached_part_of_long_texts(tokens, longest):
    case = Case((6, 2), 16, tokens, (0, 1, 300, longest), slots=3 * WIDE_BLOCK)
    expected, beyond = case.slow_cached(), round_up(int(extent(case.store)))
    unread = (x.at[:, :, :, beyond:].set(jnp.nan) for x in (case.store.k, case.store.v))
    case.store = Store(*unread, case.store.pos)
    check(case.cached(), expected)


def test_no_block_after_the_slots_in_use_is_read():
    case = Case((4, 2), 64, 1, (5, 120), slots=4 * BLOCK)
    poisoned = jax.tree.map(lambda x: x.at[:, :, :, BLOCK:].set(jnp.nan), (case.store.k, case.store.v))
    expected = case.slow_cached()
    case.store = Store(*poisoned, case.store.pos)
    check(case.cached(), expected)


def test_other_layers_do_not_matter():
    case = Case((4, 2), 64, 2, (5, 120), slots=BLOCK)
    expected = case.slow_cached()
    others = np.arange(LAYERS) != LAYER
    case.store = Store(*(x.at[others].set(jnp.nan) for x in (case.store.k, case.store.v)), case.store.pos)
    check(case.cached(), expected)


def test_a_store_in_another_format_is_decoded_block_by_block():
    case = Case((4, 2), 64, 2, (5, 200), slots=256)
    scale = 1 / 16
    codes = [jnp.clip(jnp.round(x / scale), -127, 127) for x in (case.store.k, case.store.v)]
    packed = [{"codes": c.astype(jnp.int8), "scale": jnp.full(c.shape[:4], scale)} for c in codes]
    case.store = Store(*(c * scale for c in codes), case.store.pos)
    store = Store(*packed, case.store.pos)

    def decode(stored, dtype):
        return (stored["codes"] * stored["scale"][..., None]).astype(dtype)

    found = cached_partial(case.q, store, jnp.int32(LAYER), case.q_pos, extent(store), case.visible, decode)
    check(found, case.slow_cached())


@pytest.mark.parametrize("tokens", [1, 2, 127, 128, 129, 300])
def test_fresh_part_of_a_chain(tokens):
    case = Case((6, 2), 64, tokens, (0, 7), slots=BLOCK, window=100)
    mask = chain(case)
    check(fresh_partial(case.q, case.k, case.v, jnp.asarray(mask)), slow(case.q, case.k, case.v, mask))


@pytest.mark.parametrize("tokens", [7, 140])
def test_fresh_part_of_a_tree(tokens):
    case = Case((6, 2), 64, tokens, (0, 7, 9), slots=BLOCK)
    mask = tree(np.random.default_rng(1), 3, tokens)
    assert (mask != np.tril(np.ones_like(mask))).any()
    check(fresh_partial(case.q, case.k, case.v, jnp.asarray(mask)), slow(case.q, case.k, case.v, mask))


def test_fresh_rows_that_see_nothing():
    case = Case((6, 2), 64, 5, (0, 7), slots=BLOCK)
    mask = chain(case)
    mask[0, 3] = False
    mask[1] = False
    found = fresh_partial(case.q, case.k, case.v, jnp.asarray(mask))
    check(found, slow(case.q, case.k, case.v, mask))
    assert np.isneginf(found.lse[1]).all()


@pytest.mark.parametrize(("tokens", "window"), [(1, None), (5, 3), (129, None), (129, 60)])
def test_attention_is_the_softmax_over_both_parts(tokens, window):
    case = Case((9, 3), 64, tokens, LENGTHS, slots=512, window=window)
    mask = chain(case)
    expected = case.slow_attended(mask)
    np.testing.assert_allclose(case.attended(jnp.asarray(mask)), expected, rtol=2e-5, atol=2e-5)
    parts = merge(case.cached(), fresh_partial(case.q, case.k, case.v, jnp.asarray(mask)))
    np.testing.assert_allclose(parts, expected, rtol=2e-5, atol=2e-5)


def test_attention_of_a_tree():
    case = Case((4, 1), 64, 9, (0, 40, 200), slots=256)
    mask = tree(np.random.default_rng(2), 3, 9)
    np.testing.assert_allclose(case.attended(jnp.asarray(mask)), case.slow_attended(mask), rtol=2e-5, atol=2e-5)


def test_merge_with_nothing_on_either_side():
    out = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 4, 8)), jnp.float32)
    lse = jnp.array([[[0.0, -jnp.inf, 3.0, -jnp.inf]]])
    some, nothing = Partial(jnp.where(jnp.isfinite(lse)[..., None], out, 0), lse), jnp.full_like(lse, -jnp.inf)
    for merged in (merge(some, Partial(0 * out, nothing)), merge(Partial(0 * out, nothing), some)):
        np.testing.assert_allclose(merged, some.out, rtol=1e-6)


def test_large_scores_do_not_overflow():
    case = Case((4, 2), 64, 4, (0, 3, 200), slots=256, scale=100.0)
    mask = chain(case)
    expected = case.slow_attended(mask)
    np.testing.assert_allclose(case.attended(jnp.asarray(mask)), expected, rtol=2e-3, atol=2e-3)


def test_bfloat16_is_accumulated_in_float32():
    case = Case((4, 2), 64, 2, (300, 512), slots=512, dtype=jnp.bfloat16)
    mask = chain(case)
    found = case.attended(jnp.asarray(mask))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, case.slow_attended(mask), atol=4e-3)


def test_heads_fold_by_group_and_back():
    q = jnp.arange(2 * 3 * 6 * 2).reshape(2, 3, 6, 2)
    folded = fold_heads(q, 2)
    assert folded.shape == (2, 2, 9, 2)
    # Token 1, head 4: the second group's second head.
    np.testing.assert_array_equal(folded[0, 1, 1 * 3 + 1], q[0, 1, 4])
    np.testing.assert_array_equal(unfold_heads(folded, 3), q)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape(data):
    k_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    slots = BLOCK * data.draw(st.sampled_from([1, 2, 4]))
    lengths = data.draw(st.lists(st.integers(0, slots), min_size=1, max_size=4))
    tokens, width = data.draw(st.integers(1, 140)), 2 * data.draw(st.integers(1, 16))
    window = data.draw(st.none() | st.integers(1, 2 * slots))
    case = Case((k_heads * group, k_heads), width, tokens, lengths, slots, window, seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        check(case.cached(), case.slow_cached())
    else:
        mask = chain(case)
        np.testing.assert_allclose(case.attended(jnp.asarray(mask)), case.slow_attended(mask), rtol=2e-5, atol=2e-5)

"""What a commit writes, against a list of tokens for each row; and attention over it, against no cache at all."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer import POLICIES, Dense, LayerKind, Lookup, Model, ModelConfig, Paged, Quantized, Rope, Segment, Window
from jaxinfer.cache.codes import through
from jaxinfer.cache.store import BLOCK, causal, extent
from jaxinfer.decoding.loop import decode
from jaxinfer.decoding.sampling.settings import Sampling
from jaxinfer.network.transformer import forward, logits_of
from jaxinfer.runtime.generation import Generation
from jaxinfer.runtime.prefill import positions_of

EXACT = [Dense(), Window(), Paged(block=16)]
CFG = ModelConfig(
    family="llama",
    vocab_size=97,
    d_model=32,
    d_ff=48,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    segments=(Segment((LayerKind("local", Rope(), window=BLOCK), LayerKind("global")), 2),),
    max_positions=2048,
    tie_embeddings=False,
)
"""The local layers' ring has exactly as many slots as their window: one slot too few would show."""


@pytest.mark.quick
def test_every_policy_of_the_registry_is_tested_here():
    """One that is not exact needs a file of its own."""
    assert {type(policy) for policy in EXACT} == set(POLICIES.values()) - {Quantized}


@pytest.mark.parametrize(("name", "same"), [("tiny_llama", True), ("tiny_gemma", False)])
def test_without_a_layer_that_has_one_a_window_is_the_same_program(request, ragged, name, same):
    model = request.getfixturevalue(name)

    def lowered(policy):
        prompts, limits = ragged((5, 200)), [8, 150]  # more than a ring holds
        running = Generation.begin(
            model.placed, prompts, limits, Lookup(4), policy, Sampling(), [0, 0], (), logprobs=False
        )
        args = (running.placed.params, running.extras, running.state, np.int32(12))
        return jax.jit(partial(decode, model.network, Lookup(4))).lower(*args).as_text()

    assert (lowered(Dense()) == lowered(Window())) == same


class Mirror:
    """What a cache should hold: a list of (k, v) for each row."""

    def __init__(self, policy, batch, capacity):
        self.cache = policy.init(CFG, batch, capacity, jnp.float32)
        self.rows = {name: [[] for _ in range(batch)] for name in self.cache.stores}
        self.rng = np.random.default_rng(0)

    def commit(self, width, take, n):
        batch, fresh = len(n), {}
        for name, store in self.cache.stores.items():
            shape = (store.k.shape[0], batch, CFG.n_kv_heads, width, CFG.head_dim)
            fresh[name] = tuple(self.rng.normal(size=shape).astype(np.float32) for _ in "kv")
            for row, count in enumerate(n):
                order = range(count) if take is None else take[row][:count]
                self.rows[name][row] += [tuple(x[:, row, :, column] for x in fresh[name]) for column in order]
        take = None if take is None else jnp.asarray(take, jnp.int32)
        fresh = jax.tree.map(jnp.asarray, fresh)
        self.cache = self.cache.policy.commit(self.cache, fresh, take, jnp.asarray(n, jnp.int32), None)

    def check(self):
        for name, store in self.cache.stores.items():
            slots = store.pos.shape[1]
            pos = np.full(store.pos.shape, -1)
            shape = (store.k.shape[0], len(pos), store.k.shape[2], slots, store.k.shape[-1])
            k, v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
            for row, tokens in enumerate(self.rows[name]):
                for place in range(max(0, len(tokens) - slots), len(tokens)):
                    pos[row, place % slots] = place
                    k[:, row, :, place % slots], v[:, row, :, place % slots] = tokens[place]
            np.testing.assert_array_equal(store.pos, pos)
            for found, expected in ((store.k, k), (store.v, v)):
                if store.pages is not None:  # as the rows of a store of their own; what is not in use is anything
                    layers = range(found.shape[0])
                    found = np.stack([through(found, layer, store.pages) for layer in layers])
                    found = np.where(pos[:, None, :, None] >= 0, found, 0)
                np.testing.assert_array_equal(found, expected)
            assert int(extent(store)) == max(min(len(tokens), slots) for tokens in self.rows[name])
        assert self.cache.length.tolist() == [len(tokens) for tokens in self.rows["global"]]


@pytest.mark.quick
@pytest.mark.parametrize("policy", EXACT, ids=str)
def test_an_empty_cache(policy):
    mirror = Mirror(policy, batch=3, capacity=300)
    mirror.check()
    slots = 384 if isinstance(policy, Dense) else 128
    for name, wide in (("global", 384), ("local", slots)):
        shape = (2, 3 * wide // 16, 2, 16, 8) if isinstance(policy, Paged) else (2, 3, 2, wide, 8)
        assert mirror.cache.stores[name].k.shape == shape
        assert mirror.cache.stores[name].pos.shape == (3, wide)
    assert mirror.cache.policy is policy


def test_a_ring_is_no_larger_than_the_capacity_asks_for():
    cfg = CFG.replace(segments=(Segment((LayerKind("local", window=1000),), 1),))
    assert Window().init(cfg, 1, 200, jnp.float32).stores["local"].pos.shape == (1, 256)
    assert Window().init(cfg, 1, 5000, jnp.float32).stores["local"].pos.shape == (1, 1024)


@pytest.mark.quick
@pytest.mark.parametrize("policy", EXACT, ids=str)
def test_commits_by_hand(policy):
    mirror = Mirror(policy, batch=4, capacity=512)
    mirror.commit(5, None, [5, 3, 0, 1])  # the first n, a row untouched
    mirror.check()
    mirror.commit(6, [[0, 2, 5], [5, 4, 3], [1, 1, 1], [0, 1, 2]], [3, 2, 1, 0])  # what a tree accepted, in any order
    mirror.check()
    mirror.commit(4, None, [0, 0, 0, 0])
    mirror.check()
    mirror.commit(BLOCK - 5, None, [BLOCK - 8, BLOCK - 5, BLOCK - 6, 3])  # up to the ring's end, to a slot before it
    mirror.check()
    mirror.commit(3, [[2, 1, 0]] * 4, [3, 3, 1, 2])  # across it
    mirror.check()
    mirror.commit(300, None, [300, 129, 128, 0])  # more than the ring holds
    mirror.check()


@pytest.mark.parametrize("policy", EXACT, ids=str)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_series_of_commits(policy, data):
    mirror = Mirror(policy, batch=2, capacity=1024)
    for _ in range(data.draw(st.integers(1, 4))):
        width = data.draw(st.sampled_from([1, 4, 130, 256]))
        n = data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2))
        take = None
        if data.draw(st.booleans()):
            rng = np.random.default_rng(data.draw(st.integers(0, 99)))
            take = [rng.permutation(width).tolist() for _ in range(2)]
        mirror.commit(width, take, n)
        mirror.check()


@pytest.mark.quick
def test_what_a_query_sees():
    places = np.arange(-1, 9)
    for window, expected in ((None, [0, 1, 2, 3, 4, 5]), (1, [5]), (3, [3, 4, 5]), (6, [0, 1, 2, 3, 4, 5])):
        seen = np.asarray(causal(LayerKind(window=window), np.array(5), places))
        assert places[seen].tolist() == expected
    for policy in EXACT:
        seen = policy.visible(LayerKind(window=3), np.array([5, 0])[:, None], places[None])
        assert [places[row].tolist() for row in np.asarray(seen)] == [[3, 4, 5], [0]]


@pytest.fixture(scope="module")
def model():
    return Model.random(CFG)


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(1).integers(0, 97, (3, 700))


@partial(jax.jit, static_argnums=0)
def scored(network, params, cache, tokens, n):
    """One step: logits of all tokens, and a cache with the first n[B] committed."""
    output = forward(network, params, tokens, positions_of(cache, tokens), cache)
    return cache.policy.commit(cache, output.fresh, None, n, output.stats), logits_of(network, params, output.hidden)


@pytest.fixture(scope="module")
def uncached(model, texts):
    """The logits of whole texts in one forward over an empty cache."""
    empty = Dense().init(CFG, 3, 1, jnp.float32)
    return np.asarray(scored(model.network, model.params, empty, jnp.asarray(texts), jnp.zeros(3, jnp.int32))[1])


WIDTHS = {
    "narrow": [(200, 200, 200), (1, 1, 1), (7, 3, 0)] + [(7, 2, 5), (1, 0, 1)] * 20,
    "wide": [(300, 5, 130), (1, 1, 1), (129, 129, 128), (64, 0, 64), (128, 128, 128), (40, 300, 200)],
}


@pytest.mark.parametrize("steps", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("policy", EXACT, ids=str)
def test_ragged_steps_give_the_logits_of_one_forward(model, texts, uncached, policy, steps):
    """Each row takes its own number of tokens from each step; the others are drafts that were rejected."""
    cache = policy.init(CFG, 3, 700, jnp.float32)
    done = np.zeros(3, int)
    for n in steps:
        width = max(n)
        part = np.stack([np.resize(text[at : at + width], width) for text, at in zip(texts, done, strict=True)])
        for row in range(3):
            part[row, n[row] :] = 96 - part[row, n[row] :]
        cache, logits = scored(model.network, model.params, cache, jnp.asarray(part), jnp.array(n))
        for row in range(3):
            expected = uncached[row, done[row] : done[row] + n[row]]
            np.testing.assert_allclose(logits[row, : n[row]], expected, rtol=0, atol=2e-5)
        done += n
    assert done.max() > 2 * BLOCK
    assert cache.length.tolist() == done.tolist()


def test_a_ring_equals_all_slots_over_many_wraps(model, texts):
    """Four wraps of the ring, by single tokens and by drafts."""
    prompts = [texts[0, :3].tolist(), texts[1, :150].tolist(), texts[2, :400].tolist()]
    options = {"max_new_tokens": [500, 400, 150]}
    dense = model.generate(prompts, policy=Dense(), **options).tokens
    assert model.generate(prompts, policy=Window(), **options).tokens == dense
    drafted = model.generate(prompts, policy=Window(), method=Lookup(width=16), **options)
    assert drafted.tokens == dense
    assert drafted.stats.tokens_per_step > 1.2


def test_a_ring_with_too_few_slots_would_be_noticed(model, texts):
    """The tests above can tell: with one slot less than the window, the logits differ."""
    whole = scored(
        model.network, model.params, Window().init(CFG, 3, 700, jnp.float32), texts[:, :200], np.full(3, 200)
    )
    cache = whole[0]
    local = cache.stores["local"]
    oldest = local.pos == 200 - BLOCK + 1
    assert oldest.sum() == 3
    less = dataclasses.replace(local, pos=jnp.where(oldest, -1, local.pos))
    shorter = dataclasses.replace(cache, stores={**cache.stores, "local": less})
    after = [scored(model.network, model.params, c, texts[:, 200:201], np.ones(3, int))[1] for c in (cache, shorter)]
    assert np.abs(np.asarray(after[0] - after[1])).max() > 1e-4

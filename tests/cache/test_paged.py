"""Blocks that rows share: against lists of tokens, against a count of who holds what, and against Dense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer import (
    Beam,
    Dense,
    Greedy,
    InputError,
    LayerKind,
    Lookup,
    Model,
    ModelConfig,
    Paged,
    Rope,
    RopeScaling,
    Sampling,
    Segment,
    Window,
)
from jaxinfer.cache.codes import through
from jaxinfer.cache.paged import blocks_in_use
from jaxinfer.cache.store import gather
from jaxinfer.runtime.generation import Generation
from jaxinfer.runtime.placed import PlacedModel

BLOCK, ROWS, WIDTH, RING = 16, 3, 40, 128
CFG = ModelConfig(
    family="llama",
    vocab_size=11,
    d_model=4,
    d_ff=4,
    n_heads=1,
    n_kv_heads=1,
    head_dim=2,
    segments=(Segment((LayerKind("local", window=RING), LayerKind("global")), 1),),
    max_positions=1024,
)


class Simulation:
    """A list of blocks for each row and kind, token by token. A block is a list that rows may hold together."""

    def __init__(self, slots):
        self.slots = slots  # by kind
        self.rows = {name: [[] for _ in range(ROWS)] for name in slots}
        self.length = [0] * ROWS

    def commit(self, values, n):
        for name, rows in self.rows.items():
            for row, blocks in enumerate(rows):
                for token in range(n[row]):
                    at, offset = divmod((self.length[row] + token) % self.slots[name], BLOCK)
                    if at == len(blocks):
                        blocks.append([None] * BLOCK)
                    elif sum(any(blocks[at] is x for x in other) for other in rows) > 1:
                        blocks[at] = list(blocks[at])
                    blocks[at][offset] = values[row, token]
        self.length = [length + count for length, count in zip(self.length, n, strict=True)]

    def gather(self, chosen):
        self.rows = {name: [list(rows[i]) for i in chosen] for name, rows in self.rows.items()}
        self.length = [self.length[i] for i in chosen]

    def check(self, cache):
        assert cache.length.tolist() == self.length
        for name, rows in self.rows.items():
            store, pool = jax.tree.map(np.asarray, (cache.stores[name], cache.aux[name]))
            size = store.k.shape[1]
            held = np.zeros(size, int)
            for row, blocks in enumerate(rows):
                mine = store.pages[row, : len(blocks)]
                held[mine] += 1  # a row has no block twice
                reserved, live = len(blocks) * BLOCK, min(self.length[row], self.slots[name])
                assert reserved - live < BLOCK
                np.testing.assert_array_equal(np.flatnonzero(store.pos[row] >= 0), np.arange(live))
                found = store.k[0, mine, 0, :, 0].reshape(-1)[:live]
                np.testing.assert_array_equal(found, np.array(blocks, float).reshape(-1)[:live])
            np.testing.assert_array_equal(pool.holders, held)
            n_free = int(pool.n_free)
            assert sorted(pool.free[:n_free].tolist()) == np.flatnonzero(held == 0).tolist()
            assert blocks_in_use(cache)[name] == len({id(x) for blocks in rows for x in blocks})


@jax.jit
def committed(cache, values, n):
    """values f32[B, WIDTH]: what the keys and, negated, the values of both layers are."""
    kv = jnp.broadcast_to(values[None, :, None, :, None], (1, ROWS, 1, WIDTH, 2))
    return cache.policy.commit(cache, {kind.name: (kv, -kv) for kind in CFG.kinds}, None, n, None)


moved = jax.jit(gather)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_series_of_commits_and_moves(data):
    cache = Paged(block=BLOCK).init(CFG, ROWS, 256, jnp.float32)
    simulation = Simulation({name: store.pos.shape[1] for name, store in cache.stores.items()})
    assert simulation.slots == {"local": RING, "global": 256}
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    for _ in range(data.draw(st.integers(1, 6))):
        room = [min(WIDTH, 256 - length) for length in simulation.length]
        n = [data.draw(st.sampled_from(sorted({0, 1, most // 2, most}))) for most in room]
        values = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
        cache = committed(cache, jnp.asarray(values), jnp.array(n, jnp.int32))
        simulation.commit(values, n)
        simulation.check(cache)
        if data.draw(st.booleans()):
            chosen = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=ROWS, max_size=ROWS))
            cache = moved(cache, jnp.array(chosen))
            simulation.gather(chosen)
            simulation.check(cache)


def test_rows_that_share_a_block_part_when_one_writes():
    cache = Paged(block=BLOCK).init(CFG, ROWS, 256, jnp.float32)
    first, second = np.zeros((ROWS, WIDTH), np.float32), np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    cache = moved(committed(cache, jnp.asarray(first + 7), jnp.array([20, 0, 0])), jnp.zeros(ROWS, jnp.int32))
    assert blocks_in_use(cache) == {"local": 2, "global": 2}
    before = cache.stores["global"].pages
    cache = committed(cache, jnp.asarray(second), jnp.array([0, 3, 2]))
    store = cache.stores["global"]
    assert blocks_in_use(cache) == {"local": 4, "global": 4}
    assert store.pages[:, 0].tolist() == [before[0, 0]] * ROWS  # nobody has written into the first block
    assert store.pages[0, 1] == before[0, 1]
    assert len(set(store.pages[:, 1].tolist())) == ROWS
    k, v = (np.asarray(through(x, jnp.int32(0), store.pages))[:, 0, :, 0] for x in (store.k, store.v))
    for row, n in ((0, 0), (1, 3), (2, 2)):
        expected = [7.0] * 20 + second[row, :n].tolist()
        assert k[row, : 20 + n].tolist() == expected
        assert (-v[row, : 20 + n]).tolist() == expected
    assert not np.asarray(k[0, 20:32]).any()
    # All of them write: the first keeps the block, and no more blocks are taken than rows need.
    again = moved(cache, jnp.zeros(ROWS, jnp.int32))
    kept = again.stores["global"].pages[0, 1]
    again = committed(again, jnp.asarray(second), jnp.array([1, 1, 1]))
    assert blocks_in_use(again) == {"local": 4, "global": 4}
    assert again.stores["global"].pages[0, 1] == kept


def started(model, prompts, new, policy, method):
    """A generation after its prompts, and how many tokens its calls of prefill read, without padding."""
    read, real = [], PlacedModel.prefill

    def prefill(target, cache, tokens, n, hidden=None):
        read.append(int(np.sum(n)))
        return real(target, cache, tokens, n, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlacedModel, "prefill", prefill)
        count = len(prompts)
        generation = Generation.begin(
            model.placed,
            prompts,
            [new] * count,
            method,
            policy,
            Sampling(temperature=0.0),
            list(range(count)),
            (),
            False,
        )
    return generation, sum(read)


def test_a_common_beginning_is_read_once_and_held_once(tiny_gemma, ragged):
    (start,) = ragged((40,))
    prompts = [start + end for end in ragged((1, 9, 30), seed=1)]
    tokens = tiny_gemma.generate(prompts, max_new_tokens=20, policy=Dense()).tokens
    generation, read = started(tiny_gemma, prompts, 20, Paged(block=16), Lookup(width=4))
    assert read == 32 + 8 + 16 + 37
    # Behind the whole blocks: 8, 16 and 37 tokens.
    assert blocks_in_use(generation.state.cache)["global"] == 2 + 1 + 1 + 3
    generation.run()
    assert generation.rows() == tokens
    assert started(tiny_gemma, prompts, 20, Dense(), Greedy())[1] == 40 + 48 + 69


def test_samples_of_one_prompt(tiny_gemma, ragged):
    prompts, hot = ragged((50,)) * 3, Sampling(temperature=1.0)
    options = {"max_new_tokens": 30, "sampling": hot, "seed": [5, 6, 5]}
    expected = tiny_gemma.generate(prompts, policy=Dense(), **options).tokens
    assert expected[0] == expected[2] != expected[1]
    assert tiny_gemma.generate(prompts, policy=Paged(block=16), **options).tokens == expected
    other = [row[:40] for row in prompts]  # the second call, of another length
    assert (
        tiny_gemma.generate(other, policy=Paged(block=16), **options).tokens
        == tiny_gemma.generate(other, policy=Dense(), **options).tokens
    )


def test_frequencies_that_follow_the_length_are_shared_with_no_other_prompt(tiny_llama, ragged):
    scaling = RopeScaling(kind="dynamic", factor=4.0, original_max_positions=24)
    cfg = tiny_llama.config.replace(segments=(Segment((LayerKind(rope=Rope(scaling=scaling)),), 3),))
    (start,) = ragged((40,))
    prompts = [start + end for end in ragged((1, 30), seed=1)]
    model = Model(cfg, tiny_llama.params)
    expected = model.generate(prompts, max_new_tokens=8, policy=Dense()).tokens
    assert model.generate(prompts, max_new_tokens=8, policy=Paged(block=16)).tokens == expected


@pytest.mark.parametrize("method", [Greedy(), Beam(beams=3, returned=3)], ids=str)
def test_a_pool_of_just_enough_blocks(tiny_gemma, ragged, method):
    """What `check_room` asks for is what it takes in the worst case, and one block less is refused at once."""
    prompts, new = ragged((40, 3)), 45
    result = tiny_gemma.generate(prompts, max_new_tokens=new, method=method, policy=Window())
    copies = method.rows_per_prompt
    need = {1: 6 + 3, 3: (2 + 3 * 4) + 3 * 3}[copies]  # 84 and 47 tokens; 2 blocks of the first prompt are whole
    found = tiny_gemma.generate(prompts, max_new_tokens=new, method=method, policy=Paged(block=16, pool=need))
    assert found.tokens == result.tokens
    if copies > 1:
        for one, other in zip(found.beams, result.beams, strict=True):
            assert [text for text, _ in one] == [text for text, _ in other]
            np.testing.assert_allclose([score for _, score in one], [score for _, score in other], rtol=1e-5)
    generation, _ = started(tiny_gemma, prompts, new, Paged(block=16, pool=need), method)
    generation.run()
    used = blocks_in_use(generation.state.cache)["global"]
    assert used == need if copies == 1 else used <= need
    with pytest.raises(InputError, match=rf"pool={need - 1} blocks of 16 tokens is too small.*need {need}; raise pool"):
        started(tiny_gemma, prompts, new, Paged(block=16, pool=need - 1), method)

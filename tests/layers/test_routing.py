"""Routers and dispatches of experts, against loops over tokens in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxinfer.config import MoE
from jaxinfer.layers import expert_dispatch, routing

D, F = 24, 40
AUCTION = jax.jit(routing.auction)
ALL = jnp.ones(96, bool)


class Case:
    """Tokens, router logits, and experts that are small MLPs."""

    def __init__(self, tokens: int, experts: int, top_k: int, seed: int = 0, skew: float = 0.0, **options):
        rng = np.random.default_rng(seed)
        self.moe = MoE(experts, top_k, F, **options)
        self.x = jnp.asarray(rng.standard_normal((tokens, D)), jnp.float32)
        bias = -skew * np.arange(experts)
        self.logits = jnp.asarray(rng.standard_normal((tokens, experts)) + bias, jnp.float32)
        self.up = jnp.asarray(rng.standard_normal((experts, F, D)) / 5, jnp.float32)
        self.down = jnp.asarray(rng.standard_normal((experts, D, F)) / 5, jnp.float32)
        self.gates, self.chosen = routing.route(self.logits, self.moe)

    def ffn(self, rows, e):
        return jnp.tanh(rows @ self.up[e].T) @ self.down[e].T

    def slow(self, kept=None):
        """Token by token; of its experts, those that `kept` bool[N, k] names."""
        out = np.zeros((len(self.x), D), np.float64)
        for n, (x, gates, chosen) in enumerate(zip(self.x, self.gates, self.chosen, strict=True)):
            for j, (gate, e) in enumerate(zip(gates, chosen, strict=True)):
                if kept is None or kept[n, j]:
                    up, down = np.asarray(self.up[e], np.float64), np.asarray(self.down[e], np.float64)
                    out[n] += float(gate) * (down @ np.tanh(up @ np.asarray(x, np.float64)))
        return out

    def of(self, compute):
        return jax.jit(compute, static_argnums=(3, 4))(self.x, self.gates, self.chosen, self.ffn, self.moe.experts)


@pytest.mark.parametrize(
    ("shape", "skew"),
    [((1, 4, 2), 0), ((7, 4, 2), 3), ((100, 8, 3), 0), ((700, 3, 1), 1), ((3, 64, 6), 0), ((33, 6, 6), 0)],
    ids=str,
)
@pytest.mark.parametrize("compute", [expert_dispatch.dense, expert_dispatch.dropless])
def test_every_token_gets_its_own_experts(shape, compute, skew):
    """With a skew, one expert gets nearly all tokens and others get none."""
    case = Case(*shape, skew=skew)
    np.testing.assert_allclose(case.of(compute), case.slow(), rtol=1e-5, atol=1e-5)


def test_blocks_are_no_larger_than_what_is_in_them():
    """Loads of 515, 180 and 33 are blocks of 256, 256 and 32, of 192 and of 64; the same as all experts for all."""
    assert expert_dispatch.block_sizes(728, 1, 3) == (32, 64, 128, 192, 256)
    assert expert_dispatch.block_sizes(8, 2, 8) == (8,)  # an expert's weights are read once, whoever chooses it
    assert expert_dispatch.block_sizes(1, 2, 8) == (1,)
    load = np.array([515, 180, 33])
    assert expert_dispatch.computed(jnp.asarray(load), 728, 1) == 2 * 256 + 32 + 192 + 64
    case = Case(728, 3, 1)
    case.chosen = jnp.asarray(np.random.default_rng(1).permutation(np.repeat(np.arange(3), load))[:, None], jnp.int32)
    seen, ffn = [], case.ffn

    def counting(rows, e):
        seen.append(len(rows))
        return ffn(rows, e)

    case.ffn = counting
    np.testing.assert_allclose(case.of(expert_dispatch.dropless), case.of(expert_dispatch.dense), rtol=1e-5, atol=1e-5)
    assert set(seen) == {32, 64, 128, 192, 256, 728}


@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (16, 2), (64, 6)])
@pytest.mark.parametrize("skew", [0.0, 2.0])
def test_dropless_computes_fewer_rows_than_the_usual_capacity(experts, top_k, skew):
    """2,048 tokens: capacity factor 1.25 computes 1.25 rows for one that is wanted, however they are routed."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2048, experts)) + skew * rng.standard_normal(experts)
    load = np.bincount(np.argsort(-logits, axis=1)[:, :top_k].ravel(), minlength=experts)
    assert 2048 * top_k <= expert_dispatch.computed(jnp.asarray(load), 2048, top_k) < 1.2 * 2048 * top_k


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 100.0])
def test_capacity_drops_the_later_tokens_and_choices(factor):
    case = Case(100, 8, 3, skew=0.4, capacity_factor=factor)
    size = expert_dispatch.capacity(100, case.moe)
    assert size == max(1, int(np.ceil(factor * 100 * 3 / 8)))
    taken, expected = np.zeros(8, int), np.zeros((100, 3), bool)
    for j in range(3):  # all first choices before any second one
        for n in range(100):
            e = case.chosen[n, j]
            expected[n, j] = taken[e] < size
            taken[e] += 1
    args = (case.x, case.gates, case.chosen, case.ffn, 8, size)
    found, kept = jax.jit(expert_dispatch.with_capacity, static_argnums=(3, 4, 5))(*args)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_allclose(found, case.slow(expected), rtol=1e-5, atol=1e-5)
    assert expected.all() == (factor == 100.0)


@pytest.mark.parametrize(("router", "normalize"), [("softmax", False), ("softmax", True), ("topk", False)])
def test_gates(router, normalize):
    case = Case(20, 6, 2, router=router, normalize=normalize)
    whole = np.exp(case.logits) / np.exp(case.logits).sum(axis=1, keepdims=True)
    order = np.argsort(-whole, axis=1)[:, :2]
    expected = np.take_along_axis(whole, order, axis=1)
    if normalize or router == "topk":
        expected = expected / expected.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(case.chosen, order)
    np.testing.assert_allclose(case.gates, expected, rtol=1e-5)


def test_priority_by_gate_drops_those_with_small_gates():
    case = Case(60, 5, 2, skew=0.5, capacity_factor=0.7)
    size = expert_dispatch.capacity(60, case.moe)
    taken, expected = np.zeros(5, int), np.zeros((60, 2), bool)
    for j in range(2):
        for n in np.argsort(-case.gates[:, 0], stable=True):
            e = case.chosen[n, j]
            expected[n, j] = taken[e] < size
            taken[e] += 1
    bounded = jax.jit(expert_dispatch.with_capacity, static_argnums=(3, 4, 5, 6))
    found, kept = bounded(case.x, case.gates, case.chosen, case.ffn, 5, size, True)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_allclose(found, case.slow(expected), rtol=1e-5, atol=1e-5)
    in_order = bounded(case.x, case.gates, case.chosen, case.ffn, 5, size, False)[1]
    assert (in_order != kept).any()


def test_padding_takes_no_slot():
    case = Case(40, 4, 2, skew=0.5)
    live = jnp.arange(40) % 3 != 0
    bounded = jax.jit(expert_dispatch.with_capacity, static_argnums=(3, 4, 5))
    found, kept = bounded(case.x, case.gates, case.chosen, case.ffn, 4, 10, live=live)
    alone = (y[np.asarray(live)] for y in (case.x, case.gates, case.chosen))
    expected, kept_alone = bounded(*alone, case.ffn, 4, 10)
    assert 0 < kept_alone.sum() < kept_alone.size
    np.testing.assert_array_equal(kept[live], kept_alone)
    np.testing.assert_allclose(found[live], expected, rtol=1e-5, atol=1e-5)
    assert not kept[~live].any()
    assert not found[~live].any()


def test_switch_is_the_likeliest_expert_with_its_probability():
    case = Case(30, 5, 1)
    probs = np.exp(case.logits) / np.exp(case.logits).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(case.chosen[:, 0], probs.argmax(axis=1))
    np.testing.assert_allclose(case.gates[:, 0], probs.max(axis=1), rtol=1e-5)


@pytest.mark.parametrize(("router", "best"), [("softmax", 1), ("sigmoid", 2)])
def test_groups_limit_the_choice(router, best):
    """A group is worth its best expert under softmax, its best two under sigmoid; the bias moves the choice alone."""
    case = Case(50, 12, 3, router=router, groups=4, top_groups=2, normalize=router == "sigmoid", scale=1.5)
    bias = np.random.default_rng(5).standard_normal(12).astype(np.float32) / 5 if router == "sigmoid" else None
    gates, chosen = routing.route(case.logits, case.moe, bias)
    logits = np.asarray(case.logits, np.float64)
    scores = 1 / (1 + np.exp(-logits)) if router == "sigmoid" else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for n, row in enumerate(scores):
        wanted = row + (0 if bias is None else bias)
        worth = [np.sort(group)[-best:].sum() for group in wanted.reshape(4, 3)]
        allowed = [e for e in range(12) if e // 3 in np.argsort(worth)[-2:]]
        expected = sorted(allowed, key=lambda e: -wanted[e])[:3]
        assert chosen[n].tolist() == expected
        gate = row[expected] / (row[expected].sum() if router == "sigmoid" else 1)
        np.testing.assert_allclose(gates[n], 1.5 * gate, rtol=1e-5)


def test_sinkhorn_evens_out_what_softmax_does_not():
    case = Case(400, 8, 1, skew=1.0)
    balanced = routing.sinkhorn(case.logits, rounds=50)
    np.testing.assert_allclose(balanced.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(balanced.sum(axis=0), 50, rtol=0.02)
    _, chosen = routing.route(case.logits, MoE(8, 1, F, router="sinkhorn"))
    balanced_load, load = (np.bincount(np.asarray(x).ravel(), minlength=8) for x in (chosen, case.chosen))
    assert balanced_load.max() < 0.5 * load.max()
    live = jnp.arange(400) < 250  # padding changes nothing for the others
    np.testing.assert_allclose(
        routing.sinkhorn(case.logits, live)[:250], routing.sinkhorn(case.logits[:250]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("n", "experts", "skew"), [(96, 6, 0.0), (96, 6, 2.0), (101, 7, 1.0), (5, 8, 1.0)])
@pytest.mark.parametrize("step", [0.1, 0.001])
def test_an_auction_is_the_best_balanced_assignment(n, experts, skew, step):
    """Against an exact solver, with an expert as many columns as it has places."""
    case = Case(n, experts, 1, skew=skew)
    chosen = np.asarray(AUCTION(case.logits, jnp.ones(n, bool), step, 1000))
    load = np.bincount(chosen, minlength=experts)
    assert sorted(load) == sorted(len(x) for x in np.array_split(np.arange(n), experts))
    logits = np.asarray(case.logits, np.float64)
    columns = np.repeat(np.arange(experts), load)
    best = logits[:, columns][optimize.linear_sum_assignment(logits[:, columns], maximize=True)].sum()
    found = logits[np.arange(n), chosen].sum()
    assert best - n * step - 1e-3 <= found <= best + 1e-3


def test_an_auction_leaves_padding_out_and_ends():
    case, live = Case(96, 6, 1, skew=1.0), jnp.arange(96) % 4 != 1
    chosen = np.asarray(AUCTION(case.logits, live, 0.1, 1000))[np.asarray(live)]
    assert (np.bincount(chosen, minlength=6) == 12).all()
    moved = jnp.where(live[:, None], case.logits, case.logits[::-1] + 3)
    np.testing.assert_array_equal(AUCTION(moved, live, 0.1, 1000)[live], chosen)
    alike = jnp.zeros((96, 6))  # every offer is as good as any other
    for rounds in (0, 2, 1000):  # what the bids leave open is filled all the same
        assert (np.bincount(AUCTION(alike, ALL, 0.1, rounds), minlength=6) == 16).all()


def test_auction_gates_are_sigmoids_and_a_token_alone_takes_its_best():
    case = Case(96, 6, 1, skew=1.0, router="auction")
    np.testing.assert_array_equal(case.chosen[:, 0], AUCTION(case.logits, ALL, routing.AUCTION_STEP, 1000))
    of_chosen = np.take_along_axis(np.asarray(case.logits), np.asarray(case.chosen), axis=1)
    np.testing.assert_allclose(case.gates, 1 / (1 + np.exp(-of_chosen)), rtol=1e-5)
    gates, experts = routing.route(case.logits, case.moe.alone())
    np.testing.assert_array_equal(experts[:, 0], case.logits.argmax(axis=1))
    np.testing.assert_allclose(gates[:, 0], 1 / (1 + np.exp(-case.logits.max(axis=1))), rtol=1e-5)
    with pytest.raises(ValueError, match="top_k=2 must be 1"):
        MoE(8, 2, F, router="auction")


@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (8, 2), (5, 3), (1, 1)])
def test_hash_routing_goes_by_the_token_alone_and_evenly(experts, top_k):
    tokens = jnp.arange(20_000)
    gates, chosen = routing.route(jnp.zeros((20_000, experts)), MoE(experts, top_k, F, router="hash"), tokens=tokens)
    assert (gates == 1 / top_k).all()
    equal = MoE(experts, top_k, F, router="hash", equal_gates=True, scale=2.0)
    assert (routing.route(jnp.zeros((20_000, experts)), equal, tokens=tokens)[0] == 2).all()
    assert (np.diff(np.sort(chosen, axis=1), axis=1) > 0).all()  # different experts
    load = np.bincount(np.asarray(chosen).ravel(), minlength=experts) / 20_000
    np.testing.assert_allclose(load, top_k / experts, rtol=0.05)
    again = routing.hashed(tokens[::-1], experts, top_k)
    np.testing.assert_array_equal(again[::-1], chosen)


def test_expert_choice_fills_every_expert_exactly():
    case, size = Case(30, 4, 2, skew=2.0), 9
    live = jnp.arange(30) < 26
    gates, tokens = routing.expert_choice(case.logits, size, live)
    assert tokens.shape == (4, size)
    probs = np.exp(case.logits) / np.exp(case.logits).sum(axis=1, keepdims=True)
    expected = np.zeros((30, D))
    for e in range(4):
        best = np.argsort(-probs[:26, e])[:size]
        assert set(tokens[e].tolist()) == set(best.tolist())
        for n in best:
            x = np.asarray(case.x[n], np.float64)
            expected[n] += probs[n, e] * (np.asarray(case.down[e]) @ np.tanh(np.asarray(case.up[e]) @ x))
    found = expert_dispatch.chosen_by_experts(case.x, gates, tokens, case.ffn)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_soft_mixture_is_its_definition():
    case = Case(20, 6, 1)
    live, logits = np.arange(20) < 17, np.asarray(case.logits, np.float64).reshape(20, 3, 2)
    into = np.exp(logits) * live[:, None, None]
    into /= into.sum(axis=0)
    slots = np.einsum("nep,nd->epd", into, case.x)
    done = np.stack([np.asarray(case.ffn(jnp.asarray(slots[e], jnp.float32), e)) for e in range(3)])
    back = np.exp(logits) / np.exp(logits).sum(axis=(1, 2), keepdims=True)
    expected = np.einsum("nep,epd->nd", back, done)
    found = expert_dispatch.soft(case.x, jnp.asarray(logits, jnp.float32), case.ffn, jnp.asarray(live))
    np.testing.assert_allclose(found[:17], expected[:17], rtol=1e-4, atol=1e-5)


def test_losses():
    case = Case(50, 4, 2)
    probs = np.exp(case.logits) / np.exp(case.logits).sum(axis=1, keepdims=True)
    share = np.bincount(np.asarray(case.chosen).ravel(), minlength=4) / 100
    assert routing.load_balance_loss(case.logits, case.chosen) == pytest.approx(
        4 * share @ probs.mean(axis=0), rel=1e-5
    )
    assert routing.z_loss(case.logits) == pytest.approx((np.log(np.exp(case.logits).sum(axis=1)) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("kind", ["dense", "capacity", "expert_choice", "soft", "sigmoid"])
def test_gradients_reach_the_router(kind):
    router = "sigmoid" if kind == "sigmoid" else "softmax"
    case = Case(16, 4, 2, router=router)

    def loss(logits):
        if kind == "expert_choice":
            return jnp.sum(expert_dispatch.chosen_by_experts(case.x, *routing.expert_choice(logits, 5), case.ffn) ** 2)
        if kind == "soft":
            return jnp.sum(expert_dispatch.soft(case.x, logits.reshape(16, 2, 2), case.ffn) ** 2)
        gates, chosen = routing.route(logits, case.moe)
        if kind == "capacity":
            return jnp.sum(expert_dispatch.with_capacity(case.x, gates, chosen, case.ffn, 4, 16)[0] ** 2)
        return jnp.sum(expert_dispatch.dense(case.x, gates, chosen, case.ffn, 4) ** 2)

    loss = jax.jit(loss)
    gradient = jax.grad(loss)(case.logits)
    step = 1e-2 * np.random.default_rng(1).standard_normal(gradient.shape).astype(np.float32)
    there = float(loss(case.logits + step) - loss(case.logits - step)) / 2
    assert there == pytest.approx(float(jnp.vdot(gradient, step)), rel=0.05)
    assert abs(there) > 1e-4


def test_dropless_never_holds_a_slot_for_every_token_and_expert():
    """64 experts, six a token, 2,048 tokens: what a call holds besides is less than three times the activations."""
    n, experts, d, f = 2048, 64, 512, 256
    moe = MoE(experts, 6, f)

    def call(x, logits, up, down):
        gates, chosen = routing.route(logits, moe)
        return expert_dispatch.dropless(x, gates, chosen, lambda rows, e: jnp.tanh(rows @ up[e].T) @ down[e].T, experts)

    shapes = ((n, d), (n, experts), (experts, f, d), (experts, d, f))
    compiled = jax.jit(call).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * n * d * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(experts=4, top_k=5), r"top_k=5 must be between 1 and the number of experts, 4"),
        (dict(experts=4, top_k=0), r"top_k=0 must be"),
        (dict(experts=4, top_k=2, capacity_factor=0.0), r"capacity_factor=0.0 must be a finite number above zero"),
        (dict(experts=4, top_k=2, slots=0), r"slots=0 must be at least 1"),
        (dict(experts=6, top_k=2, groups=4), r"groups=4 must divide the number of experts, 6"),
        (dict(experts=6, top_k=2, groups=3, top_groups=4), r"top_groups=4 must be between 1 and .* 3"),
        (dict(experts=6, top_k=3, groups=3, top_groups=1), r"top_k=3 experts do not fit into 1 of 3 groups"),
    ],
)
def test_a_mixture_that_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        MoE(d_ff=8, **options)

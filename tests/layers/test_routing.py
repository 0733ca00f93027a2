"""Routers and dispatches of experts, against loops over tokens in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.config import MoE
from jaxinfer.layers import routing

D, F = 24, 40


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

    def of(self, dispatch):
        return jax.jit(dispatch, static_argnums=(3, 4))(self.x, self.gates, self.chosen, self.ffn, self.moe.experts)


@pytest.mark.parametrize(
    ("shape", "skew"),
    [((1, 4, 2), 0), ((7, 4, 2), 3), ((100, 8, 3), 0), ((300, 5, 1), 3), ((3, 64, 6), 0), ((33, 6, 6), 0)],
    ids=str,
)
@pytest.mark.parametrize("dispatch", [routing.dense, routing.dropless])
def test_every_token_gets_its_own_experts(shape, dispatch, skew):
    """With a skew, one expert gets nearly all tokens and others get none."""
    case = Case(*shape, skew=skew)
    np.testing.assert_allclose(case.of(dispatch), case.slow(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 100.0])
def test_capacity_drops_the_later_tokens_and_choices(factor):
    case = Case(100, 8, 3, skew=0.4, capacity_factor=factor)
    size = routing.capacity(100, case.moe)
    assert size == max(1, int(np.ceil(factor * 100 * 3 / 8)))
    taken, expected = np.zeros(8, int), np.zeros((100, 3), bool)
    for j in range(3):  # all first choices before any second one
        for n in range(100):
            e = case.chosen[n, j]
            expected[n, j] = taken[e] < size
            taken[e] += 1
    args = (case.x, case.gates, case.chosen, case.ffn, 8, size)
    found, kept = jax.jit(routing.with_capacity, static_argnums=(3, 4, 5))(*args)
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


def test_losses():
    case = Case(50, 4, 2)
    probs = np.exp(case.logits) / np.exp(case.logits).sum(axis=1, keepdims=True)
    share = np.bincount(np.asarray(case.chosen).ravel(), minlength=4) / 100
    assert routing.load_balance_loss(case.logits, case.chosen) == pytest.approx(
        4 * share @ probs.mean(axis=0), rel=1e-5
    )
    assert routing.z_loss(case.logits) == pytest.approx((np.log(np.exp(case.logits).sum(axis=1)) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("dispatch", ["dense", "with_capacity"])
def test_gradients_reach_the_router(dispatch):
    case = Case(16, 4, 2)

    def loss(logits):
        gates, chosen = routing.route(logits, case.moe)
        if dispatch == "dense":
            return jnp.sum(routing.dense(case.x, gates, chosen, case.ffn, 4) ** 2)
        return jnp.sum(routing.with_capacity(case.x, gates, chosen, case.ffn, 4, 16)[0] ** 2)

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
        return routing.dropless(x, gates, chosen, lambda rows, e: jnp.tanh(rows @ up[e].T) @ down[e].T, experts)

    shapes = ((n, d), (n, experts), (experts, f, d), (experts, d, f))
    compiled = jax.jit(call).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * n * d * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(experts=4, top_k=5), r"top_k=5 must be between 1 and the number of experts, 4"),
        (dict(experts=4, top_k=0), r"top_k=0 must be"),
        (dict(experts=4, top_k=2, capacity_factor=0.0), r"capacity_factor=0.0 must be above 0"),
    ],
)
def test_a_mixture_that_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        MoE(d_ff=8, **options)

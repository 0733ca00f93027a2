"""Choose the experts of each token, in pure functions of arrays; `expert_dispatch` sends tokens there and back.

N tokens, E experts, k experts a token, C slots an expert. `live` bool[N] says which tokens are not padding.
"""

import jax
import jax.numpy as jnp

from jaxinfer.config import MoE

SINKHORN_ROUNDS = 8
AUCTION_STEP = 0.05  # how far above the second best offer a token bids: what a token may lose to the best assignment
AUCTION_ROUNDS = 1000  # enough for thousands of tokens; whoever is left then takes what is left


def route(
    logits: jax.Array, moe: MoE, bias: jax.Array | None = None, tokens: jax.Array | None = None, live=None
) -> tuple[jax.Array, jax.Array]:
    """Route by logits [N, E] -> gates float32[N, k] and experts i32[N, k], the first choice first.

    bias: float32[E], added for the choice and not for the gate (`sigmoid`). tokens: i32[N], their ids (`hash`).
    """
    logits = logits.astype(jnp.float32)
    if moe.router == "hash":
        assert tokens is not None, "hash routing goes by the ids of the tokens"
        experts = hashed(tokens, moe.experts, moe.top_k)
        gates = jnp.full(experts.shape, 1 / moe.top_k)
    elif moe.router == "topk":
        top, experts = jax.lax.top_k(_limited(logits, moe), moe.top_k)
        gates = jax.nn.softmax(top, axis=-1)
    elif moe.router == "auction":
        experts = auction(logits, live)[:, None]
        gates = jnp.take_along_axis(jax.nn.sigmoid(logits), experts, axis=-1)
    else:
        scores = jax.nn.sigmoid(logits) if moe.router == "sigmoid" else jax.nn.softmax(logits, axis=-1)
        choice = sinkhorn(logits, live) if moe.router == "sinkhorn" else scores
        _, experts = jax.lax.top_k(_limited(choice if bias is None else choice + bias, moe), moe.top_k)
        gates = jnp.take_along_axis(scores, experts, axis=-1)
    if moe.equal_gates:
        gates = jnp.ones_like(gates)
    elif moe.normalize:
        gates = gates / (jnp.sum(gates, axis=-1, keepdims=True) + 1e-20)
    return gates * moe.scale, experts


def _limited(choice: jax.Array, moe: MoE) -> jax.Array:
    """Keep only the experts of a token's `top_groups` best groups (DeepSeek-V2, section 2.2.2; V3, section 2.1.2).

    A group is worth its best expert, or with `sigmoid` its best two.
    """
    if moe.groups is None:
        return choice
    grouped = choice.reshape(-1, moe.groups, moe.experts // moe.groups)
    worth = jnp.sum(jax.lax.top_k(grouped, 2 if moe.router == "sigmoid" else 1)[0], axis=-1)
    _, best = jax.lax.top_k(worth, moe.top_groups)
    stays = jnp.any(best[:, :, None] == jnp.arange(moe.groups), axis=1)
    return jnp.where(stays[:, :, None], grouped, -jnp.inf).reshape(choice.shape)


def sinkhorn(logits: jax.Array, live: jax.Array | None = None, rounds: int = SINKHORN_ROUNDS) -> jax.Array:
    """Return a soft assignment in which all experts are wanted equally: float32[N, E], each row sums to 1.

    S-BASE (Clark et al. 2022, "Unified Scaling Laws for Routed Language Models", section 3.1). Rows and columns of
    exp(logits) are normalized in turn (Sinkhorn and Knopp 1967). `auction` solves the hard assignment.
    """
    n, n_experts = logits.shape
    alive = jnp.ones(n, bool) if live is None else live
    share = jnp.log(jnp.sum(alive) / n_experts)
    plan = jnp.where(alive[:, None], logits.astype(jnp.float32), -jnp.inf)

    def once(_, plan):
        plan = plan - jax.nn.logsumexp(plan, axis=0, keepdims=True) + share
        return jnp.where(alive[:, None], plan - jax.nn.logsumexp(plan, axis=1, keepdims=True), -jnp.inf)

    return jnp.exp(jax.lax.fori_loop(0, rounds, once, plan))


def auction(
    logits: jax.Array, live: jax.Array | None = None, step: float = AUCTION_STEP, rounds: int = AUCTION_ROUNDS
) -> jax.Array:
    """Assign experts evenly with the largest sum of logits: the expert i32[N] of each token; of padding, its best.

    BASE layers (Lewis et al. 2021, section 2.3), solved by the auction algorithm (Bertsekas 1992) with the objects of a
    kind alike (Bertsekas and Castanon 1989). A token without a place bids for one of the expert that is worth most to
    it, logit less price, as much as it is worth beyond the second best, and `step`. An expert keeps its highest bids;
    its price is the lowest of them. Within N * step of the best sum, unless `rounds` of bids are not enough.
    """
    n, n_experts = logits.shape
    alive = jnp.ones(n, bool) if live is None else live
    logits = logits.astype(jnp.float32)
    best = jnp.argmax(logits, axis=-1)
    room = _places(best, alive, n_experts)
    nowhere = n_experts

    def bid(state):
        expert, offer, price, round = state
        value = jnp.where(room > 0, logits - price, -jnp.inf)
        wanted = jnp.argmax(value, axis=-1)
        first = jnp.max(value, axis=-1)
        second = jnp.max(jnp.where(wanted[:, None] == jnp.arange(n_experts), -jnp.inf, value), axis=-1)
        ahead = jnp.where(jnp.isfinite(second), first - second, 0.0)  # nobody to compete with: the step alone
        bids = alive & (expert == nowhere)
        expert = jnp.where(bids, wanted, expert)
        offer = jnp.where(bids, price[wanted] + ahead + step, offer)
        kept = _rank(expert, offer, n_experts) < jnp.append(room, 0)[expert]
        full = jnp.bincount(jnp.where(kept, expert, nowhere), length=n_experts + 1)[:-1] >= room
        lowest = jax.ops.segment_min(jnp.where(kept, offer, jnp.inf), expert, n_experts + 1)[:-1]
        return jnp.where(kept, expert, nowhere), offer, jnp.where(full, lowest, 0.0), round + 1

    def bidding(state):
        return (state[3] < rounds) & jnp.any(alive & (state[0] == nowhere))

    start = jnp.full(n, nowhere), jnp.zeros(n), jnp.zeros(n_experts), jnp.int32(0)
    expert, *_ = jax.lax.while_loop(bidding, bid, start)
    homeless = alive & (expert == nowhere)
    taken = jnp.bincount(expert, length=n_experts + 1)[:-1]
    left = jnp.searchsorted(jnp.cumsum(room - taken), jnp.cumsum(homeless) - 1, side="right")
    return jnp.where(homeless, left, jnp.where(alive, expert, best)).astype(jnp.int32)


def _places(best: jax.Array, alive: jax.Array, n_experts: int) -> jax.Array:
    """Share the tokens out equally, i32[E]. What does not divide goes to the experts that most tokens like best."""
    share, rest = jnp.divmod(jnp.sum(alive), n_experts)
    liked = jnp.bincount(jnp.where(alive, best, n_experts), length=n_experts + 1)[:-1]
    return share + (jnp.argsort(jnp.argsort(-liked)) < rest)


def _rank(expert: jax.Array, offer: jax.Array, n_experts: int) -> jax.Array:
    """Return i32[N]: how many tokens of the same expert offer more; of equal offers the first counts as more."""
    order = jnp.lexsort((-offer, expert))
    begins = jnp.searchsorted(expert[order], jnp.arange(n_experts + 1))
    return jnp.zeros_like(order).at[order].set(jnp.arange(len(order)) - begins[expert[order]])


def hashed(tokens: jax.Array, n_experts: int, top_k: int) -> jax.Array:
    """Hash a token id to k different experts, i32[N, k]: as good as random, always the same (Roller 2021)."""
    x = tokens.astype(jnp.uint32)
    for factor in (0x85EBCA6B, 0xC2B2AE35):  # the finalizer of MurmurHash3: every bit of the id reaches every other
        x = (x ^ (x >> 16)) * jnp.uint32(factor)
    x = x ^ (x >> 16)
    step = 1 + (x >> 8) % max(1, n_experts - 1) if top_k <= 2 else jnp.ones_like(x)
    return ((x[:, None] + step[:, None] * jnp.arange(top_k, dtype=jnp.uint32)) % n_experts).astype(jnp.int32)


def expert_choice(logits: jax.Array, size: int, live: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Give each expert the `size` tokens that want it most: gates float32[E, C], tokens i32[E, C] (Zhou et al. 2022).

    Which tokens it takes depends on those that come later in the text, and on other rows: not causal. Padding is taken
    last, with gate 0.
    """
    wanted = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    if live is not None:
        wanted = jnp.where(live[:, None], wanted, 0.0)
    return jax.lax.top_k(wanted.T, size)


def load_balance_loss(logits: jax.Array, experts: jax.Array, live: jax.Array | None = None) -> jax.Array:
    """Return E * sum of (share of tokens) x (mean probability) over experts, f32[]; 1 if balanced (Switch, eq. 4)."""
    n_experts = logits.shape[-1]
    share = jnp.mean(jax.nn.one_hot(experts, n_experts), axis=1)
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return n_experts * jnp.sum(mean(share, live) * mean(probs, live))


def z_loss(logits: jax.Array, live: jax.Array | None = None) -> jax.Array:
    """Return float32[]: the mean squared log-partition of the router (ST-MoE, Zoph et al. 2022, eq. 5)."""
    return mean(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) ** 2, live)


def mean(x: jax.Array, live: jax.Array | None) -> jax.Array:
    """Return the mean over tokens that are not padding."""
    return jnp.mean(x, axis=0) if live is None else jnp.mean(x, axis=0, where=live.reshape(-1, *(1,) * (x.ndim - 1)))

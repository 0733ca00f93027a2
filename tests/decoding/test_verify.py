"""Acceptance: the greedy rule against a loop, the sampled one by the distribution of what it emits.

Every statistic is Pearson's chi-square at fixed seeds. A correct rule would exceed the threshold for one seed in
100,000; the mutations show that a wrong rule exceeds it at this number of samples.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from jaxinfer import Sampling
from jaxinfer.decoding.sampling.acceptance import (
    accept_chain,
    accept_close,
    accept_sampled,
    accept_sampled_tree,
    accept_tree,
    choose,
    draw,
)
from jaxinfer.decoding.sampling.settings import SamplingState, distribution
from jaxinfer.network.transformer import likeliest_token, likeliest_tokens

SAMPLES = 120_000
sampled, redraw = jax.jit(accept_sampled), jax.jit(draw)
sampled_tree, chosen_by = jax.jit(accept_sampled_tree, static_argnums=6), jax.jit(choose)
keys_of = jax.jit(lambda seed: jax.random.split(jax.random.key(seed), SAMPLES))


def excess(counts, probs):
    """Chi-square of counts[..., V] over its threshold, given the sums of the last axis: a correct rule is below 1."""
    vocab = probs.shape[-1]
    statistic, freedom = 0.0, 0
    for observed, p in zip(counts.reshape(-1, vocab), probs.reshape(-1, vocab), strict=True):
        expected = observed.sum() * p
        often = expected >= 5  # the usual condition of the test; the others count as one cell
        observed, expected = (np.append(x[often], x[~often].sum()) for x in (observed, expected))
        used = expected >= 5
        statistic += np.sum((observed - expected)[used] ** 2 / expected[used])
        freedom += max(used.sum() - 1, 0)
    assert freedom >= vocab / 2
    return statistic / chi2.isf(1e-5, freedom)


def random_probs(seed, *shape, spread=1.0):
    weights = np.exp(spread * np.random.default_rng(seed).normal(size=shape))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def slow_greedy(draft, size, best):
    n = 1
    while n < size and draft[n] == best[n - 1]:
        n += 1
    return best[:n].tolist()


@pytest.mark.parametrize("width", [1, 2, 6])
def test_greedy_against_a_loop(width):
    rng = np.random.default_rng(width)
    batch, vocab = 200, 3  # a small vocabulary: long runs are accepted now and then
    draft = rng.integers(0, vocab, (batch, width))
    size = rng.integers(1, width + 1, batch)
    logits = rng.normal(size=(batch, width, vocab)).astype(np.float32)
    right = rng.random((batch, width - 1)) < 0.7
    draft[:, 1:] = np.where(right, logits.argmax(-1)[:, :-1], draft[:, 1:])
    emit, n, _ = jax.jit(accept_chain)(draft, size, logits.argmax(-1))
    expected = [slow_greedy(*row) for row in zip(draft, size, logits.argmax(-1), strict=True)]
    assert [e[:m].tolist() for e, m in zip(np.asarray(emit), n, strict=True)] == expected
    assert set(n.tolist()) == set(range(1, width + 1))


class Trial:
    """A rule run on many drafts of width 3. The target's later columns depend on the guesses before them."""

    def __init__(self, vocab, proposal, *, drawn_from=None):
        """proposal: None for fixed guesses, or probs[V] behind both guesses; drawn_from: what they truly come from."""
        self.vocab = vocab
        self.first = random_probs(1, vocab)
        self.second = random_probs(2, vocab, vocab)  # by the first guess
        self.third = random_probs(3, vocab, vocab, vocab)  # by both guesses
        self.draft = np.zeros((SAMPLES, 3), np.int32)
        if proposal is None:
            self.draft[:, 1:] = self.first.argmax(), self.second[self.first.argmax()].argmax()
            behind = None
        else:
            source = (proposal if drawn_from is None else drawn_from).astype(np.float64)
            self.draft[:, 1:] = np.random.default_rng(4).choice(vocab, (SAMPLES, 2), p=source / source.sum())
            behind = np.broadcast_to(proposal, (SAMPLES, 3, vocab))
        _, one, two = self.draft.T
        first = np.broadcast_to(self.first, (SAMPLES, vocab))
        target = np.stack([first, self.second[one], self.third[one, two]], axis=1)
        self.size = np.arange(SAMPLES, dtype=np.int32) % 4 % 3 + 1  # 1, 2, 3, 1: ragged
        if proposal is None:
            keys = jax.random.split(jax.random.key(0), (SAMPLES, 3))
            self.emit, self.n, _ = map(np.array, accept_chain(self.draft, self.size, redraw(keys, target)))
        else:
            self.emit, self.n = map(np.array, sampled(self.draft, self.size, target, keys_of(0), behind)[:2])

    def excesses(self):
        """Of the first token, the second after an accepted first, the third after two: each over its threshold."""
        results = []
        for length, probs in enumerate((self.first, self.second, self.third), start=1):
            counts = np.zeros(probs.shape)
            np.add.at(counts, tuple(self.emit[self.n >= length, :length].T), 1)
            results.append(excess(counts, probs))
        return results


@functools.cache
def trial_of(kind, vocab):
    """The draft of fixed guesses, of random ones, and of random ones from half of the vocabulary."""
    proposal = random_probs(9, vocab)
    if kind == "sparse":
        proposal = proposal * (np.arange(vocab) % 2)
        proposal /= proposal.sum()
    return Trial(vocab, None if kind == "point mass" else proposal)


@pytest.mark.parametrize("vocab", [8, 16])
@pytest.mark.parametrize("kind", ["point mass", "random", "sparse"])
def test_what_is_emitted_is_distributed_as_the_target(kind, vocab):
    trial = trial_of(kind, vocab)
    assert max(trial.excesses()) < 1
    assert (trial.n >= 1).all()
    assert (trial.n <= trial.size).all()
    for n in (1, 2, 3):  # all of it happens
        assert ((trial.n == n) & (trial.size == 3)).sum() > 50
    accepted = np.arange(1, 3) < trial.n[:, None]
    np.testing.assert_array_equal(trial.emit[:, :2][accepted], trial.draft[:, 1:][accepted])


@pytest.mark.parametrize("vocab", [8, 16])
def test_acceptance_is_as_likely_as_the_distributions_overlap(vocab):
    """P(accept) = sum of min(p, q) (Leviathan et al. 2023, Theorem 3.5)."""
    q, trial = random_probs(9, vocab), trial_of("random", vocab)
    rate = (trial.n >= 2)[trial.size >= 2].mean()
    expected = np.minimum(trial.first, q).sum()
    assert abs(rate - expected) < 5 * np.sqrt(expected * (1 - expected) / (trial.size >= 2).sum())


@pytest.mark.parametrize(("a", "width"), [(0.3, 3), (0.8, 6)])
def test_tokens_a_step_follow_from_the_acceptance(a, width):
    """(1 - a^(gamma + 1)) / (1 - a) for acceptance a of each guess, gamma guesses (Leviathan et al. 2023, eq. 1)."""
    p, q = np.array([a, 1 - a, 0, 0], np.float32), np.array([a, 0, 0.5, 0.5], np.float32)
    q[2:] *= 1 - a
    drafts = np.random.default_rng(0).choice(4, (SAMPLES, width), p=q.astype(np.float64) / q.sum(dtype=np.float64))
    target, proposal = (np.broadcast_to(x, (SAMPLES, width, 4)) for x in (p, q))
    _, n, _ = sampled(drafts.astype(np.int32), np.full(SAMPLES, width, np.int32), target, keys_of(2), proposal)
    assert np.mean(n) == pytest.approx((1 - a**width) / (1 - a), rel=0.02)


@pytest.mark.parametrize("vocab", [8, 16])
def test_a_perfect_proposal_is_always_accepted(vocab):
    p = random_probs(5, vocab, spread=3.0)
    exact = p.astype(np.float64) / p.sum(dtype=np.float64)
    guesses = np.random.default_rng(0).choice(vocab, (SAMPLES, 3), p=exact).astype(np.int32)
    same = np.broadcast_to(p, (SAMPLES, 3, vocab))
    emit, n, _ = sampled(guesses, np.full(SAMPLES, 3, np.int32), same, keys_of(1), same)
    assert (n == 3).all()
    np.testing.assert_array_equal(emit[:, :2], guesses[:, 1:])
    assert excess(np.bincount(emit[:, 2], minlength=vocab), exact) < 1


@pytest.mark.parametrize("vocab", [8, 16])
@pytest.mark.parametrize("kind", ["point mass", "random"])
def test_the_statistic_notices_a_redraw_from_the_target_instead_of_the_residual(kind, vocab):
    trial = trial_of(kind, vocab)
    rejected = (trial.n == 1) & (trial.size > 1)
    again = np.asarray(redraw(keys_of(7), np.broadcast_to(trial.first, (SAMPLES, vocab))))
    counts = np.bincount(np.where(rejected, again, trial.emit[:, 0]), minlength=vocab)
    assert excess(counts, trial.first) > 2


@pytest.mark.parametrize("vocab", [8, 16])
def test_the_statistic_notices_a_draft_drawn_at_another_temperature(vocab):
    q = random_probs(9, vocab)
    hot = q ** (1 / 1.5)
    assert Trial(vocab, q, drawn_from=hot).excesses()[0] > 2


def test_a_row_emits_the_same_whatever_its_neighbours():
    target, draft = random_probs(4, 5, 3, 8), jnp.array([[0, 3, 5]] * 5)
    keys, proposal = jax.random.split(jax.random.key(3), 5), random_probs(5, 5, 3, 8)
    together = sampled(draft, jnp.array([3, 2, 1, 3, 3]), target, keys, proposal)
    alone = sampled(draft[1:2], jnp.array([2]), target[1:2], keys[1:2], proposal[1:2])
    assert together.n[1] == alone.n[0]
    np.testing.assert_array_equal(together.emit[1, : alone.n[0]], alone.emit[0, : alone.n[0]])


@pytest.mark.parametrize("cold", ["half", "all"])
def test_rows_at_temperature_zero_take_the_most_likely_token(cold):
    rng = np.random.default_rng(0)
    batch, width, vocab = 400, 4, 6
    temperature = np.where((np.arange(batch) % 2 == 0) | (cold == "all"), 0.0, 0.8)
    sampling = SamplingState.of(Sampling(temperature=temperature.tolist(), top_k=5), [[0]] * batch, vocab)
    logits = rng.normal(size=(batch, width, vocab)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), (batch, width))
    got, warm = np.asarray(chosen_by(sampling, logits, keys)), temperature > 0
    np.testing.assert_array_equal(got[~warm], logits.argmax(-1)[~warm])
    np.testing.assert_array_equal(got[warm], np.asarray(redraw(keys, distribution(sampling, logits)))[warm])
    assert cold == "all" or (got[warm] == logits.argmax(-1)[warm]).mean() < 0.9  # the warm rows did sample


def test_draws_follow_the_probabilities_and_leave_out_what_has_none():
    probs = random_probs(8, 300, spread=2.0) * (np.arange(300) % 3 > 0)
    drawn = np.asarray(redraw(keys_of(5), np.broadcast_to(probs, (SAMPLES, 300))))
    assert excess(np.bincount(drawn, minlength=300), probs / probs.sum()) < 1
    assert (drawn % 3 > 0).all()
    one = np.eye(4, dtype=np.float32)[[3, 0]]  # certain at either end
    np.testing.assert_array_equal(redraw(jax.random.split(jax.random.key(0), 2), one), [3, 0])


def slow_tree(draft, size, parent, chosen, at=0):
    """Every way down: the longest, of equals the one whose columns come first."""
    below = [t for t in range(1, size) if parent[t] == at and draft[t] == chosen[at]]
    ways = [slow_tree(draft, size, parent, chosen, t) for t in below]
    return [at, *min(ways, key=lambda way: (-len(way), way[-1]), default=[])]


def test_a_tree_against_a_walk():
    rng = np.random.default_rng(0)
    batch, width, vocab = 300, 12, 3  # siblings often say the same
    parent = np.array([[-1, *(rng.integers(0, t) for t in range(1, width))] for _ in range(batch)])
    draft, chosen = rng.integers(0, vocab, (2, batch, width))
    size = rng.integers(1, width + 1, batch)
    emit, n, take = map(np.asarray, jax.jit(accept_tree)(draft, size, parent, chosen))
    for row in range(batch):
        expected = slow_tree(draft[row], size[row], parent[row], chosen[row])
        assert take[row, : n[row]].tolist() == expected
        assert emit[row, : n[row]].tolist() == chosen[row, expected].tolist()
    assert len(set(n.tolist())) >= 4


class TreeTrial:
    """Three guesses for the first token and two below the second of them, drawn without replacement."""

    def __init__(self, vocab, replace=False, replaced=False):
        self.first, self.second = random_probs(1, vocab), random_probs(2, vocab, vocab)
        q_first, q_second = random_probs(9, vocab), random_probs(10, vocab, vocab)
        rng = np.random.default_rng(4)

        def draws(q, count):  # by exponential races: the order of arrival is a draw without replacement
            if replace:
                return np.stack([(np.cumsum(q, 1) > rng.random((SAMPLES, 1))).argmax(1) for _ in range(count)], 1)
            return np.argsort(rng.exponential(size=q.shape) / q, axis=1)[:, :count]

        one = draws(np.broadcast_to(q_first, (SAMPLES, vocab)), 3)
        two = draws(q_second[one[:, 1]], 2)
        self.draft = np.concatenate([np.zeros((SAMPLES, 1), int), one, two], axis=1).astype(np.int32)
        parent = np.broadcast_to([-1, 0, 0, 0, 2, 2], (SAMPLES, 6))
        target = self.second[self.draft].copy()
        target[:, 0] = self.first
        proposal = q_second[self.draft].copy()
        proposal[:, 0] = q_first
        self.size = (np.arange(SAMPLES) % 6 + 1).astype(np.int32)
        emit, n, take = sampled_tree(self.draft, self.size, parent, target, keys_of(0), proposal, replaced)
        self.emit, self.n, self.take = np.array(emit), np.array(n), np.array(take)

    def excesses(self):
        first = np.bincount(self.emit[:, 0], minlength=len(self.first))
        second = np.zeros(self.second.shape)
        deep = self.n >= 2
        np.add.at(second, (self.emit[deep, 0], self.emit[deep, 1]), 1)
        return excess(first, self.first), excess(second, self.second)


def test_a_sampled_tree_emits_what_the_target_would():
    trial = TreeTrial(8)
    assert max(trial.excesses()) < 1
    for column in range(1, 6):  # each of the guesses is taken now and then, and stands where it is emitted
        row, depth = np.nonzero((trial.take == column) & (np.arange(6) < trial.n[:, None]))
        assert len(row) > 100
        np.testing.assert_array_equal(trial.emit[row, depth - 1], trial.draft[row, column])
    assert (trial.n == 3).sum() > 500


def test_the_statistic_notices_guesses_drawn_with_replacement():
    assert TreeTrial(8, replace=True).excesses()[0] > 2


def test_siblings_drawn_with_replacement_have_a_rule_of_their_own():
    assert max(TreeTrial(8, replace=True, replaced=True).excesses()) < 1


@pytest.mark.parametrize("lenience", [0.3, 0.7])
def test_lenience_accepts_as_if_less_had_been_drawn(lenience):
    """P(accept) = sum of min(q, p / lenience); none comes more often than p / lenience (Leviathan et al., A.5)."""
    p, q = random_probs(1, 8), random_probs(9, 8)
    guesses = np.random.default_rng(0).choice(8, (SAMPLES, 2), p=q.astype(np.float64) / q.sum(dtype=np.float64))
    target, proposal = (np.broadcast_to(x, (SAMPLES, 2, 8)) for x in (p, q))
    parent, size = np.broadcast_to([-1, 0], (SAMPLES, 2)), np.full(SAMPLES, 2, np.int32)
    chain = accept_sampled(guesses, size, target, keys_of(2), proposal, lenience)
    tree = sampled_tree(guesses, size, parent, target, keys_of(2), proposal, False, lenience)
    expected = np.minimum(q, p / lenience).sum()
    assert expected > 1.05 * np.minimum(q, p).sum()
    for found in (chain, tree):
        assert abs(np.mean(np.asarray(found.n) == 2) - expected) < 5 * np.sqrt(expected * (1 - expected) / SAMPLES)
        often = np.bincount(np.where(np.arange(2) == 0, found.emit, 0)[:, 0], minlength=8) / SAMPLES
        assert (often < p / lenience + 0.01).all()
        assert abs(often - p).max() > 0.02  # lossy


def test_close_guesses_against_a_loop():
    rng = np.random.default_rng(0)
    batch, width, vocab, lenience = 200, 7, 5, 0.5
    parent = np.array([[-1, *(rng.integers(0, t) for t in range(1, width))] for _ in range(batch)])
    logits = rng.normal(size=(batch, width, vocab)).astype(np.float32)
    draft, chosen = rng.integers(0, vocab, (batch, width)), logits.argmax(-1)
    size = rng.integers(1, width + 1, batch)
    emit, n, take = map(np.asarray, jax.jit(accept_close)(draft, size, parent, chosen, logits, lenience))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row in range(batch):
        ways = {0: [0]}
        for t in range(1, size[row]):
            above = parent[row, t]
            p = probs[row, above]
            if above in ways and p[draft[row, t]] >= lenience * p.max():
                ways[t] = [*ways[above], t]
        best = max(ways.values(), key=lambda way: (len(way), -way[-1]))
        assert take[row, : n[row]].tolist() == best
        assert emit[row, : n[row]].tolist() == [*draft[row, best[1:]], chosen[row, best[-1]]]
    assert len(set(n.tolist())) >= 3


@pytest.mark.parametrize("vocab", [7, 97, 96, 4096, 49152])
def test_the_likeliest_token_is_the_argmax_and_of_equals_the_first(vocab):
    rng = np.random.default_rng(vocab)
    levels = rng.integers(0, 6, (3, 5, vocab))  # the largest value stands in many places
    levels[0, 0], levels[0, 1, -1], levels[0, 2, vocab // 2 :] = 0, 9, 9
    unlikely = np.where(levels < 5, -np.inf, levels)
    unlikely[1, 0] = -np.inf  # nothing is left
    find = jax.jit(likeliest_token)
    for logits in (levels, unlikely, rng.normal(size=(3, 5, vocab))):
        logits = logits.astype(np.float32)
        np.testing.assert_array_equal(find(logits), logits.argmax(axis=-1))
    assert find(logits[:, 0]).shape == (3,)


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("vocab", [7, 97, 96, 4096, 49152])
def test_the_likeliest_tokens_come_in_order_and_of_equals_the_first(vocab, count):
    rng = np.random.default_rng(vocab + count)
    levels = rng.integers(0, 6, (3, 5, vocab))  # the largest value stands in many places, the next in all blocks
    levels[0, 0], levels[0, 1, -1], levels[0, 2, vocab // 2 :] = 0, 9, 9
    rare = np.where(rng.random((3, 5, vocab)) < 3 / vocab, levels, 0)
    unlikely = np.where(rare == 0, -np.inf, rare)
    find = jax.jit(likeliest_tokens, static_argnums=1)
    for logits in (levels, rare, unlikely, rng.normal(size=(3, 5, vocab))):
        logits = logits.astype(np.float32)
        wanted = np.argsort(-logits, axis=-1, kind="stable")[..., :count]
        best, tokens = find(logits, count)
        np.testing.assert_array_equal(tokens, wanted)
        np.testing.assert_array_equal(best, np.take_along_axis(logits, wanted, axis=-1))
    assert find(logits[:, 0], count)[1].shape == (3, count)

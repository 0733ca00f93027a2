"""Methods that draft with trained heads: the text stays greedy's, and the drafts are what a slow loop drafts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import (
    Adaptive,
    Dense,
    Dynamic,
    Eagle,
    Fallback,
    InputError,
    LayerKind,
    Lookup,
    Medusa,
    Model,
    ModelConfig,
    Sampling,
    Segment,
    Window,
)
from jaxinfer.decoding.contract import Context
from jaxinfer.decoding.drafts.trees import from_paths
from jaxinfer.decoding.sampling.acceptance import accept_likely
from jaxinfer.heads.store import init_params
from jaxinfer.network import eagle
from jaxinfer.network.heads import Heads, HeadsConfig, embed, unembedding
from jaxinfer.runtime import scoring
from jaxinfer.runtime.generation import Generation

TREE = ((0, 0, 1), (0, 1), (1, 0), (2,))
LENGTHS = (1, 2, 5, 30, 64)


def random_heads(model, kind, count=3, seed=0, size=0.1):
    cfg = HeadsConfig.of(kind, model.name, model.config, 60, count)
    leaves, tree = jax.tree.flatten(init_params(cfg))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [x + size * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    vocab = np.random.default_rng(seed).permutation(model.config.vocab_size)[:60]
    return Heads(jax.tree.unflatten(tree, noisy), jnp.asarray(vocab, jnp.int32), cfg)


@pytest.mark.parametrize(
    ("name", "kind", "method", "policy"),
    [
        ("tiny_gemma", "medusa", Medusa(), Window()),
        ("tiny_segments", "hydra", Medusa(paths=TREE), Dense()),
        ("tiny_gemma", "eagle", Eagle(), Dense()),
        ("tiny_segments", "eagle", Eagle(paths=TREE), Window()),
        ("tiny_gemma", "eagle", Eagle(dynamic=Dynamic(width=8, depth=3, beam=3)), Window()),
        ("tiny_gemma", "medusa", Fallback(Lookup(8, ngram=3, min_ngram=2), Medusa()), Window()),
        ("tiny_segments", "eagle", Fallback(Lookup(8, ngram=3, min_ngram=2), Eagle(paths=TREE)), Dense()),
    ],
    ids=str,
)
def test_a_ragged_batch_writes_what_greedy_writes(request, ragged, name, kind, method, policy):
    tiny = request.getfixturevalue(name)
    model, cold = tiny.attach(heads=random_heads(tiny, kind)), Sampling(temperature=0.0)
    for lengths, limits in ((LENGTHS, 40), (tuple(reversed(LENGTHS)), [40, 3, 20, 1, 7])):
        prompts = ragged(lengths, seed=len(lengths))
        greedy = tiny.generate(prompts, max_new_tokens=limits, policy=policy)
        drafted = model.generate(prompts, max_new_tokens=limits, policy=policy, method=method, sampling=cold)
        assert drafted.tokens == greedy.tokens
        assert sum(drafted.stats.proposed) > 2 * sum(drafted.stats.steps)
    hot = Sampling(temperature=[0.0, 0.3, 0.7, 1.0, 2.0], top_p=0.9)
    one = tiny.generate(prompts, max_new_tokens=40, sampling=hot, policy=policy, seed=3)
    assert (
        model.generate(prompts, max_new_tokens=40, sampling=hot, policy=policy, method=method, seed=3).tokens
        == one.tokens
    )


def test_heads_that_read_the_prompt_can_be_switched_off(tiny_llama, ragged):
    prompts, model = ragged(LENGTHS), tiny_llama.attach(heads=random_heads(tiny_llama, "eagle"))
    result = model.generate(prompts, max_new_tokens=30, method=Adaptive(Eagle()))
    assert result.tokens == tiny_llama.generate(prompts, max_new_tokens=30).tokens
    assert 0 < sum(result.stats.guessed) < 0.5 * sum(result.stats.steps)


V = 32


@pytest.fixture(scope="module")
def counting():
    """A model that counts: behind token i comes i + 1. Its hidden state at i is the i-th unit vector, scaled."""
    kinds = (Segment((LayerKind(),), 1),)
    cfg = ModelConfig("llama", V, V, V, 2, 1, 16, kinds, max_positions=256, tie_embeddings=False)
    model = Model.random(cfg)
    params = jax.tree.map(jnp.zeros_like, model.params)
    params["embed"]["embedding"] = jnp.eye(V)
    params["head"]["kernel"] = jnp.roll(jnp.eye(V), 1, axis=0)
    params["final_norm"]["scale"] = jnp.ones(V)
    return Model(cfg, params, name="counting")


def oracle(kind, rank):
    """Heads that are always right: with their best guess, or with their second."""
    cfg = HeadsConfig.of(kind, "counting", ModelConfig("llama", V, V, V, 2, 1, 16, (), 256), V, 3)
    params = jax.tree.map(jnp.zeros_like, init_params(cfg))
    if kind == "eagle":  # the hidden state of a token is its embedding
        params |= {"join": jnp.eye(V, 2 * V), "final_norm": jnp.ones(V)}
        if rank:
            params["join"] = params["join"] + 2 * jnp.roll(jnp.eye(V, 2 * V), 7, axis=0)
    else:
        for k in (1, 2, 3):
            ahead = jnp.roll(jnp.eye(V), k, axis=0)
            line = ahead + rank * 2 * jnp.roll(ahead, 7, axis=0)
            params[f"head_{k}"]["line"] = jnp.pad(line, ((0, 0), (0, params[f"head_{k}"]["up"].shape[1] - V)))
    return Heads(params, jnp.asarray(np.random.default_rng(0).permutation(V), jnp.int32), cfg)


@pytest.mark.parametrize(
    ("kind", "method", "steps"),
    [
        ("medusa", Medusa(paths=((0, 0, 0),)), [6, 6]),
        ("hydra", Medusa(paths=((0, 0, 0),)), [6, 6]),
        ("eagle", Eagle(), [5, 6]),  # which reads the prompt, so its first step has guesses
    ],
)
def test_heads_guess_where_lookup_finds_nothing(counting, kind, method, steps):
    """Right heads make four tokens a step, behind steps that lookup guessed for too: they missed nothing of them."""
    prompts = [[5, 6, 7], [4, 5, 6, 7, 8, 30, 2, 3, 4, 5, 6]]  # in the second, 7 and 8 are looked up
    both = Fallback(Lookup(8, ngram=3, min_ngram=3), method)
    result = counting.attach(heads=oracle(kind, 0)).generate(prompts, max_new_tokens=20, method=both)
    assert result.tokens == [list(range(8, 28)), list(range(7, 27))]
    assert result.stats.steps == steps
    assert result.stats.runs[1][3] == 1  # two looked up, and one behind them
    assert result.stats.runs[1][4] == 4


@pytest.mark.parametrize(
    ("kind", "method", "rank", "depth"),
    [
        ("medusa", Medusa(paths=((0, 0, 0),)), 0, 3),
        ("medusa", Medusa(paths=((0, 0), (1, 0), (1, 1, 1))), 1, 3),
        ("hydra", Medusa(paths=((0, 0), (1, 0), (1, 1, 1))), 1, 3),
        ("eagle", Eagle(paths=((0, 0, 0, 0),)), 0, 4),
        ("eagle", Eagle(dynamic=Dynamic(width=12, depth=4, beam=2)), 0, 4),
    ],
    ids=str,
)
def test_heads_that_are_right_are_accepted_in_full(counting, kind, method, rank, depth):
    prompts, new = [[3], [9, 30, 17, 18]], 41
    result = counting.attach(heads=oracle(kind, rank)).generate(prompts, max_new_tokens=new, method=method)
    assert result.tokens == [[(prompt[-1] + i) % V for i in range(1, new + 1)] for prompt in prompts]
    # Medusa's first step has no hidden state to guess from, and neither has EAGLE's behind a prompt of one token.
    late = [1, 1] if kind != "eagle" else [1, 0]
    assert result.stats.steps == [first - (first - new) // (depth + 1) for first in late]


def drafting(model, method, prompts, steps):
    """A generation some steps on, and the draft that it makes next."""
    sampling = Sampling(temperature=0.0)
    limits, seeds = [60] * len(prompts), [0] * len(prompts)
    generation = Generation.begin(model.placed, prompts, limits, method, Dense(), sampling, seeds, (), False)
    generation.advance(steps)
    texts = [prompt + new for prompt, new in zip(prompts, generation.rows(), strict=True)]
    context = Context(model.placed.params, generation.extras, model.network)
    return texts, jax.jit(lambda state: method.propose(context, state))(generation.state)


def unit(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True))


@pytest.mark.parametrize("steps", [1, 4])
def test_eagle_drafts_what_an_uncached_layer_drafts(tiny_llama, ragged, steps):
    """The whole text through the layer for every path of the tree, one chain at a time, without a cache."""
    heads = random_heads(tiny_llama, "eagle", size=0.05)
    method, model = Eagle(paths=TREE), tiny_llama.attach(heads=heads)
    texts, draft = drafting(model, method, ragged((2, 7, 30)), steps)
    parent, rank = from_paths(TREE)
    rows = np.asarray(unembedding(model.params, heads.vocab))
    forward = jax.jit(
        lambda hidden, tokens: eagle.layer(
            heads.params,
            heads.cfg,
            hidden,
            embed(model.params, tokens),
            jnp.arange(64)[None],
            jnp.tril(jnp.ones((1, 64, 64), bool)),
        )[0][0]
    )

    def expected(hidden, tokens):
        """The state that the layer expects of the last token, given those of the tokens before it."""
        n = len(hidden)
        padded = np.zeros((1, 64, hidden.shape[1]), np.float32), np.zeros((1, 64), np.int32)
        padded[0][0, :n], padded[1][0, :n] = hidden, tokens[1 : n + 1]
        return np.asarray(forward(*padded))[n - 1]

    for row, text in enumerate(texts):
        hidden = np.asarray(scoring.features(tiny_llama.placed, Dense(), np.array([text[:-1]])))[0]
        chains = {0: (hidden, text)}  # by column: states, and tokens up to the column's
        for column in range(1, len(parent)):
            states, tokens = chains[parent[column]]
            state = expected(states, tokens)
            best = np.argsort(-(rows @ state), kind="stable")[rank[column]]
            token = int(heads.vocab[best])
            assert int(draft.tokens[row, column]) == token
            chains[column] = np.concatenate([states, state[None]]), [*tokens, token]


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_heads_draft_what_a_loop_over_the_tree_drafts(tiny_llama, ragged, kind):
    heads = random_heads(tiny_llama, kind)
    texts, draft = drafting(tiny_llama.attach(heads=heads), Medusa(paths=TREE), ragged((2, 7, 30)), 3)
    parent, rank = from_paths(TREE)
    table, rows = np.asarray(tiny_llama.params["embed"]["embedding"]), np.asarray(tiny_llama.params["head"]["kernel"])
    for row, text in enumerate(texts):
        hidden = np.asarray(scoring.features(tiny_llama.placed, Dense(), np.array([text[:-1]])))[0, -1]
        for column in range(1, len(parent)):
            way, at = [], parent[column]
            while at >= 0:
                way, at = [int(draft.tokens[row, at]), *way], parent[at]
            head = jax.tree.map(np.asarray, heads.params[f"head_{len(way)}"])
            seen = way if kind == "hydra" else way[:1]  # the pending token, and for Hydra the guesses behind it
            x = np.concatenate([unit(hidden), *unit(table[seen])])
            inner = head["up"] @ x + head["bias"]
            found = head["line"] @ x + head["down"] @ (inner / (1 + np.exp(-inner)))
            best = np.argsort(-(rows[np.asarray(heads.vocab)] @ found), kind="stable")[rank[column]]
            assert int(draft.tokens[row, column]) == int(heads.vocab[best])


def test_typical_acceptance_against_a_loop():
    rng, (parent, _) = np.random.default_rng(0), from_paths(TREE)
    batch, width, vocab, epsilon, delta = 300, len(parent), 5, 0.2, 0.4
    weights = np.exp(2 * rng.normal(size=(batch, width, vocab)))
    probs = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    draft, chosen = rng.integers(0, vocab, (2, batch, width))
    size = rng.integers(1, width + 1, batch)
    parents = np.broadcast_to(parent, (batch, width))
    emit, n, take = jax.jit(accept_likely)(draft, size, parents, chosen, probs, epsilon, delta)
    lengths = set()
    for row in range(batch):
        best = [0]
        for column in range(1, size[row]):
            way, at, likely = [], column, True
            while at > 0:
                p = probs[row, parent[at]]
                threshold = min(epsilon, delta * np.exp(np.sum(p * np.log(p))))
                likely &= bool(p[draft[row, at]] > threshold)
                way, at = [at, *way], parent[at]
            if likely and len(way) + 1 > len(best):
                best = [0, *way]
        assert take[row, : n[row]].tolist() == best
        assert emit[row, : n[row]].tolist() == [*draft[row, best[1:]], chosen[row, best[-1]]]
        lengths.add(len(best))
    assert lengths == {1, 2, 3, 4}


def test_typical_acceptance_is_lossy_with_temperature_and_greedy_without(tiny_llama, ragged):
    model, prompts = tiny_llama.attach(heads=random_heads(tiny_llama, "medusa", size=0.02)), ragged((5, 9))
    method, hot = Medusa(typical=True, epsilon=0.01, delta=0.1), Sampling(temperature=[0.0, 1.0])
    plain = tiny_llama.generate(prompts, max_new_tokens=40, sampling=hot)
    typical = model.generate(prompts, max_new_tokens=40, sampling=hot, method=method)
    assert typical.tokens[0] == plain.tokens[0]
    assert typical.tokens[1] != plain.tokens[1]
    exact = model.generate(prompts, max_new_tokens=40, sampling=hot, method=Medusa())
    assert typical.stats.accepted[1] > exact.stats.accepted[1]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Medusa(paths=()), "paths="),
        (lambda: Medusa(paths=((0,), ())), "paths="),
        (lambda: Eagle(paths=((0, -1),)), "ranks from 0"),
        (lambda: Medusa(epsilon=0.0), "epsilon=0.0"),
        (lambda: Medusa(delta=1.5), "delta=1.5"),
    ],
)
def test_bad_parameters(make, line):
    with pytest.raises(InputError, match=line):
        make()


def test_heads_that_do_not_fit(tiny_llama, counting):
    medusa, other = random_heads(tiny_llama, "medusa", count=2), random_heads(tiny_llama, "eagle")
    for model, heads, method, line in (
        (tiny_llama, None, Medusa(), "needs heads"),
        (tiny_llama, "heads/folder", Medusa(), "heads=str to be Heads"),
        (tiny_llama, other, Medusa(), "medusa or hydra heads, and these are eagle heads"),
        (tiny_llama, medusa, Eagle(), "eagle heads, and these are medusa heads"),
        (tiny_llama, other, Eagle(dynamic=Dynamic(70, 2, 61)), "61 guesses below one token are more than the 60"),
        (tiny_llama, medusa, Medusa(), r"\(0, 0, 0\) is 3 deep, and there are 2 heads"),
        (counting, medusa, Medusa(), r"for random \(d_model 48.*this model is counting \(d_model 32"),
    ):
        given = model if heads is None else model.attach(heads=heads)
        with pytest.raises(InputError, match=line):
            given.generate([[1, 2]], method=method)

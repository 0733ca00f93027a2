"""Lossless means equal: every method, under every policy, gives each row the tokens that greedy gives it alone."""

import dataclasses
from itertools import cycle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_methods import SMALL, equip

from jaxinfer import (
    LLMA,
    METHODS,
    POLICIES,
    Dense,
    Greedy,
    Jacobi,
    LayerKind,
    Lookahead,
    Lookup,
    Model,
    Paged,
    Recycling,
    Retrieval,
    Sampling,
    Segment,
    SelfSpeculative,
    Speculative,
    Suffix,
    Window,
)
from jaxinfer.network.transformer import forward, logits_of

COLD = Sampling(temperature=0.0)
THOROUGH = [SMALL[name] for name in ("greedy", "sample", "lookup", "speculative")]
OTHERS = [method for method in SMALL.values() if method not in THOROUGH]
OTHERS += [Lookup(16, 2), Lookup(7, 4, 1, narrow=3), Speculative(schedule="heuristic", confidence=0.1)]
PLACES = [("tiny_gemma", Dense()), ("tiny_gemma", Window()), ("tiny_segments", Window())]
PAGED = Paged(block=16)  # so that texts are longer than a block
OTHER_PLACES = [PAGED, *(policy() for policy in POLICIES.values() if policy not in (Dense, Window, Paged))]
LENGTHS = (1, 2, 5, 9, 30, 33, 64, 100)
NEW = 100
DOCUMENTS = np.random.default_rng(3).integers(0, 97, (8, NEW)).tolist()


def generate(model, prompts, method, documents=DOCUMENTS, **options):
    sampling = COLD if method.samples else None
    return equip(model, method, documents).generate(prompts, method=method, sampling=sampling, **options)


@pytest.fixture(scope="module")
def greedy():
    """Greedy under Dense or a policy that is not exact, all rows in one batch: kept, for many tests compare with it."""
    kept = {}

    def of(model, prompts, new, policy=None):
        policy = Dense() if policy is None or policy.exact else policy
        key = (model.config, str(prompts), str(new), policy)
        if key not in kept:
            kept[key] = model.generate(prompts, max_new_tokens=new, method=Greedy(), policy=policy).tokens
        return kept[key]

    return of


def is_most_likely(model, prompt, new):
    """Whether each new token has the largest logit in one forward over the whole text, without a cache.

    Up to rounding: random weights give near ties.
    """

    @jax.jit
    def logits(params, tokens):
        positions = jnp.arange(tokens.shape[1])[None]
        output = forward(model.network, params, tokens, positions, Dense().init(model.config, 1, 1, jnp.float32))
        return logits_of(model.network, params, output.hidden)[0]

    text = np.zeros((1, 640), np.int32)
    text[0, : len(prompt) + len(new)] = prompt + new
    rows = np.asarray(logits(model.params, text))[len(prompt) - 1 : len(prompt) + len(new) - 1]
    return bool((rows[np.arange(len(new)), new] >= rows.max(axis=1) - 1e-4).all())


@pytest.mark.parametrize(
    ("method", "name", "policy"),
    [
        *((method, *place) for method in THOROUGH for place in PLACES),
        *((method, "tiny_gemma", policy) for method in THOROUGH[2:] for policy in OTHER_PLACES),
        # Chains and trees, under each policy in turn: the product of all takes minutes.
        *(
            (method, "tiny_gemma", policy)
            for method, policy in zip(OTHERS, cycle([Window(), *OTHER_PLACES]), strict=False)
        ),
    ],
    ids=str,
)
def test_a_ragged_batch(request, ragged, greedy, method, name, policy):
    tiny, prompts = request.getfixturevalue(name), ragged(LENGTHS)
    documents = greedy(tiny, prompts, NEW, policy)  # for the methods that need some
    result = generate(tiny, prompts, method, documents, policy=policy, max_new_tokens=NEW)
    assert result.tokens == documents
    assert (result.stats.tokens_per_step > 1.1) == (method.width > 1)  # else it shows nothing
    others = ragged(reversed(LENGTHS), seed=1)  # the same programs, other lengths in every row
    limits = [NEW, 3, 20, 1, 7, NEW, 11, 2]
    again = generate(tiny, others, method, documents, policy=policy, max_new_tokens=limits)
    whole = greedy(tiny, others, NEW, policy)
    assert again.tokens == [row[:limit] for row, limit in zip(whole, limits, strict=True)]


@pytest.mark.parametrize(("name", "method"), [("tiny_llama", Greedy()), ("tiny_gemma", Lookup())], ids=str)
def test_a_row_in_a_batch_is_the_row_alone(request, ragged, greedy, name, method):
    tiny, prompts = request.getfixturevalue(name), ragged(LENGTHS)
    together = greedy(tiny, prompts, NEW)
    for row in (0, 3, 7):
        assert generate(tiny, [prompts[row]], method, max_new_tokens=NEW).tokens == [together[row]]
    three = [prompts[row] for row in (6, 0, 2)]
    assert generate(tiny, three, method, max_new_tokens=NEW).tokens == [together[row] for row in (6, 0, 2)]


def test_a_sampled_text_is_the_same_however_it_is_cut_into_steps(tiny_gemma, ragged):
    """A place in the text has a key of its own, so guesses change how many steps it takes and nothing else."""
    prompts, hot = ragged(LENGTHS), Sampling(temperature=[0.05, 0.1, 0.2, 0.05, 0.0, 0.3, 0.1, 1.0], top_p=0.9)
    one = tiny_gemma.generate(prompts, method=METHODS["sample"](), sampling=hot, max_new_tokens=NEW, seed=7)
    for method in (Lookup(), SMALL["lookahead"]):  # a chain, and a tree
        many = tiny_gemma.generate(prompts, method=method, sampling=hot, max_new_tokens=NEW, seed=7)
        assert many.tokens == one.tokens
        assert sum(many.stats.steps) < sum(one.stats.steps)
    other = tiny_gemma.generate(prompts, method=Lookup(), sampling=hot, max_new_tokens=NEW, seed=8)
    assert [a == b for a, b in zip(other.tokens, one.tokens, strict=True)].count(True) <= 4


EDGES = (1, 15, 16, 17, 127, 128, 129, 512, 513)


def test_prompts_at_the_edges_of_chunks(tiny_gemma, ragged, greedy):
    """In a batch and alone a prompt is cut into other chunks; without a cache into none."""
    prompts, n = ragged(EDGES), 40
    together = greedy(tiny_gemma, prompts, n)
    for prompt, new in zip(prompts, together, strict=True):
        assert len(new) == n
        assert is_most_likely(tiny_gemma, prompt, new)
    for method, row in ((Greedy(), 5), (Lookup(), 8)):
        assert generate(tiny_gemma, [prompts[row]], method, max_new_tokens=n).tokens == [together[row]]


@pytest.mark.quick
@pytest.mark.parametrize("method", SMALL.values(), ids=SMALL)
def test_one_new_token(tiny_gemma, ragged, greedy, method):
    prompts = ragged((*LENGTHS[:-1], 140))  # the buffer is that of the other tests, and so is the program
    result = generate(tiny_gemma, prompts, method, max_new_tokens=1)
    assert result.tokens == [row[:1] for row in greedy(tiny_gemma, prompts, NEW)]
    assert result.stats.steps == [1] * len(prompts)
    assert result.stats.accepted == [0] * len(prompts)


@pytest.mark.parametrize("method", SMALL.values(), ids=SMALL)
def test_a_stop_token_within_an_accepted_run(tiny_gemma, ragged, greedy, method):
    """Each of several tokens stops: a row ends after the first of them, however many were accepted with it."""
    prompts = ragged(LENGTHS)
    free = greedy(tiny_gemma, prompts, NEW)
    stops = {row[n] for row, n in zip(free, (40, 41, 55, 12), strict=False)}
    tokenizer = SimpleNamespace(stop_ids=tuple(stops), decode=str, strips_first_space=False)
    model = dataclasses.replace(tiny_gemma, tokenizer=tokenizer)
    result = generate(model, prompts, method, free, max_new_tokens=NEW)
    ends = [next((n + 1 for n, token in enumerate(row) if token in stops), NEW) for row in free]
    assert result.tokens == [row[:end] for row, end in zip(free, ends, strict=True)]
    assert len(set(ends)) > 2
    assert result.stats.emitted == ends
    if method.width > 1:
        longer = generate(tiny_gemma, prompts, method, free, max_new_tokens=NEW)
        assert sum(result.stats.accepted) > 0
        assert sum(result.stats.steps) < sum(longer.stats.steps)


@pytest.fixture(scope="module")
def twins(tiny_gemma, ragged):
    """tiny_gemma, but every odd token is the one before it up to a hundredth; greedy's texts, and its least margins."""
    table = np.array(tiny_gemma.params["embed"]["embedding"])
    table[1::2] = table[:-1:2] + 0.01 * table.std() * np.random.default_rng(5).normal(size=table[1::2].shape)
    model = dataclasses.replace(tiny_gemma, params={**tiny_gemma.params, "embed": {"embedding": jnp.asarray(table)}})
    prompts = ragged(LENGTHS)
    texts = model.generate(prompts, max_new_tokens=NEW).tokens
    whole = np.array(
        [
            (prompt + text + [0] * max(LENGTHS))[: max(LENGTHS) + NEW]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    )
    best = np.sort(np.asarray(model.logits(whole)), axis=-1)[..., -2:]
    margins = [np.diff(row[n - 1 : n + NEW - 1])[:, 0] for row, n in zip(best, LENGTHS, strict=True)]
    return model, texts, np.concatenate(margins)


@pytest.mark.parametrize("method", SMALL.values(), ids=SMALL)
def test_a_rival_that_is_nearly_as_likely(twins, ragged, method):
    """What is wrong by a few thousandths, in wide steps or in accepted columns, changes some of 800 tokens."""
    model, texts, margins = twins
    assert np.median(margins) < 0.02
    assert generate(model, ragged(LENGTHS), method, texts, max_new_tokens=NEW).tokens == texts


TEXTS = (
    "apples, pears, plums, apples, pears, plums, apples, pears,",
    "The first man to walk on the Moon was",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n    return a - b\n\ndef multiply(",
    "A",
    "1. one\n2. two\n3. three\n4. four\n5. five\n6.",
    "She said that she would come, and then she said that she would not come, and then she said",
    "<item>red</item><item>green</item><item>blue</item><item>",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday Tuesday",
)


@pytest.mark.parametrize(
    ("rows", "method", "policy"),
    [
        (range(8), Lookup(width=8, ngram=3), Window()),
        (range(3), Lookup(width=4, ngram=2), Dense()),
        ([5], Lookup(width=16, ngram=4), Window()),
    ],
    ids=str,
)
def test_real_models(real, greedy, rows, method, policy):
    prompts = [real.encode(text) for text in TEXTS]
    expected = greedy(real, prompts, 48)
    result = generate(real, [prompts[row] for row in rows], method, policy=policy, max_new_tokens=48)
    assert result.tokens == [expected[row] for row in rows]
    assert result.stats.tokens_per_step > 1.1


@pytest.mark.parametrize(
    "method",
    [
        Suffix(width=8),
        LLMA(),
        Retrieval(width=8),
        Jacobi(),
        Lookahead(window=4, ngram=4, guesses=3),
        Recycling(width=16),
        SelfSpeculative(3, skip=(16, 17, 18)),
    ],
    ids=str,
)
def test_a_real_model_without_a_draft_model(smollm2, greedy, method):
    prompts = [smollm2.encode(text) for text in (TEXTS[2], TEXTS[5], TEXTS[7])]
    expected = greedy(smollm2, prompts, 32)
    documents = [*map(smollm2.encode, TEXTS), *expected]
    result = generate(smollm2, prompts, method, documents, max_new_tokens=32)
    assert result.tokens == expected
    assert result.stats.tokens_per_step > (1.0 if isinstance(method, Jacobi) else 1.3)


def test_drafts_that_reach_beyond_the_context(tiny_llama, ragged):
    """Learned positions end with the context. What a full row drafts after it is scored, and changes nothing."""
    cfg = tiny_llama.config.replace(
        max_positions=32, absolute_positions="learned", segments=(Segment((LayerKind(rope=None),), 2),)
    )
    model = Model.random(cfg)
    prompts = ragged((32, 30, 20, 1))
    expected = model.generate(prompts, max_new_tokens=40).tokens
    assert list(map(len, expected)) == [1, 3, 13, 32]  # the last token of all is never scored
    result = generate(model, prompts, SMALL["lookahead"], max_new_tokens=40)
    assert result.tokens == expected
    assert result.stats.tokens_per_step > 1

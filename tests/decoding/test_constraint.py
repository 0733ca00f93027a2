"""Constrained decoding: every method under an automaton, sampled distributions, what is refused."""

import dataclasses
import re
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributions import disagreeing_pair, excess
from small_methods import SMALL, equip
from words import DATE, LIST, PATTERNS, WORDS, Words, slow_allowed

from jaxinfer import (
    Beam,
    Constraint,
    Contrastive,
    Dola,
    Eagle,
    Greedy,
    InputError,
    Lookup,
    Medusa,
    Sample,
    Sampling,
    Speculative,
)
from jaxinfer.decoding.constraints.constraint import Masks, follow, mask
from jaxinfer.decoding.contract import Draft
from jaxinfer.heads.store import init_params
from jaxinfer.network.heads import Heads, HeadsConfig
from jaxinfer.runtime import compiled

LENGTHS = (1, 2, 5, 30, 33, 64)
NEW = 40
COLD = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def worded(tiny_llama):
    """A small random model with a vocabulary of words."""
    return dataclasses.replace(tiny_llama, tokenizer=WORDS)


@pytest.fixture(scope="module")
def constraints(worded):
    one, other = Constraint.regex(worded, LIST), Constraint.regex(worded, DATE)
    return [one, other, None, one, one, other]


@pytest.fixture(scope="module")
def greedy(worded, ragged, constraints):
    return worded.generate(ragged(LENGTHS), max_new_tokens=NEW, constraint=constraints).tokens


def test_greedy_is_what_a_slow_loop_says(worded, ragged, constraints, greedy):
    """The most likely of the tokens with which the text can still grow into a match, by logits without a cache."""

    def logits_of(row):
        return np.asarray(worded.logits([row + [0] * (128 - len(row))])[0])

    for prompt, constraint, new in zip(ragged(LENGTHS), constraints, greedy, strict=True):
        logits, patterns = logits_of(prompt + new), {constraints[0]: LIST, constraints[1]: DATE}
        for place, id in enumerate(new):
            allowed = np.ones(WORDS.size, bool)
            if constraint:
                allowed = slow_allowed(WORDS, patterns[constraint], tuple(new[:place]))
            row = np.where(allowed, logits[len(prompt) + place - 1], -np.inf)
            assert allowed[id]
            assert row[id] >= row.max() - 1e-4
        if constraint:
            ended = new[-1] in WORDS.stop_ids
            assert re.fullmatch(patterns[constraint], WORDS.decode(new)) or not ended
            assert ended or len(new) == NEW
    assert [row[-1] in WORDS.stop_ids for row in greedy][1]  # a date has an end
    assert greedy[2] == worded.generate([ragged(LENGTHS)[2]], max_new_tokens=NEW).tokens[0]


@pytest.mark.parametrize("method", SMALL.values(), ids=SMALL)
def test_every_method_writes_what_greedy_writes(worded, ragged, constraints, greedy, method):
    model = equip(worded, method, greedy)
    options = {"method": method, "sampling": COLD if method.samples else None}
    result = model.generate(ragged(LENGTHS), max_new_tokens=NEW, constraint=constraints, **options)
    assert result.tokens == greedy
    assert (result.stats.tokens_per_step > 1) == (method.width > 1)
    traces = compiled.TRACES["decode"]
    others, limits = ragged(reversed(LENGTHS), seed=1), [NEW, 3, 20, 1, 7, 11]
    again = [Constraint.regex(worded, PATTERNS[3]), *reversed(constraints[:5])]  # another pattern, the same program
    expected = worded.generate(others, max_new_tokens=limits, constraint=again[:1] + again[1:]).tokens
    assert model.generate(others, max_new_tokens=limits, constraint=again, **options).tokens == expected
    assert compiled.TRACES["decode"] - traces <= (method != Greedy())


@pytest.mark.parametrize("method", [Beam(beams=3), Contrastive(k=5), Dola()], ids=str)
def test_methods_that_write_another_text_keep_to_it(worded, ragged, constraints, method):
    """A constraint often leaves less than five tokens, and less than three texts."""
    result = worded.generate(ragged(LENGTHS), max_new_tokens=NEW, method=method, constraint=constraints)
    for constraint, text, new in zip(constraints, result.texts, result.tokens, strict=True):
        pattern = {constraints[0]: LIST, constraints[1]: DATE}.get(constraint, "(?s:.*)")
        assert re.fullmatch(pattern, text) or (new[-1] not in WORDS.stop_ids and len(new) == NEW)
    assert result.texts[1]  # a date, and an end behind it
    assert result.tokens[1][-1] in WORDS.stop_ids


@pytest.mark.parametrize(("kind", "method"), [("medusa", Medusa()), ("eagle", Eagle())], ids=str)
def test_heads_draft_what_greedy_writes(worded, ragged, constraints, greedy, kind, method):
    cfg = HeadsConfig.of(kind, worded.name, worded.config, 60, 3)
    heads = Heads(init_params(cfg), jnp.arange(60), cfg)
    model = worded.attach(heads=heads)
    assert model.generate(ragged(LENGTHS), max_new_tokens=NEW, method=method, constraint=constraints).tokens == greedy


def test_states_within_a_tree(worded, constraints):
    """Each column of a tree by the tokens on its own way; below one that may not come the logits are as they were."""
    parent = np.array([-1, 0, 0, 1, 1, 2, 5], np.int32)
    tokens = np.array([[50, 7, 10, 8, 0, 15, 7], [50, 0, 1, 2, 5, 3, 5]], np.int32)  # column 0 was emitted before
    masks = Masks.of(constraints[:2], 2, WORDS.size, WORDS.stop_ids, lambda x, *_: jnp.asarray(x))
    draft = Draft(jnp.asarray(tokens), jnp.full(2, 7), jnp.tile(parent, (2, 1)))
    at = jax.jit(follow)(masks, draft)
    left = np.isfinite(mask(masks, at, jnp.zeros((2, 7, WORDS.size))))
    dead = 0
    for row, pattern in enumerate((LIST, DATE)):
        for column in range(7):
            way = [column]
            while parent[way[0]] > 0:
                way.insert(0, parent[way[0]])
            ids = tuple(int(tokens[row, i]) for i in way if i)
            comes = all(slow_allowed(WORDS, pattern, ids[:i])[ids[i]] for i in range(len(ids)))
            expected = slow_allowed(WORDS, pattern, ids) if comes else np.ones(WORDS.size, bool)
            assert np.array_equal(left[row, column], expected), (row, column)
            dead += not comes
    assert 0 < dead < 8


@pytest.mark.parametrize("method", [Sample(), Lookup(), SMALL["recycling"], Speculative(4)], ids=str)
def test_sampled_texts_match(worded, ragged, method):
    hot = Sampling(temperature=[0.3, 0.8, 1.0, 1.5, 3.0, 0.0], top_p=0.95, logit_bias={0: -np.inf, 7: 0.5})
    pattern, prompts = "(a|b|c|, ){8,20}[12]+", ragged(LENGTHS)
    model, constraint = equip(worded, method, prompts), Constraint.regex(worded, pattern)
    options = {"max_new_tokens": NEW, "constraint": constraint, "sampling": hot, "seed": 3}
    texts = model.generate(prompts, method=method, **options)
    one = worded.generate(prompts, **options)
    for text, ids in zip(texts.texts, texts.tokens, strict=True):
        assert re.fullmatch(pattern, text) or len(ids) == NEW
    assert sum(ids[-1] in WORDS.stop_ids for ids in texts.tokens) >= 2
    assert len({*texts.texts}) > 4
    if not isinstance(method, Speculative):  # whose guesses are drawn
        assert texts.tokens == one.tokens


def test_a_token_that_must_come_comes_though_it_is_banned(worded):
    """All that may come is banned, by a bias and by a bad word: as where everything is, nothing is."""
    banned = Sampling(temperature=0.0, logit_bias={5: -np.inf, 0: -np.inf}, bad_words=[[1]])
    result = worded.generate(
        [[1, 2]], method=Sample(), sampling=banned, constraint=Constraint.choice(worded, ["1-0"]), max_new_tokens=9
    )
    assert result.texts == ["1-0"]


FEW = Words(8, (b"a", b"b", b"c", b"ab", b"ba", b" "))
TWOS = "(a[bc]|b[ac]|c[ab ]){3,}"  # at least three tokens


def test_drawn_guesses_keep_the_masked_distribution(tiny_llama):
    target, draft = disagreeing_pair(tiny_llama)
    target = dataclasses.replace(target, tokenizer=FEW)
    model, rows, counts = target.attach(draft=draft), 4096, np.zeros((8, 8, 8))
    options = {"method": Speculative(3), "sampling": Sampling(), "constraint": Constraint.regex(target, TWOS)}
    for call in range(2):
        result = model.generate(
            [[1, 5]] * rows, max_new_tokens=3, seed=[call * rows + row for row in range(rows)], **options
        )
        np.add.at(counts, tuple(np.array(result.tokens).T), 1)
    assert sum(result.stats.accepted) > 0.3 * sum(result.stats.proposed)
    texts = np.array([[1, 5, *tail] for tail in product(range(8), repeat=2)])
    logits = np.asarray(target.logits(texts), np.float64)[:, 1:].reshape(8, 8, 3, 8)
    probs = np.ones((8, 8, 8))
    for one, two in product(range(8), repeat=2):
        for place, ids in enumerate(((), (one,), (one, two))):
            allowed = slow_allowed(FEW, TWOS, ids)
            weight = np.where(allowed, np.exp(logits[one, two, place]), 0.0)
            weight /= max(weight.sum(), 1e-30)
            probs[one, two] *= weight if place == 2 else weight[(one, two)[place]]
    assert abs(probs.sum() - 1) < 1e-6
    assert counts[probs == 0].sum() == 0
    assert (2 * rows * probs >= 5).sum() > 10
    assert excess(counts, probs) < 1


def test_log_probabilities_are_the_model_s_own(worded, ragged, constraints, greedy):
    result = worded.generate(ragged(LENGTHS), max_new_tokens=NEW, constraint=constraints, logprobs=True)
    text = ragged(LENGTHS)[1] + greedy[1]
    logits = worded.logits([text])[0, 1:-1]
    expected = jax.nn.log_softmax(logits)[np.arange(len(greedy[1])), np.array(greedy[1])]
    np.testing.assert_allclose(result.logprobs[1], expected, atol=1e-4)


def test_what_it_refuses(worded, tiny_llama, tmp_path):
    for pattern, expected in (
        ("(", r"regex '\(': at character 1: a \( without a \)"),
        ("(?=a)b", "look-around .* is not supported"),
        (r"(a)\1", "references such as .* are not supported"),
        (r"a[^\s\S]", "no text matches it"),
        ("a$b", "no text matches it"),
        ("a{0}", "only the empty text matches it"),
        ("q+", "no text that it matches can be written with this vocabulary"),
        ("a\ud800", r"character 2 is half a character"),
        (b"a", "must be text"),
        (None, "must be text"),
    ):
        with pytest.raises(InputError, match=expected):
            Constraint.regex(worded, pattern)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    for name, expected in (("no.json", "no such file"), ("bad.json", "not valid JSON"), ("list.json", "a JSON object")):
        with pytest.raises(InputError, match=expected):
            Constraint.json_schema(worded, tmp_path / name)
    with pytest.raises(InputError, match="must be a list of texts, none of them empty"):
        Constraint.choice(worded, [])
    with pytest.raises(InputError, match="needs a tokenizer, and model random has none"):
        Constraint.regex(tiny_llama, "a")
    with pytest.raises(InputError, match="needs a token that ends the text"):
        Constraint.regex(SimpleNamespace(stop_ids=(), vocabulary=[b"a"]), "a")
    made = Constraint.regex(worded, "a")
    for wrong, expected in (([made], "1 values for 2 prompts"), ("a", "must be a jaxinfer.Constraint")):
        with pytest.raises(InputError, match=expected):
            worded.generate([[1], [2]], constraint=wrong if isinstance(wrong, list) else [wrong] * 2)
    with pytest.raises(InputError, match="made for a model with other stop tokens"):
        tiny_llama.generate([[1]], constraint=made)
    for wrong in ([""], ["a", 3], ["a\ud800"], "ab", {"a"}):
        with pytest.raises(InputError, match="must be a list of texts, none of them empty"):
            Constraint.choice(worded, wrong)

"""Constrained decoding: the automaton, every method under it, sampled distributions, JSON schemas, what is refused."""

import dataclasses
import json
import re
import sys
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from small_methods import SMALL, equip
from words import Words, slow_allowed

from jaxinfer import (
    Beam,
    Constraint,
    Contrastive,
    Dola,
    Eagle,
    Greedy,
    InputError,
    LayerKind,
    Lookup,
    Medusa,
    Model,
    Sample,
    Sampling,
    Segment,
    Speculative,
    programs,
)
from jaxinfer.decoding.constraint import Masks, follow, mask
from jaxinfer.decoding.method import Draft
from jaxinfer.heads.heads import Heads, HeadsConfig
from jaxinfer.heads.store import init_params

WORDS = Words()
LIST = r"((a|b|c){1,3}( a|, )){4,9}[0-2]{2,4}(-1(é)?)*"
DATE = r"(0|1|2){4}(-[0-2]{2}){2}"
PATTERNS = (LIST, DATE, r"(ab|ca|é)*", r"(0|[12][0-2]*)(-1)?(, [0-2]+)*", "x?( a)+b|x|x-1")
LENGTHS = (1, 2, 5, 30, 33, 64)
NEW = 40
COLD = Sampling(temperature=0.0)


def walk(constraint, allowed_of, rng, steps=12):
    """Random texts, and at each step what the automaton allows beside what `allowed_of` does."""
    for _ in range(8):
        ids, state = (), 0
        for _ in range(steps):
            allowed = constraint.next[state][constraint.classes] >= 0
            expected = allowed_of(ids)
            yield ids, allowed, expected
            choices = np.setdiff1d(np.flatnonzero(expected), constraint.stop)
            if not len(choices):
                break
            ids = (*ids, int(rng.choice(choices)))
            state = constraint.next[state, constraint.classes[ids[-1]]]


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_automaton_allows_what_a_partial_match_allows(pattern, strips):
    words = dataclasses.replace(WORDS, strips_first_space=strips)
    constraint, ends = Constraint.regex(words, pattern), 0
    for ids, allowed, expected in walk(
        constraint, lambda ids: slow_allowed(words, pattern, ids), np.random.default_rng(0)
    ):
        assert np.array_equal(allowed, expected), ids
        ends += expected[list(words.stop_ids)].any()
    assert ends  # some texts came to where they may end


def test_what_cannot_be_ended_never_begins():
    """Without a token for the c of "abc" the a is a dead end, though it matches so far."""
    words = dataclasses.replace(WORDS, pieces=(b"a", b"b", b"ab", b"x", b"\xc3"))
    constraint = Constraint.regex(words, "(abc|x|é)+")
    first = constraint.next[0][constraint.classes] >= 0
    assert np.flatnonzero(first).tolist() == [3]
    with pytest.raises(InputError, match=r"regex 'abc\|é': no text that it matches can be written with this vocab"):
        Constraint.regex(words, "abc|é")


@pytest.mark.parametrize("pattern", [r"\d{4}-\d{2}", r'"[^"\\]{1,9}"', "[a-zé]{1,4} ?(☃|->)"])
def test_a_real_vocabulary_as_outlines_has_it(smollm2, pattern):
    """Byte-level BPE: tokens with a space in front, and parts of characters. Outlines runs tokens one by one.

    No text that matches begins another, for there it misses tokens: see `over_bytes`.
    """
    from outlines_core import Index, Vocabulary

    tokenizer, ids_of = smollm2.tokenizer, {}
    for id, token in enumerate(tokenizer.vocabulary):
        if token and id not in tokenizer.stop_ids:
            ids_of.setdefault(token, []).append(id)
    end = tokenizer.stop_ids[0]
    index, constraint = Index(pattern, Vocabulary(end, ids_of)), Constraint.regex(smollm2, pattern)

    def allowed_of(ids):
        state = index.get_initial_state()
        for id in ids:
            state = index.get_next_state(state, id)
        allowed = np.zeros(tokenizer.vocab_size, bool)
        allowed[index.get_allowed_tokens(state)] = True
        allowed[list(tokenizer.stop_ids)] = allowed[end]
        return allowed

    for ids, allowed, expected in walk(constraint, allowed_of, np.random.default_rng(1), steps=5):
        assert np.array_equal(allowed, expected), ids


def test_a_vocabulary_with_marks_for_spaces_and_bytes(gemma3):
    """SentencePiece: random ways through the automaton are texts that match; the usual tokens of a text are a way."""
    tokenizer, pattern = gemma3.tokenizer, "(the|a) [a-z]+ ☃(\u0600 [é-ü]+){0,3}"
    constraint, rng = Constraint.regex(gemma3, pattern), np.random.default_rng(0)
    for text in ("the snowman ☃", "a man ☃\u0600 éü\u0600 ü"):
        state = 0
        for id in tokenizer.backend.encode(text, add_special_tokens=False).ids:
            state = constraint.next[state, constraint.classes[id]]
            assert state >= 0
        assert constraint.next[state, constraint.classes[tokenizer.stop_ids[0]]] >= 0
    whole = 0
    for _ in range(30):
        ids, state = [], 0
        while len(ids) < 40:
            kind = rng.choice(
                np.unique(constraint.classes[constraint.next[state][constraint.classes] >= 0])
            )  # so that texts come to an end
            ids.append(int(rng.choice(np.flatnonzero(constraint.classes == kind))))
            if ids[-1] in tokenizer.stop_ids:
                assert re.fullmatch(pattern, tokenizer.decode(ids))
                whole += 1
                break
            state = constraint.next[state, constraint.classes[ids[-1]]]
    assert whole > 3


@pytest.fixture(scope="module")
def worded(tiny_gemma):
    """A small random model with a vocabulary of words."""
    return dataclasses.replace(tiny_gemma, tokenizer=WORDS)


@pytest.fixture(scope="module")
def constraints(worded):
    one, other = Constraint.regex(worded, LIST), Constraint.regex(worded, DATE)
    return [one, other, None, one, one, other]


@pytest.fixture(scope="module")
def greedy(worded, ragged, constraints):
    return worded.generate(ragged(LENGTHS), max_new_tokens=NEW, constraint=constraints).tokens


def test_greedy_is_what_a_slow_loop_says(worded, ragged, constraints, greedy):
    """The most likely of the tokens with which the text can still grow into a match, by logits without a cache."""
    logits_of = lambda row: np.asarray(worded.logits([row + [0] * (128 - len(row))])[0])  # noqa: E731
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
    traces = programs.TRACES["decode"]
    others, limits = ragged(reversed(LENGTHS), seed=1), [NEW, 3, 20, 1, 7, 11]
    again = [Constraint.regex(worded, PATTERNS[3]), *reversed(constraints[:5])]  # another pattern, the same program
    expected = worded.generate(others, max_new_tokens=limits, constraint=again[:1] + again[1:]).tokens
    assert model.generate(others, max_new_tokens=limits, constraint=again, **options).tokens == expected
    assert programs.TRACES["decode"] - traces <= (method != Greedy())


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
    small = dict(vocab_size=8, d_model=16, d_ff=32, n_heads=2, n_kv_heads=1, head_dim=8, max_positions=64)
    config = tiny_llama.config.replace(segments=(Segment((LayerKind(),), 1),), **small)
    target = dataclasses.replace(Model.random(config, seed=3), tokenizer=FEW)
    model, rows, counts = target.attach(draft=Model.random(config, seed=4)), 4096, np.zeros((8, 8, 8))
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
    observed, expected = counts[probs > 0], 2 * rows * probs[probs > 0]
    assert (expected >= 5).sum() > 10
    often = expected >= 5
    observed, expected = (np.append(x[often], x[~often].sum()) for x in (observed, expected))
    assert ((observed - expected) ** 2 / np.maximum(expected, 1)).sum() < chi2.isf(1e-5, len(expected) - 1)


def test_log_probabilities_are_the_model_s_own(worded, ragged, constraints, greedy):
    result = worded.generate(ragged(LENGTHS), max_new_tokens=NEW, constraint=constraints, logprobs=True)
    text = ragged(LENGTHS)[1] + greedy[1]
    logits = worded.logits([text])[0, 1:-1]
    expected = jax.nn.log_softmax(logits)[np.arange(len(greedy[1])), np.array(greedy[1])]
    np.testing.assert_allclose(result.logprobs[1], expected, atol=1e-4)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "born": {"type": "string", "format": "date"},
        "size": {"$ref": "#/$defs/size"},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "born", "size"],
    "$defs": {"size": {"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "Size"}},
}


def test_a_real_model_writes_json_of_a_schema(smollm2, tmp_path):
    (tmp_path / "person.json").write_text(json.dumps(SCHEMA))
    made = Constraint.json_schema(smollm2, tmp_path / "person.json")
    date = Constraint.regex(smollm2, "[0-9]{4}-[0-9]{2}-[0-9]{2}")
    prompts = ["A person as JSON: ", "The first men walked on the Moon on "]
    result = smollm2.generate(prompts, constraint=[made, date], max_new_tokens=64, method=Lookup())
    person = json.loads(result.texts[0])
    assert {"name", "born", "size"} <= {*person} <= {*SCHEMA["properties"]}
    assert len(person["name"]) <= 12
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", person["born"])
    assert person["size"] is None or isinstance(person["size"], int)
    assert {*person.get("tags", [])} <= {"red", "green"}
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", result.texts[1])


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "integer", "minimum": 3}, "keyword 'minimum' cannot be kept to for type integer"),
        ({"type": "string", "maxLenth": 3}, "keyword 'maxLenth' .*; nearest: 'maxLength'"),
        ({"properties": {"a": {"type": "sting"}}}, r'properties\.a: type "sting" must be one of string, integer'),
        ({"properties": {"a": {}}, "required": ["b"]}, "required names 'b', which is not among"),
        ({"type": "array", "items": {"enum": []}}, "items: enum is empty"),
        ({"type": "string", "enum": [1]}, "1 is not of type string"),
        ({"type": "string", "maxLength": "x"}, 'maxLength must be a whole number from 0, got "x"'),
        ({"type": "string", "pattern": ".*"}, "allows a quote, a backslash or a control character"),
        ({"type": "string", "pattern": "("}, r"pattern '\(': Failed to build"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "pattern and maxLength cannot be kept to together"),
        ({"type": "string", "format": "ipv4"}, 'format "ipv4" is not supported; supported: date, time'),
        ({"allOf": [{"type": "null"}, {"type": "null"}]}, "allOf must hold one schema"),
        ({"$ref": "#/$defs/a"}, r"names nothing: there is no '\$defs'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "leads back to itself"),
        ({"properties": {"a": True}}, r"properties\.a: expected a schema in braces, got true"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength must be greater"),
        ({"type": "null", "x": {1}}, "JSON schema: .*not JSON serializable"),
    ],
)
def test_a_schema_that_could_not_be_kept_to(schema, expected):
    with pytest.raises(InputError, match=expected) as caught:
        Constraint.json_schema(WORDS, schema)
    assert "\n" not in str(caught.value)


def test_a_pattern_within_a_schema_is_matched_as_a_whole(smollm2):
    constraint = Constraint.json_schema(smollm2, {"type": "string", "pattern": "^yes|no$"})
    for text, whole in (('"yes"', True), ('"no"', True), ('"yes', False)):
        state = 0
        for id in smollm2.tokenizer.encode(text):
            state = constraint.next[state, constraint.classes[id]] if state >= 0 else state
        assert (state >= 0 and constraint.next[state, -1] >= 0) == whole


def test_what_it_refuses(worded, tiny_llama, tmp_path, monkeypatch):
    for pattern, expected in (
        ("(", r"regex '\(': Failed to build DFA"),
        ("(?=a)b", "without look-around"),
        ("^a$", r"leave out \^ and \$"),
        (r"a[^\s\S]", "it, or a branch of it, matches no text"),
        ("q+", "no text that it matches can be written with this vocabulary"),
    ):
        with pytest.raises(InputError, match=expected):
            Constraint.regex(worded, pattern)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    for name, expected in (("no.json", "No such file"), ("bad.json", "not JSON"), ("list.json", "expected an object")):
        with pytest.raises(InputError, match=expected):
            Constraint.json_schema(worded, tmp_path / name)
    with pytest.raises(InputError, match="must be a list of texts, none of them empty"):
        Constraint.choice(worded, [])
    with pytest.raises(InputError, match="needs a tokenizer, and model random has none"):
        Constraint.regex(tiny_llama, "a")
    with pytest.raises(InputError, match="needs a token that ends the text"):
        Constraint.regex(SimpleNamespace(stop_ids=(), vocabulary=[b"a"], strips_first_space=False), "a")
    made = Constraint.regex(worded, "a")
    for wrong, expected in (([made], "1 values for 2 prompts"), ("a", "must be a jaxinfer.Constraint")):
        with pytest.raises(InputError, match=expected):
            worded.generate([[1], [2]], constraint=wrong if isinstance(wrong, list) else [wrong] * 2)
    with pytest.raises(InputError, match="made for a model with other stop tokens"):
        tiny_llama.generate([[1]], constraint=made)
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    for make in (lambda: Constraint.regex(worded, "a"), lambda: Constraint.json_schema(worded, {"type": "null"})):
        with pytest.raises(InputError, match=r'pip install "jaxinfer\[constrain\]"'):
            make()

"""From a pattern to an automaton over tokens: against partial matches, and against Outlines on a real vocabulary."""

import dataclasses
import re

import numpy as np
import pytest
from words import PATTERNS, WORDS, slow_allowed

from jaxinfer import Constraint, InputError


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


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_automaton_allows_what_a_partial_match_allows(pattern):
    words = WORDS
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


def test_a_space_before_the_first_word_is_part_of_the_text():
    """SentencePiece writes it with the word: new text goes on where the prompt ended, and is not stripped."""
    words = dataclasses.replace(WORDS, pieces=(b" a", b"a", b" b", b"b", b" ", b" ab"))
    for pattern, first in (("ab", [1]), (" ab", [0, 4, 5]), (" ?ab", [0, 1, 4, 5])):
        constraint = Constraint.regex(words, pattern)
        assert np.flatnonzero(constraint.next[0][constraint.classes] >= 0).tolist() == first, pattern


@pytest.mark.parametrize("pattern", ["[0-9]{4}-[0-9]{2}", r'"[^"\\]{1,9}"', "[a-zé]{1,4} ?(☃|->)"])
def test_a_real_vocabulary_as_outlines_has_it(smollm2, pattern):
    """Byte-level BPE: tokens with a space in front, and parts of characters. Outlines runs tokens one by one.

    No text that matches begins another, for there it misses tokens (outlines-core 0.2.14: "." after "3" in "3.14").
    """
    Index, Vocabulary = (getattr(pytest.importorskip("outlines_core"), name) for name in ("Index", "Vocabulary"))
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

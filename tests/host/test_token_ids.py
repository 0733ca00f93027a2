"""Prompts and token ids: what is taken for them, and what is refused in a line instead of rounded."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spelled import Spelled

from jaxinfer import InputError
from jaxinfer.host.token_ids import batch_of, token_ids

pytestmark = pytest.mark.quick


def spelling(value):
    """The repr without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


NO_IDS = [
    *([[1.7]], [["1"]], [[None]], [[True]], [[1, True]], [[10**30]], [[-1]], [[97]], [[[1]]], [[1, [2]]], [[b"1"]]),
    *(np.array([[1.0, 2.0]]), np.array([[True, False]]), [np.array([1.0])], [np.array([[1]])], [np.array(["1"])]),
    *([jnp.array([1.5])], [[np.float32(1)]], [[np.bool_(True)]], [[float("nan")]], np.array([[2**40]])),
    *([{1, 2}], [{1: 2}], [b"12"], [bytearray(b"1")], [None], [3], [3.5], [object()], [Ellipsis]),
]
NO_PROMPTS = [
    *NO_IDS,
    {"a": 1},
    None,
    b"text",
    3,
    1.5,
    [1, 2, 3],
    np.array([1, 2]),
    np.array(3),
    {"text"},
    object(),
    [],
]


def refused(call, *arguments, **options):
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("prompts", NO_PROMPTS, ids=spelling)
def test_what_is_no_prompt_is_refused(tiny_llama, prompts):
    assert "prompt" in refused(tiny_llama.generate, prompts, max_new_tokens=2)


@pytest.mark.parametrize(
    "tokens",
    [*NO_IDS, None, 3, "text", [1, 2], [[]], [], [[1], [1, 2]], {"a": 1}, {1}, [[1]] * 0],
    ids=spelling,
)
def test_what_is_no_batch_of_tokens_is_refused(tiny_llama, tokens):
    refused(tiny_llama.logits, tokens)
    with pytest.raises(InputError):  # here for want of experts, in a model with some for the tokens
        tiny_llama.routing(tokens)


def test_whole_numbers_of_every_kind_are_ids(tiny_llama):
    expected = tiny_llama.generate([[5, 6, 7], [8, 9, 1]], max_new_tokens=4).tokens
    for prompts in (
        ((5, 6, 7), (8, 9, 1)),
        np.array([[5, 6, 7], [8, 9, 1]]),
        jnp.array([[5, 6, 7], [8, 9, 1]], jnp.uint8),
        [np.array([5, 6, 7], np.uint64), jnp.array([8, 9, 1])],
        [range(5, 8), [np.int64(8), jnp.int32(9), 1]],
        (row for row in ([5, 6, 7], iter([8, 9, 1]))),
    ):
        assert tiny_llama.generate(prompts, max_new_tokens=4).tokens == expected
    whole = np.asarray(tiny_llama.logits(np.array([[5, 6, 7]], np.int16)))
    np.testing.assert_array_equal(whole, tiny_llama.logits(((5, 6, 7),)))
    assert "1025 ids, and the context is 1024" in refused(tiny_llama.logits, [[1] * 1025])


def test_half_a_character_is_no_text(tiny_llama):
    model = dataclasses.replace(tiny_llama, tokenizer=Spelled())
    for call in (model.generate, model.stream, model.encode):
        assert "half a character" in refused(call, "a\ud800b")
    assert "prompt 1 holds half a character" in refused(model.generate, ["A B", "\udfff"])


def test_steps_per_piece_are_whole_numbers(tiny_llama):
    model = dataclasses.replace(tiny_llama, tokenizer=Spelled())
    for steps in (0, -1, 1.5, None, "x", True, 2**31):
        assert "steps_per_piece" in refused(model.stream, [1], steps_per_piece=steps)
    assert len(model.stream([1], max_new_tokens=3, steps_per_piece=np.int64(2)).tokens) == 0
    assert "no option 'max_tokens'; nearest: 'max_new_tokens'" in refused(model.stream, [1], max_tokens=3)
    assert "no option 'temperature'" in refused(model.generate, [1], temperature=3)


VALUES = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)),
        st.integers(0, 96).map(np.int64),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(st.integers(), inner)),
    max_leaves=6,
)


@settings(derandomize=True, max_examples=150, deadline=None, database=None)
@given(VALUES)
def test_ids_are_whole_numbers_of_the_vocabulary_or_refused(value):
    for read in (lambda x: token_ids(x, "prompt", 97), lambda x: batch_of(x, 97, 8)):
        try:
            ids = read(value)
        except InputError as error:
            message = str(error)
        else:
            message = ""
            assert all(0 <= id < 97 for id in np.ravel(ids))
            plain = [x for row in value for x in row] if isinstance(ids, np.ndarray) else list(value)
            assert np.ravel(ids).tolist() == plain
            assert all(isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in plain)
        assert "\n" not in message
        assert len(message) < 300

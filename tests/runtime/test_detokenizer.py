"""Stop strings: in whole texts and in pieces, across tokens and within characters, and as special tokens."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spelled import SPECIAL, Spelled

from jaxinfer import InputError, Lookup, Sampling
from jaxinfer.runtime.detokenizer import Text


def slowly(ids, stops, skip, include, stop_ids=(12,)):
    """The text and how many tokens, by trying every beginning, byte by byte."""
    for count in range(1, len(ids) + 1):
        shown = [(byte, id in SPECIAL) for id in ids[:count] for byte in Spelled().token_bytes(id, False)]
        places = [place for place, (_, special) in enumerate(shown) if not (skip and special)]
        read = bytes(shown[place][0] for place in places)
        whole = bytes(byte for byte, _ in shown)
        names, at = [], 0  # of special tokens that are left out: the places of each
        for id in ids[:count]:
            length = len(Spelled().token_bytes(id, False))
            if skip and id in SPECIAL:
                names.append(set(range(at, at + length)))
            at += length
        ends = []
        for stop in (stop.encode() for stop in stops):
            for start in range(len(whole)):
                taken = set(range(start, start + len(stop)))
                if whole[start:].startswith(stop) and all(name <= taken or not name & taken for name in names):
                    ends.append((sum(place < start for place in places), len(stop), stop))
            if stop in read:
                ends.append((read.index(stop), len(stop), stop))
        if not ends and ids[count - 1] in stop_ids:
            last = Spelled().token_bytes(ids[count - 1], False)
            ends.append((sum(place < len(whole) - len(last) for place in places), 0, last))
        if ends:
            end, _, stop = min(ends)
            return (read[:end] + (stop if include else b"")).decode("utf-8", "replace"), count
    return Spelled().decode(ids, skip), len(ids)


STOPS = ["a", "ab", "ba a", "é", "<|x|>", "b<|x|>a", "<", "|x|>b", "aa", "<end>", "\n\n\n", "abab", "x", "end"]


@settings(derandomize=True, max_examples=400, deadline=None, database=None)
@given(
    ids=st.lists(st.integers(0, 13), max_size=14),
    stops=st.lists(st.sampled_from(STOPS), max_size=3, unique=True),
    skip=st.booleans(),
    include=st.booleans(),
    cuts=st.lists(st.integers(1, 4), min_size=14, max_size=14),
)
def test_a_text_in_pieces_is_the_text_that_every_beginning_is_searched_for(ids, stops, skip, include, cuts):
    expected, count = slowly(ids, stops, skip, include)
    whole = Text(Spelled(), stops, (12,), skip, include)
    whole.feed(ids)
    assert (whole.piece(last=True), whole.tokens) == (expected, count)
    text, pieces, at = Text(Spelled(), stops, (12,), skip, include), [], 0
    for size in cuts:
        text.feed(ids[at : at + size])
        at += size
        pieces.append(text.piece())
        assert expected.startswith("".join(pieces))  # nothing is given that has to be taken back
    assert ("".join([*pieces, text.piece(last=True)]), text.tokens) == (expected, count)


@pytest.fixture(scope="module")
def spelled(tiny_llama):
    return dataclasses.replace(tiny_llama, tokenizer=Spelled())


@pytest.mark.parametrize("method", [None, Lookup()])
def test_generate_and_stream_stop_alike(spelled, method):
    ended = 0
    for row, stops in enumerate((["ab"], ["<|x|>"], ["|x|>", "é"], "a", ["never"], [])):
        for options in ({}, {"include_stop": True}, {"skip_special": False}):
            given = dict(max_new_tokens=60, method=method, stop=stops, **options)
            prompt = [row + 1, 7, 7]
            free = spelled.generate([prompt], max_new_tokens=60).tokens[0]
            names = [stops] if isinstance(stops, str) else stops
            skip, include = options.get("skip_special", True), options.get("include_stop", False)
            expected, count = slowly(free, names, skip, include)
            whole = spelled.generate([prompt], **given)
            assert (whole.texts[0], whole.tokens[0]) == (expected, free[:count])
            stream = spelled.stream(prompt, steps_per_piece=2, **given)
            assert "".join(stream) == expected
            assert stream.tokens == whole.tokens[0]
            ended += count < 60
    assert ended >= 6  # else it shows nothing


def test_a_part_of_a_special_tokens_name_stops_nothing_while_the_token_is_left_out():
    for stop in ("x", "<", "|x|>", "|x|>a", "a<"):
        hidden, said = Text(Spelled(), [stop], ()), Text(Spelled(), [stop], (), skip=False)
        assert (hidden.feed([0, 5, 0]), said.feed([0, 5, 0])) == (False, True)
        assert hidden.piece(last=True) == "aa"
    both = Text(Spelled(), ["x"], ())
    assert both.feed([0, 5, 9, 0])  # the second is no special token, and is spelled alike
    assert (both.piece(last=True), both.tokens) == ("a<|", 3)


def test_a_stop_string_that_is_a_special_token_of_a_real_model(smollm2):
    """It is no part of texts, and yet ends them: the model is made to say it in the fourth place."""
    special = smollm2.tokenizer.encode("<|im_start|>")[0]
    free = smollm2.generate("The capital of France is", max_new_tokens=3)
    options = {"sampling": Sampling(temperature=0.0, logit_bias={special: 1e4}), "max_new_tokens": 3}
    prompt = smollm2.encode("The capital of France is") + free.tokens[0]
    said = smollm2.generate([prompt], stop="<|im_start|>", **options)
    assert (said.tokens, said.texts) == ([[special]], [""])
    kept = smollm2.generate([prompt], stop="<|im_start|>", include_stop=True, **options)
    assert kept.texts == ["<|im_start|>"]
    assert "".join(smollm2.stream(prompt, stop="<|im_start|>", **options)) == ""
    assert smollm2.generate([prompt], **options).texts == [""]
    assert smollm2.generate([prompt], skip_special=False, **options).texts == ["<|im_start|>" * 3]


@pytest.mark.parametrize(
    "stop",
    ["", [""], ["a", ""], None, 3, [3], [None], b"a", [b"a"], {"a": 1}, "\ud800", ["a\udfff"], [["a"]], 1.5],
    ids=repr,
)
@pytest.mark.parametrize("call", ["generate", "stream"])
def test_what_is_no_stop_string_is_refused(spelled, stop, call):
    with pytest.raises(InputError, match=r"^stop") as error:
        getattr(spelled, call)([1, 2], stop=stop) if call == "stream" else spelled.generate([[1, 2]], stop=stop)
    assert "\n" not in str(error.value)

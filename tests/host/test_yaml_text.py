"""YAML of users: what is plain is read, and everything else is one line, in bounded time."""

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.errors import InputError
from jaxinfer.host.yaml_text import DEEPEST, MOST_BYTES, parse

pytestmark = pytest.mark.quick

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(i + 1)}: &{chr(i + 1)} [{', '.join([f'*{chr(i)}'] * 10)}]\n" for i in range(ord("a"), ord("i"))
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}' if i else '*a'] * 10)}]}}\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3", {"a": 0.001}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),
        ("a: 2001-13-45", {"a": "2001-13-45"}),
        ("a: =", {"a": "="}),
        ("{50: -1, 7: 2.5}", {50: -1, 7: 2.5}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: *x", {"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": {"b": 1}}),
        # A mapping that is merged may be given again, and be merged elsewhere before it is itself made.
        (
            "b: &b {x: 0, y: 0}\na: &a {<<: *b, x: 1}\nc: {<<: *a, y: 2}",
            {"b": {"x": 0, "y": 0}, "a": {"x": 1, "y": 0}, "c": {"x": 1, "y": 2}},
        ),
        (
            "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b], z: 3}",
            {"a": {"x": 1}, "b": {"x": 2, "y": 2}, "c": {"x": 1, "y": 2, "z": 3}},
        ),
        ("a: 18446744073709551615", {"a": 2**64 - 1}),
        ('a: "\\u00e9\\U0001F600"', {"a": "\u00e9\U0001f600"}),
        ("[" * DEEPEST + "]" * DEEPEST, eval("[" * DEEPEST + "]" * DEEPEST)),
    ],
)
def test_what_is_plain_is_read(text, value):
    assert parse(text, "here") == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "holds more than 100,000 values"),
        (MERGES, "holds more than 100,000 values"),
        ("a: &a [*a]", "the anchor 'a' holds itself"),
        ("a: &a {b: *a}", "the anchor 'a' holds itself"),
        ("a: &a {<<: *a}", "the anchor 'a' holds itself"),
        ("a: &a {b: &b {<<: *a}}", "the anchor 'a' holds itself"),
        ("[" * 200_000, "is nested too deep"),
        ("{a: " * 200_000, "is nested too deep"),
        ("- " * 200_000, "is nested too deep"),
        ("".join(" " * i + "a:\n" for i in range(1000)), "is nested too deep"),
        ("seed: " + "9" * 10_000, "is no whole number of up to 64 bits"),
        ("seed: 0x" + "f" * 10_000, "is no whole number of up to 64 bits"),
        ("seed: " + "1:" * 5_000 + "1", "is no whole number of up to 64 bits"),
        ("seed: 18446744073709551616", "18446744073709551616 is no whole number of up to 64 bits"),
        ("!!python/object:os.system {}", "the tag 'tag:yaml.org,2002:python/object:os.system' is not read"),
        ("!!python/object/apply:os.system ['true']", "is not read"),
        ("!!binary aGFsbG8=", "is not read"),
        ("!!set {a, b}", "is not read"),
        ("!!timestamp 2024-01-01", "is not read"),
        ("!mine x", "the tag '!mine' is not read"),
        ("!!int many", "not valid YAML"),
        ("!!float many", "not valid YAML"),
        ("!!bool many", "not valid YAML"),
        ("a: 1\na: 2", ":2: not valid YAML: 'a' is given twice"),
        ('1: a\n"1": b', ":2: not valid YAML: '1' is given twice"),
        ("true: a", "the key 'true' is no text"),
        ("1.5: a", "the key '1.5' is no text"),
        ("~: a", "the key '~' is no text"),
        ("? [a]\n: b", "a key is a list or a mapping"),
        ("<<: 3", "expected a mapping"),
        ('a: "\\ud800"', ":1: not valid YAML: a text holds half a character"),
        ('"\\udfff": a', "a text holds half a character"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("a: \ud800", "special characters are not allowed"),
        ("a: \0", "special characters are not allowed"),
        ("*a", "undefined alias"),
        ("--- a\n--- b", "found another document"),
        ("%YAML 9.9\n--- a", "incompatible YAML document"),
        ("a" * (MOST_BYTES + 1), "has 1,048,577 characters, and at most 1,048,576 are read"),
        (f"a: {'b' * 100_000}: c", "not valid YAML"),
    ],
)
def test_what_is_not_is_one_line_at_once(text, problem):
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        parse(text, "here")
    message = str(caught.value)
    assert message.startswith("here")
    assert problem in message
    assert "\n" not in message
    assert len(message) < 400
    assert time.process_time() - start < 10


PIECES = "a|b|: |:\n|- |\n|  |{|}|[|]|,|&a |*a|<<|!!int |!x |1|1e3|~|'|\"|\\u|\\ud800|#|>|? |=|0x|2024-01-01|true|\t|%"


@settings(derandomize=True, max_examples=400, deadline=None, database=None)
@given(st.lists(st.sampled_from([*PIECES.split("|"), "|", "|\n", "\x85"]), max_size=25))
def test_whatever_is_written_is_plain_data_or_one_line(pieces):
    problem = value = None
    try:
        value = parse("".join(pieces), "here")
    except InputError as error:
        problem = str(error)
    assert problem is None or re.fullmatch(r"here(:\d+)?: [^\n]+", problem)
    json.dumps(value).encode()

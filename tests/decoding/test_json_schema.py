"""JSON schemas as constraints: what a real model writes under them, and what is refused as it could not be kept to."""

import json
import os

import jsonschema
import pytest
from words import WORDS

from jaxinfer import Constraint, InputError, Lookup, Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "born": {"type": "string", "format": "date"},
        "size": {"$ref": "#/$defs/size"},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "born", "size"],
    "$defs": {
        "size": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 300}, {"type": "null"}], "title": "Size"}
    },
}
SHORT = {"type": "string", "maxLength": 8}
CIRCLE = {"properties": {"kind": {"const": "circle"}, "r": {"type": "number", "maximum": 9}}, "required": ["kind", "r"]}
BOX = {"properties": {"kind": {"const": "box"}, "w": {"type": "integer", "multipleOf": 5}}, "required": ["kind", "w"]}
WRITTEN = [
    PERSON,
    {"type": "object", "oneOf": [CIRCLE, BOX]},
    {
        "type": "object",
        "properties": {'the "name"': SHORT, "back\\slash": SHORT},
        "required": ['the "name"', "back\\slash"],
    },
    {"type": "array", "items": {"type": "integer", "minimum": -20, "maximum": 20}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": r"^\w+ \d{2}$", "maxLength": 12},
    {"enum": ["yes", "no", None, 1.5, {"why": ["so"]}]},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    {"type": "array", "prefixItems": [{"type": "integer", "maximum": 99}, SHORT], "items": False, "minItems": 2},
    {"type": "string", "format": "ipv4"},
    {"properties": {"v": {"type": "boolean"}, "next": {"$ref": "#"}}, "required": ["v"], "type": "object"},
    {"type": "array", "items": {"type": "boolean"}, "contains": {"const": True}, "maxItems": 3},
    {"type": "object", "properties": {"a": SHORT, "b": SHORT, "c": SHORT}, "minProperties": 2},
]
HALF = Sampling(temperature=[0.0, 1.0] * (len(WRITTEN) // 2))  # every other row is sampled
METHODS = {"greedy": {}, "lookup, sampled": {"method": Lookup(), "sampling": HALF}}


@pytest.fixture(scope="module")
def constraints(smollm2):
    return [Constraint.json_schema(smollm2, schema) for schema in WRITTEN]


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_a_real_model_writes_instances(smollm2, constraints, options):
    """Each text that is ended is an instance; one that is cut off at max_new_tokens is still on its way to one."""
    result = smollm2.generate(["Some JSON: "] * len(WRITTEN), constraint=constraints, max_new_tokens=48, **options)
    ended = 0
    for schema, constraint, text, ids in zip(WRITTEN, constraints, result.texts, result.tokens, strict=True):
        state = 0
        for id in ids:
            state = constraint.next[state, constraint.classes[id]]
            assert state >= 0
        if ids[-1] in constraint.stop:
            ended += 1
            check = jsonschema.Draft202012Validator(
                schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
            )
            check.validate(json.loads(text))
    assert ended >= 8


def test_a_schema_in_a_file(smollm2, tmp_path):
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    made, same = (Constraint.json_schema(smollm2, given) for given in (tmp_path / "person.json", PERSON))
    assert (made.next == same.next).all()
    assert (made.classes == same.classes).all()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "nan.json").write_text('{"minimum": NaN}')
    (tmp_path / "digits.json").write_text('{"minimum": ' + "9" * 10_000 + "}")
    (tmp_path / "latin.json").write_bytes(b'{"title": "\xe9"}')
    for name, expected in (
        ("pipe", "a pipe or a device"),
        ("deep.json", "nested too deep"),
        ("nan.json", "NaN is not a number"),
        ("digits.json", "not valid JSON"),
        ("latin.json", "not UTF-8"),
        ("", "is a folder"),
    ):
        with pytest.raises(InputError, match=expected) as caught:
            Constraint.json_schema(WORDS, tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


CYCLE: dict = {"items": {}}
CYCLE["items"]["items"] = CYCLE


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "maxLenth": 3}, "keyword 'maxLenth' cannot be kept to; nearest: 'maxLength'"),
        ({"properties": {"a": {"type": "sting"}}}, r"properties\.a: type 'sting' must be one of .*nearest: 'string'"),
        ({"type": "array", "items": {"enum": []}}, "items: enum is empty"),
        ({"type": "string", "enum": [1]}, "no JSON that can be written is an instance"),
        ({"type": "string", "maxLength": "x"}, "maxLength must be a whole number from 0, got 'x'"),
        ({"type": "string", "pattern": "("}, r"pattern '\(' at character 1: a \( without"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around .* is not supported"),
        ({"type": "string", "format": "idn-email"}, "format 'idn-email' is not supported; .*date.*; nearest: 'email'"),
        ({"allOf": [{"type": "null"}, {"type": "string"}]}, "no JSON that can be written is an instance"),
        ({"oneOf": [True, True]}, "of exactly one schema of oneOf; use anyOf"),
        ({"$ref": "#/$defs/a"}, r"names nothing: there is no '\$defs'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "leads back to itself"),
        ({"$ref": "other.json"}, "must name a part of this schema"),
        ({"$dynamicRef": "#a"}, r"keyword '\$dynamicRef' cannot be kept to"),
        ({"type": "array", "uniqueItems": True}, "keyword 'uniqueItems' cannot be kept to for more than one item"),
        ({"type": "object", "minProperties": 2}, "minProperties 2 cannot be kept to"),
        ({"not": {"propertyNames": {"maxLength": 1}}, "type": "object"}, "'propertyNames' cannot be kept to where"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no JSON that can be written"),
        ({"type": "string", "minLength": 1_000_000}, "limit of 16,000 states"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 10**9}, "limit of 60,000 parts; allow fewer items"),
        ({"enum": list(range(100_000))}, "enum has 100,000 values, and at most 10,000"),
        ({"allOf": [{"anyOf": [{"minimum": i}, {"maximum": -i}]} for i in range(1, 30)]}, "limit of 300 alternatives"),
        ({"type": "number", "multipleOf": 0}, "multipleOf must be greater than 0"),
        ({"type": "number", "minimum": float("inf")}, "minimum: inf is not a number"),
        ({"properties": {1: {}}}, "properties: the name 1 is not text"),
        ({"const": "\ud800"}, "const: .* half a character"),
        ({"type": "null", "x": {1}}, r"x: \{1\} is not a value of JSON"),
        (CYCLE, "nested more than 100 deep, or holds itself"),
        (3, "JSON schema 3: give a mapping, or the path of a file"),
    ],
    ids=range(29),
)
def test_a_schema_that_could_not_be_kept_to(schema, expected):
    with pytest.raises(InputError, match=expected) as caught:
        Constraint.json_schema(WORDS, schema)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("JSON schema")
    assert len(str(caught.value)) < 400

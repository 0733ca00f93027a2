"""JSON schemas as constraints: what a real model writes under one, and what is refused as it could not be kept to."""

import json
import re

import pytest
from words import WORDS

from jaxinfer import Constraint, InputError, Lookup

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

"""JSON schemas as automata: each keyword, random schemas against `jsonschema`, references, recursion, formats."""

import datetime
import itertools
import json

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxinfer import InputError
from jaxinfer.decoding.constraints.grammar.formats import FORMATS, machine_of_format
from jaxinfer.decoding.constraints.grammar.texts import machine_of_schema

A, B = {"type": "integer"}, {"type": "string"}
NAMES = {'a"b': A, "c\\d": A, "e\nf\u0001": A}
OLD = {"$schema": "http://json-schema.org/draft-07/schema#"}
KEPT = [  # a schema, texts that are written under it, and texts that are not
    ({"properties": NAMES}, [json.dumps(dict.fromkeys(NAMES, 1))], ['{"a"b":1}', '{"e\nf\\u0001":1}', '{"c\\d":1}']),
    (
        {"enum": ['"', "\\", "\u0001", 1.5, {"a": [1]}]},
        ['"\\""', '"\\\\"', '"\\u0001"', "1.5", '{"a": [1]}'],
        ['"""', "1"],
    ),
    ({"const": 12345678901234567890123}, ["12345678901234567890123"], ["1"]),
    ({"type": "object", "minProperties": 1, "maxProperties": 1}, ['{"x":1}'], ["{}", '{"x":1,"y":2}']),
    ({"properties": {"a": A, "b": A, "c": A}, "minProperties": 2}, ['{"a":1,"c":2}'], ['{"c":1}', "{}"]),
    ({}, ["1", '{ "a": [1, {}] }', '"\\n"', "1e5"], ["", "01", "{", '{"a"}', "[1,]", '"\n"', '"\\x"', "tru", "nul"]),
    ({"properties": {"a": True}}, ['{"a":[1,"x"]}'], ['{"a":[1}', '{"a":}']),
    ({"type": "string", "pattern": r"^\d\w\s$"}, ['"1a "', '"1a\u00a0"'], ['"٣a "', '"1é "', '"1a"']),
    ({"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"ac"', '""']),
    ({"type": "string", "pattern": "^yes|no$"}, ['"yesss"', '"ano"'], ['"ayes"', '"noo"']),
    ({"type": "string", "pattern": '^["\\\\\t]+$'}, ['"\\"\\\\\\t"'], ['"""', '"\\"', '"\t"']),
    ({"type": "string", "pattern": "^a*$", "minLength": 2, "maxLength": 3}, ['"aa"', '"aaa"'], ['"a"', '"aaaa"']),
    ({"type": "string", "maxLength": 1}, ['"𝄞"', '"é"', '"\\n"', '""'], ['"ab"']),
    ({"type": "integer", "minimum": -5, "exclusiveMaximum": 12}, ["-5", "0", "11"], ["-6", "12", "-0", "1.5", "1e1"]),
    ({"type": "number", "multipleOf": 0.25, "minimum": 0}, ["0.75", "3"], ["0.7", "-0.25"]),
    ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, ["4"], ["3"]),
    ({"type": ["integer", "null"]}, ["1", "null"], ["true", '"1"']),
    ({"contains": {"const": 3}, "type": "array", "items": A}, ["[3]", "[1, 3,2]"], ["[]", "[1,2]"]),
    ({"type": "array", "items": A, "contains": {"minimum": 3}, "maxContains": 1}, ["[3,1]"], ["[3,4]", "[1]"]),
    ({"prefixItems": [A, B], "items": False, "type": "array"}, ["[]", "[1]", '[1,"a"]'], ['["a"]', '[1,"a",2]']),
    ({"type": "array", "items": [A, B], "additionalItems": False}, ["[1]"], ['["a"]', '[1,"a",1]']),
    ({"not": {"type": "integer"}, "type": "number"}, ["1.5"], ["1", "1.0"]),
    ({"not": {"enum": ["a", 1]}, "type": ["string", "integer"]}, ['"b"', "2"], ['"a"', "1"]),
    ({"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}], "type": "integer"}, ["2", "3"], ["6", "5"]),
    (
        {
            "properties": {"k": {"enum": ["x", "y"]}, "v": A},
            "if": {"properties": {"k": {"const": "x"}}},
            "then": {"required": ["v"]},
            "required": ["k"],
        },
        ['{"k":"x","v":1}', '{"k":"y"}'],
        ['{"k":"x"}'],
    ),
    ({"properties": {"a": A, "b": A}, "dependentRequired": {"a": ["b"]}}, ['{"b":1}', '{"a":1,"b":2}'], ['{"a":1}']),
    ({"patternProperties": {"^x": A}, "additionalProperties": False}, ['{"x1":1}'], ['{"x1":"a"}', '{"y":1}']),
    ({"properties": {"a": A}, "additionalProperties": B}, ['{"a":1,"z":"s"}', '{"z":"s"}'], ['{"z":1}', '{"a":"s"}']),
    ({"propertyNames": {"maxLength": 2}, "type": "object"}, ['{"ab":1}'], ['{"abc":1}']),
    ({"type": "object", "required": ["z"]}, ['{"z":1}', '{"z":1,"y":2}'], ["{}", '{"y":2}']),
    ({"allOf": [{"properties": {"a": A}}], "unevaluatedProperties": B}, ['{"a":1,"b":"x"}'], ['{"b":1}']),
    ({"uniqueItems": True, "maxItems": 1, "items": A, "type": "array"}, ["[1]"], ["[1,1]"]),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": A}}, ["1"], ['"x"']),
    ({"$ref": "#/$defs/a~0b", "$defs": {"a~b": A}}, ["1"], ['"x"']),
    ({"$ref": "#/$defs/a%20b", "$defs": {"a b": A}}, ["1"], ['"x"']),
    ({"$ref": "#/$defs/a%25b", "$defs": {"a%b": A}}, ["1"], ['"x"']),
    ({"$ref": "#here", "$defs": {"a": {"$anchor": "here", **A}}}, ["1"], ['"x"']),
    ({"$id": "http://x/y/", "$ref": "z", "$defs": {"a": {"$id": "z", **A}}}, ["1"], ['"x"']),
    ({"$ref": "#/allOf/1", "allOf": [True, A]}, ["1"], ['"x"']),
    ({"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": A}}, ["1"], ["4"]),
    ({**OLD, "$ref": "#/definitions/a", "maximum": 3, "definitions": {"a": A}}, ["1", "4"], ['"x"']),
    (
        {"properties": {"v": A, "next": {"$ref": "#"}}, "required": ["v"]},
        ['{"v":1,"next":{"v":2}}'],
        ['{"next":{"v":1}}'],
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), KEPT, ids=range(len(KEPT)))
def test_a_keyword_is_kept(schema, good, bad):
    machine = machine_of_schema(schema, "s")
    draft_4 = schema.get("exclusiveMinimum") is True
    check = (jsonschema.Draft4Validator if draft_4 else jsonschema.validators.validator_for(schema))(schema)
    for text in good:
        assert machine.matches(text), text
        if not isinstance(schema.get("items"), list):
            assert check.is_valid(json.loads(text)), text
    for text in bad:
        assert not machine.matches(text), text


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_right_or_narrower(name):
    good = {
        "date": ["2024-02-29", "2000-02-29", "0001-01-01"],
        "time": ["23:59:59.5Z", "00:00:00+05:30"],
        "date-time": ["2024-02-29T12:00:00Z"],
        "duration": ["P1Y2M3DT4H", "P4W", "PT36H"],
        "uuid": ["123e4567-e89b-12d3-A456-426614174000"],
        "email": ["a.b+c@example.org"],
        "ipv4": ["0.10.255.1"],
        "ipv6": ["::", "::1", "1::", "2001:db8::1:0:0:1", "::ffff:1.2.3.4", "1:2:3:4:5:6:7:8"],
        "hostname": ["example.org", "a-b.c", "localhost"],
        "json-pointer": ["", "/a~1b/0"],
        "uri": ["https://u@a.b:80/c?d#e", "mailto:x@y", "urn:a:b", "http://[::1]/"],
        "uri-reference": ["../a", "#x", "//a/b", ""],
        "relative-json-pointer": ["0#", "12/a"],
    }[name]
    bad = {
        "date": ["5141-06-31", "2023-02-29", "1900-02-29", "0000-01-01", "2024-1-1", "2024-13-01", "2024-00-10"],
        "time": ["24:00:00Z", "12:60:00Z", "12:00:00"],
        "date-time": ["2023-02-29T12:00:00Z", "2024-01-01 12:00:00Z"],
        "duration": ["P", "PT", "P1Y1W", "P1D2H"],
        "uuid": ["123e4567e89b12d3a456426614174000", "g23e4567"],
        "email": ["a", "a@", "a..b@c", ".a@b"],
        "ipv4": ["256.1.1.1", "01.1.1.1", "1.1.1", "1.1.1.1.1"],
        "ipv6": ["1::2::3", "12345::", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", ":1", "::1.2.3.256"],
        "hostname": ["-a", "a-", "a..b", "a_b", ""],
        "json-pointer": ["a", "/~2", "/~"],
        "uri": ["a b:c", "//a", "http://a b", "http://%zz"],
        "uri-reference": ["a b", "\\\\x"],
        "relative-json-pointer": ["01", "/a", "#"],
    }[name]
    machine = machine_of_format(name)
    assert [text for text in good if not machine.matches(text)] == []
    assert [text for text in bad if machine.matches(text)] == []


def test_every_day_of_the_calendar():
    machine = machine_of_format("date")
    for year in (1, 4, 100, 400, 1900, 2000, 2023, 2024, 9999):
        for month in range(14):
            for day in range(33):
                try:
                    expected = bool(datetime.date(year, month, day))
                except ValueError:
                    expected = False
                assert machine.matches(f"{year:04}-{month:02}-{day:02}") == expected


STRINGS = st.text(st.sampled_from('ab1é"\\\n☃'), max_size=3)
KEYS = st.sampled_from(["a", "b", 'q"'])
SCALARS = st.none() | st.booleans() | st.integers(-4, 12) | st.sampled_from([0.5, -1.25, 2.75]) | STRINGS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)
NUMBERS = {
    "minimum": st.integers(-3, 8),
    "exclusiveMaximum": st.sampled_from([0, 2.5, 10]),
    "multipleOf": st.sampled_from([1, 2, 0.5]),
}
SIMPLE = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["integer", "number"])}, optional=NUMBERS),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.integers(0, 2),
            "maxLength": st.integers(1, 3),
            "pattern": st.sampled_from(["^a", "[b1]", "é$"]),
        },
    ),
    st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": SCALARS}),
    st.fixed_dictionaries({"type": st.lists(st.sampled_from(["null", "boolean", "string"]), min_size=1, unique=True)}),
)


def grown(inner):
    names = st.dictionaries(KEYS, inner, max_size=3)
    objects = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": names, "additionalProperties": st.just(False) | inner},
        optional={"required": st.lists(KEYS, max_size=2, unique=True), "maxProperties": st.integers(0, 2)},
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array"), "items": inner},
        optional={"minItems": st.integers(0, 2), "maxItems": st.integers(1, 3), "contains": inner},
    )
    several = st.lists(inner, min_size=1, max_size=2)
    both = st.sampled_from(["anyOf", "allOf", "oneOf"]).flatmap(lambda key: st.fixed_dictionaries({key: several}))
    return (
        objects | arrays | both | st.fixed_dictionaries({"not": inner, "type": st.sampled_from(["string", "integer"])})
    )


SCHEMAS = st.recursive(SIMPLE, grown, max_leaves=4)


def whole(value):
    """Without numbers such as 2.0, which are written as 2."""
    if isinstance(value, list):
        return [whole(x) for x in value]
    if isinstance(value, dict):
        return {name: whole(x) for name, x in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


@settings(max_examples=250, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.lists(VALUES, min_size=4, max_size=8))
def test_what_is_written_is_what_validates(schema, values):
    """For every order of an object's names: one is written if the value is an instance, and none if it is not."""
    try:
        machine = machine_of_schema(schema, "s")
    except InputError as error:
        message = str(error)
        assert message.startswith("s: ")
        assert "\n" not in message
        if "no JSON that can be written" in message:
            assert not any(jsonschema.Draft202012Validator(schema).is_valid(value) for value in values)
        return
    for value in values:
        expected = jsonschema.Draft202012Validator(schema).is_valid(value)
        for compact in ((",", ":"), (", ", ": ")):
            texts = {json.dumps(x, ensure_ascii=False, separators=compact) for x in orders(whole(value))}
            found = [text for text in texts if machine.matches(text)]
            assert bool(found) == expected, (texts, found)


def orders(value):
    """The value with the names of its objects in every order."""
    if isinstance(value, list):
        return [list(x) for x in itertools.product(*map(orders, value))]
    if not isinstance(value, dict):
        return [value]
    return [
        dict(zip(names, inner, strict=True))
        for names in itertools.permutations(value)
        for inner in itertools.product(*(orders(value[name]) for name in names))
    ]

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher

from inferloom.errors import InvalidRequest
from inferloom.text.schemas import check_schema, guided

GOOD: dict[str, dict[str, Any]] = {
    "empty": {},
    "annotations": {"title": "T", "description": "d", "default": 1, "examples": [1], "$schema": "http://json-schema.org/draft-07/schema#", "$id": "urn:x", "$comment": "c", "x-order": 3, "type": "integer"},
    "object": {"type": "object", "properties": {"a": {"type": "string"}, "type": {"const": 1}}, "required": ["a"], "additionalProperties": False},
    "map": {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1, "maxProperties": 3},
    "patterns": {"type": "object", "patternProperties": {"^x_": {"type": "string"}}, "additionalProperties": False},
    "array": {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}, "minItems": 1, "maxItems": 4},
    "string": {"type": "string", "minLength": 1, "maxLength": 8, "pattern": "^[a-z]+$"},
    "format": {"type": "string", "format": "date-time"},
    "number": {"type": "number", "minimum": 0, "exclusiveMaximum": 10.5, "multipleOf": 0.5, "format": "float"},
    "choice": {"anyOf": [{"type": "null"}, {"enum": ["a", 1, None, {"b": []}]}, {"oneOf": [{"type": "boolean"}, {"type": "object"}]}]},
    "intersection": {"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}}, {"required": ["a"]}]},
    "references": {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
    "itself": {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False},
    "escaped reference": {"definitions": {"a/b~c": {"type": "string"}}, "type": "array", "items": {"$ref": "#/definitions/a~1b~0c"}},
    "several types": {"type": ["string", "null"]},
    "a property called like a keyword": {"type": "object", "properties": {"not": {"type": "string"}, "if": True}},
    "a value that looks like a schema": {"const": {"not": 1}, "default": {"if": 2}},
}  # fmt: skip


@pytest.mark.parametrize("schema", GOOD.values(), ids=GOOD.keys())
def test_a_schema_that_passes_can_be_compiled(schema: dict[str, Any]) -> None:
    before = json.dumps(schema)
    check_schema(schema, param="response_format.json_schema.schema")
    compiled = LLMatcher.grammar_from_json_schema(json.dumps(guided(schema)))
    assert LLMatcher.validate_grammar(compiled) == ""
    assert json.dumps(schema) == before


BAD: dict[str, tuple[Any, str]] = {
    "no object": ([1], "s: must be a JSON Schema"),
    "not": ({"properties": {"a": {"not": {}}}}, r"s\.properties\.a\.not: the keyword 'not'"),
    "if": ({"if": {}, "then": {}}, r"s\.if: the keyword 'if'"),
    "uniqueItems": ({"items": {"uniqueItems": True}}, r"s\.items\.uniqueItems"),
    "in a list": ({"anyOf": [{}, {"contains": {}}]}, r"s\.anyOf\.1\.contains"),
    "in unused definitions": (
        {"$defs": {"a": {"dependentRequired": {}}}},
        r"s\.\$defs\.a\.dependentRequired",
    ),
    "misspelt": ({"minLenght": 1}, r"s\.minLenght: the keyword 'minLenght'"),
    "nullable": ({"type": "string", "nullable": True}, r"s\.nullable"),
    "our own key": ({"x-guidance": {"lenient": True}}, r"s\.x-guidance"),
    "type": ({"type": "any"}, r"s\.type: 'any' is no type"),
    "types": ({"type": ["string", 3]}, r"s\.type: .* is no type"),
    "format": ({"type": "string", "format": "regex"}, r"s\.format: the format 'regex'"),
    "look-around": ({"pattern": "(?=a)b"}, r"s\.pattern: look-around"),
    "remote reference": ({"$ref": "http://a/b"}, r"s\.\$ref: .*leaves the schema"),
    "dangling reference": ({"items": {"$ref": "#/$defs/a"}}, r"s\.items\.\$ref: .*leads nowhere"),
    "a list of items": ({"items": [{"type": "string"}]}, r"s\.items: must be a schema"),
    "no schema": ({"properties": {"a": 3}}, r"s\.properties\.a: must be a schema"),
    "properties": ({"properties": []}, r"s\.properties: must be an object"),
    "empty choice": ({"anyOf": []}, r"s\.anyOf: must be a list"),
    "empty enum": ({"enum": []}, r"s\.enum: must be a list"),
    "required": ({"required": "a"}, r"s\.required: must be a list of names"),
    "negative length": ({"minLength": -1}, r"s\.minLength: must be a whole number"),
    "draft 4": ({"minimum": 1, "exclusiveMinimum": True}, r"s\.exclusiveMinimum: must be a number"),
    "multiple of nothing": ({"multipleOf": 0}, r"s\.multipleOf: must be a number above 0"),
}


@pytest.mark.parametrize(("schema", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_enforced_is_refused_with_its_path(schema: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_schema(schema, param="s")
    assert caught.value.param == "s"


def test_deep_nesting_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(10_000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest, match="nested more than 64 deep"):
        check_schema(schema, param="s")


def test_strict_closes_objects_that_list_their_properties_but_not_parts_of_an_intersection() -> None:
    listed = {"type": "object", "properties": {"a": {"properties": {}}}}
    closed = guided({"properties": {"x": listed, "y": {"allOf": [listed]}}}, strict=True)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["x"]["additionalProperties"] is False
    assert closed["properties"]["x"]["properties"]["a"]["additionalProperties"] is False
    assert closed["properties"]["y"] == {"allOf": [listed]}
    assert "additionalProperties" not in guided(listed)

"""JSON Schemas of requests: what of them can be enforced, and the form in which llguidance takes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from inferloom.errors import InvalidRequest

MAX_NESTING = 64

# keywords whose value is a schema, a list of schemas, or schemas by name
_ONE = frozenset({"items", "additionalProperties"})
_MANY = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_PLAIN = frozenset(
    [
        "type",
        "required",
        "const",
        "enum",
        "$ref",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
    ]
)
_ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "example",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
        "contentEncoding",
        "contentMediaType",
        "$schema",
        "$id",
        "$comment",
        "$anchor",
    ]
)
_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_FORMATS = frozenset(
    [
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uuid",
        "uri",
    ]  # of strings
)
_NUMBER_FORMATS = frozenset({"int32", "int64", "float", "double"})  # OpenAPI's; they restrict nothing here
_LOOKAROUND = re.compile(r"(?<!\\)(?:\\\\)*\(\?(?:=|!|<=|<!)")
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})

# one space at most where JSON allows any: a model at a high temperature would go on with spaces for ever
_GUIDANCE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def check_schema(schema: object, *, param: str) -> None:
    """Refuse a schema that cannot be enforced as it is written.

    Raises `InvalidRequest` that names the field `param` and the path of what is to blame: no object, a keyword,
    type or format that is unknown or cannot be enforced, a reference that leaves the schema or leads nowhere,
    nesting beyond 64.
    """
    if not isinstance(schema, Mapping):
        _refuse(param, [], "must be a JSON Schema, which is an object")
    if _nesting(schema) > MAX_NESTING:
        raise InvalidRequest(f"{param} is nested more than {MAX_NESTING} deep", param=param)
    for path, part in _parts(schema, []):
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            _refuse(param, path, "must be a schema: an object, true or false")
        _check_part(part, path, root=schema, param=param)


def check_parameters(parameters: object, *, param: str) -> None:
    """`check_schema` for a tool's parameters, which describe an object."""
    check_schema(parameters, param=param)
    if isinstance(parameters, Mapping) and parameters.get("type", "object") != "object":
        _refuse(param, ["type"], "a tool's parameters are an object, so this is 'object'")


def _nesting(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        children: Iterable[Any] = ()
        if isinstance(item, Mapping):
            children = item.values()
        elif isinstance(item, list | tuple):
            children = item
        else:
            continue
        deepest = max(deepest, depth)
        if deepest > MAX_NESTING:
            break
        waiting.extend((child, depth + 1) for child in children)
    return deepest


def _parts(schema: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
    """A schema and all schemas in it, with their paths."""
    yield path, schema
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        here = [*path, str(key)]
        if key in _ONE:
            yield from _parts(value, here)
        elif key in _MANY and isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from _parts(item, [*here, str(index)])
        elif key in _NAMED and isinstance(value, Mapping):
            for name, item in value.items():
                yield from _parts(item, [*here, str(name)])


def _check_part(part: Mapping[Any, Any], path: list[str], *, root: Mapping[Any, Any], param: str) -> None:
    for key, value in part.items():
        here = [*path, str(key)]
        if key in _ANNOTATIONS or (isinstance(key, str) and key.startswith("x-") and key != "x-guidance"):
            continue
        if key in _NAMED:
            if not isinstance(value, Mapping):
                _refuse(param, here, "must be an object of schemas")
        elif key in _MANY:
            if not isinstance(value, list | tuple) or not value:
                _refuse(param, here, "must be a list of schemas that is not empty")
        elif key in _PLAIN:
            _check_keyword(key, value, here, part=part, root=root, param=param)
        elif key not in _ONE:
            _refuse(param, here, f"the keyword {key!r} cannot be enforced; remove it")


def _check_keyword(
    key: str, value: Any, path: list[str], *, part: Mapping[Any, Any], root: Mapping[Any, Any], param: str
) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key == "type":
        kinds = value if isinstance(value, list) else [value]
        if not kinds or not all(isinstance(kind, str) and kind in _TYPES for kind in kinds):
            _refuse(param, path, f"{value!r} is no type of JSON")
    elif key == "required":
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            _refuse(param, path, "must be a list of names")
    elif key == "enum":
        if not isinstance(value, list) or not value:
            _refuse(param, path, "must be a list that is not empty")
    elif key == "$ref":
        if not isinstance(value, str) or not value.startswith("#"):
            _refuse(
                param, path, f"the reference {value!r} leaves the schema; only those that begin with # work"
            )
        if not _leads_somewhere(value, root):
            _refuse(param, path, f"the reference {value!r} leads nowhere")
    elif key == "pattern":
        if not isinstance(value, str):
            _refuse(param, path, "must be a regular expression")
        if _LOOKAROUND.search(value):
            _refuse(param, path, "look-around in a pattern cannot be enforced; remove it")
    elif key == "format":
        known = _NUMBER_FORMATS if part.get("type") in ("number", "integer") else _FORMATS
        if value not in known:
            _refuse(param, path, f"the format {value!r} cannot be enforced; remove it or use pattern")
    elif key in _COUNTS:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            _refuse(param, path, "must be a whole number from 0")
    elif key in _NUMBERS and not number:
        _refuse(param, path, "must be a number")
    elif key == "multipleOf" and value <= 0:
        _refuse(param, path, "must be a number above 0")


def _leads_somewhere(reference: str, root: Mapping[Any, Any]) -> bool:
    pointer = reference[1:]
    if pointer == "":
        return True
    if not pointer.startswith("/"):  # the name of an $anchor
        return any(
            isinstance(part, Mapping) and part.get("$anchor") == pointer for _, part in _parts(root, [])
        )
    place: Any = root
    for step in pointer[1:].split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, Mapping) and step in place:
            place = place[step]
        elif isinstance(place, list) and step.isdecimal() and int(step) < len(place):
            place = place[int(step)]
        else:
            return False
    return isinstance(place, Mapping | bool)


def _refuse(param: str, path: list[str], why: str) -> NoReturn:
    raise InvalidRequest(f"{'.'.join([param, *path])}: {why}", param=param)


def guided(schema: Mapping[str, Any], *, strict: bool = False) -> dict[str, Any]:
    """A checked schema as llguidance is given it: without identifiers it would try to fetch, and with compact
    white space. `strict` (OpenAI's word) closes objects that list their properties."""
    cleaned = _cleaned(dict(schema), strict=strict)
    return {**cleaned, "x-guidance": _GUIDANCE}


def _cleaned(schema: Any, *, strict: bool) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("$id", "$schema") or key.startswith("x-"):
            continue
        if key in _ONE:
            made[key] = _cleaned(value, strict=strict)
        elif key in _MANY:
            closing = strict and key != "allOf"  # two closed objects have nothing in common
            made[key] = [_cleaned(item, strict=closing) for item in value]
        elif key in _NAMED:
            made[key] = {name: _cleaned(item, strict=strict) for name, item in value.items()}
        else:
            made[key] = value
    if strict and "properties" in made and "additionalProperties" not in made and "allOf" not in made:
        made["additionalProperties"] = False
    return made

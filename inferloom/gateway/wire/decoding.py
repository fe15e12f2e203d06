"""From the bytes of a body to a request: strict where it matters, and exact about what was not understood.

The fast path decodes straight into a struct that forbids unknown fields. Only when that fails is the body decoded
to plain objects, relieved of the fields nobody knows (their names are reported), and converted.
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import msgspec

from inferloom.errors import InvalidRequest
from inferloom.gateway.wire.sampling import IGNORED

MAX_DEPTH = 64
MAX_NAMED = 16  # unknown fields named in a header
T = TypeVar("T", bound=msgspec.Struct)

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_STEP = re.compile(r"\w+|\[[^\]]*\]")  # of a place: a field's name, or an index
_FIELD = re.compile(r"`([^`]+)`")
_CURABLE = re.compile(r"unknown field|Expected `int[^`]*`, got `float`")
_PRINTABLE = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


class BodyDecoder(Generic[T]):
    """Decodes bodies of one request type."""

    def __init__(self, request: type[T]) -> None:
        self._type = request
        self._decoder = msgspec.json.Decoder(request)
        self._shape = msgspec.inspect.type_info(request)
        self._ignored = tuple(name for name in IGNORED if name in request.__struct_fields__)

    def decode(self, body: bytes) -> tuple[T, list[str]]:
        """The request, and the names of fields that change nothing. Raises `InvalidRequest` with the place."""
        refuse_depth(body)
        ignored: list[str] = []
        try:
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            if not _CURABLE.search(str(error)):
                raise _invalid(error, self._shape) from None
            request = self._decode_slowly(body, ignored)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _malformed(error, body) from None
        except RecursionError:
            raise _too_deep() from None
        for name in self._ignored:
            if getattr(request, name) is not None:
                ignored.append(name)
        return request, ignored

    def _decode_slowly(self, body: bytes, ignored: list[str]) -> T:
        try:
            data = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _malformed(error, body) from None
        except RecursionError:
            raise _too_deep() from None
        data = understood(data, self._shape, "", ignored)
        try:
            return msgspec.convert(data, self._type)
        except msgspec.ValidationError as error:
            raise _invalid(error, self._shape) from None


def understood(data: Any, shape: msgspec.inspect.Type, place: str, unknown: list[str]) -> Any:
    """`data` without the fields that no struct of `shape` has, whose names, once each, go to `unknown`; and with
    1.0 as 1 where a whole number is meant, for JSON has one kind of number. Lists and objects are changed in place.
    """
    if isinstance(shape, msgspec.inspect.UnionType):
        member = next((member for member in shape.types if isinstance(member, _shape_of(data))), None)
        return data if member is None else understood(data, member, place, unknown)
    if isinstance(shape, msgspec.inspect.IntType):
        return int(data) if isinstance(data, float) and data.is_integer() else data
    if isinstance(shape, msgspec.inspect.ListType) and isinstance(data, list):
        for index, item in enumerate(data):
            data[index] = understood(item, shape.item_type, f"{place}[]", unknown)
    elif isinstance(shape, msgspec.inspect.StructType) and isinstance(data, dict):
        fields = {field.encode_name: field.type for field in shape.fields}
        for name in list(data):
            path = f"{place}.{name}" if place else name
            if name in fields:
                data[name] = understood(data[name], fields[name], path, unknown)
            else:
                del data[name]
                if len(unknown) < MAX_NAMED and path not in unknown:
                    unknown.append(path)
    return data


def _shape_of(data: Any) -> type[msgspec.inspect.Type]:
    """The member of a union that a value can only belong to; whole-number floats are ints in disguise."""
    if isinstance(data, dict):
        return msgspec.inspect.StructType
    if isinstance(data, list):
        return msgspec.inspect.ListType
    return msgspec.inspect.IntType


def header_value(ignored: list[str]) -> bytes:
    """The names as a header's value; a name that could not stand in a header is given as a question mark."""
    return ", ".join(name if _PRINTABLE.fullmatch(name) else "?" for name in ignored).encode("ascii")


def refuse_depth(body: bytes) -> None:
    """Raise for JSON nested deeper than `MAX_DEPTH`: some parsers, templates and grammars recurse."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS):
        if bracket in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _too_deep()
        else:
            depth -= 1


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The JSON is nested deeper than {MAX_DEPTH} levels.", code="nested_too_deep")


def _invalid(error: msgspec.ValidationError, shape: msgspec.inspect.Type) -> InvalidRequest:
    text = str(error)
    place = _PLACE.search(text)
    if place is not None:
        param = place.group(1).removesuffix("[...]")
        if text.startswith("Invalid enum value"):
            allowed = ", ".join(msgspec.json.encode(value).decode() for value in _choices(shape, param))
            return InvalidRequest(f"Invalid value for '{param}': it must be one of {allowed}.", param=param)
        return InvalidRequest(f"Invalid value for '{param}': {_lower(text[: place.start()])}.", param=param)
    field = _FIELD.search(text)
    if "missing required field" in text and field is not None:
        return InvalidRequest(f"Missing required field '{field.group(1)}'.", param=field.group(1))
    return InvalidRequest(f"The body is not valid: {_lower(text)}.")


def _choices(shape: msgspec.inspect.Type, place: str) -> list[object]:
    """The values that may stand at a place such as `messages[0].role`."""
    shapes = [shape]
    for step in _STEP.findall(place):
        inner: list[msgspec.inspect.Type] = []
        for one in _members(shapes):
            if isinstance(one, msgspec.inspect.StructType):
                inner += [field.type for field in one.fields if field.encode_name == step]
            elif isinstance(one, msgspec.inspect.ListType):
                inner.append(one.item_type)
        shapes = inner
    literals = [one for one in _members(shapes) if isinstance(one, msgspec.inspect.LiteralType)]
    return [value for literal in literals for value in literal.values]


def _members(shapes: list[msgspec.inspect.Type]) -> list[msgspec.inspect.Type]:
    """The shapes with every union taken apart."""
    found: list[msgspec.inspect.Type] = []
    for shape in shapes:
        found += shape.types if isinstance(shape, msgspec.inspect.UnionType) else (shape,)
    return found


def _malformed(error: Exception, body: bytes) -> InvalidRequest:
    if isinstance(error, UnicodeDecodeError):
        detail = "a string is not valid UTF-8"
    else:
        detail = _lower(str(error).removeprefix("JSON is malformed: "))
        if detail == "input data was truncated":
            detail = f"it ends too early (byte {len(body)}), or a \\u escape is half of a surrogate pair"
    return InvalidRequest(f"The body is not valid JSON: {detail}.", code="invalid_json")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]

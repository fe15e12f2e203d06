"""From plain values (of TOML, JSON or flags) to typed structs: unknown keys, types and bounds.

The types, bounds and names come from the structs' own annotations, so a key is described once, in `schema.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from inferloom.config.drivers import NativeOptions
from inferloom.config.lines import Path
from inferloom.config.problems import Problems, did_you_mean, dotted
from inferloom.config.schema import (
    AuthConfig,
    DriverConfig,
    ModelConfig,
    RuntimeConfig,
    SchedulerConfig,
    ServerConfig,
    TelemetryConfig,
)

S = TypeVar("S", bound=msgspec.Struct)


@cache
def fields_of(struct: type[msgspec.Struct]) -> dict[str, inspect.Field]:
    """The keys of a section, in the order of the schema."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return {field.name: field for field in info.fields}


def decode(table: Mapping[str, Any], of: type[S], *, at: Path = (), problems: Problems) -> S | None:
    """`table` as the struct `of`; every problem is added with its path below `at`, and then there is no struct."""
    before = len(problems.found)
    _check_struct(table, of, at, problems)
    if len(problems.found) > before:
        return None
    return msgspec.convert(table, of)


def plain(kind: inspect.Type) -> inspect.Type:
    """The type without its description, and without `None`."""
    while True:
        if isinstance(kind, inspect.Metadata):
            kind = kind.type
        elif isinstance(kind, inspect.UnionType):
            some = [plain(option) for option in kind.types if not isinstance(option, inspect.NoneType)]
            if len(some) != 1:
                return inspect.UnionType(tuple(some))
            kind = some[0]
        else:
            return kind


def unknown_key(key: str, path: Path, fields: Mapping[str, inspect.Field]) -> str:
    """The sentence about a key that its section does not have: the nearest one, or the section that has it."""
    if not path:
        written = [section for section, keys in _sections().items() if key in keys]
        if written:
            return f'"{key}" is a key of {written[0]}; it stands outside of every section.'
        return f"[{key}] is not a section" + (
            did_you_mean(key, fields) or f"; there are {', '.join(fields)}."
        )
    what = f'"{key}" is not a key of {section_name(path)}'
    elsewhere = [
        section for section, keys in _sections().items() if key in keys and section != section_name(path)
    ]
    if elsewhere:
        return f"{what}, but of {elsewhere[0]}."
    return what + (did_you_mean(key, fields) or f"; there are {', '.join(fields)}.")


@cache
def _sections() -> dict[str, frozenset[str]]:
    """Every section as it is written, with its keys."""
    found: dict[str, type[msgspec.Struct]] = {
        "[server]": ServerConfig,
        "[auth]": AuthConfig,
        "[telemetry]": TelemetryConfig,
    }
    found |= {"[runtime]": RuntimeConfig, "[[model]]": ModelConfig, "[model.scheduler]": SchedulerConfig}
    found |= {"[model.driver]": DriverConfig, "[model.driver.options]": NativeOptions}
    return {section: frozenset(struct.__struct_fields__) for section, struct in found.items()}


def section_name(path: Path) -> str:
    """A table as it is written in the file: `[server]`, `[[model]]`, `[model.driver]`."""
    names = [segment for segment in path if isinstance(segment, str)]
    if not names:
        return "the file"
    return f"[[{names[0]}]]" if path[-1] != names[-1] else f"[{'.'.join(names)}]"


def _check_struct(table: Any, of: type[msgspec.Struct], path: Path, problems: Problems) -> None:
    if not isinstance(table, Mapping):
        problems.add(path, f"{dotted(path)} must be a table, not {describe(table)}.")
        return
    fields = fields_of(of)
    for key, value in table.items():
        here = (*path, key)
        if key not in fields:
            problems.add(here, unknown_key(key, path, fields))
        else:
            _check(value, fields[key].type, here, problems)
    for name, field in fields.items():
        if field.required and name not in table:
            problems.add(path, f'{section_name(path)} needs the key "{name}".')


def _check(value: Any, declared: inspect.Type, path: Path, problems: Problems) -> None:
    if value is None and _may_be_unset(declared):
        return
    kind = plain(declared)
    if isinstance(kind, inspect.StructType):
        _check_struct(value, kind.cls, path, problems)
    elif isinstance(kind, inspect.ListType) and isinstance(value, list):
        if not value and kind.min_length:
            problems.add(path, f"{dotted(path)} must not be empty.")
        for index, item in enumerate(value):
            _check(item, kind.item_type, (*path, index), problems)
    elif not _fits(value, kind):
        problems.add(path, f"{dotted(path)} must be {expected(kind)}, not {_told(value, path)}.")
    elif isinstance(kind, inspect.LiteralType) and value not in kind.values:
        known = [str(word) for word in kind.values]
        problems.add(
            path,
            f"{dotted(path)} must be one of {', '.join(map(quoted, known))}, not {describe(value)}"
            + (did_you_mean(value, known) or "."),
        )
    elif isinstance(kind, inspect.StrType) and not value and kind.min_length:
        problems.add(path, f"{dotted(path)} must not be empty.")
    elif isinstance(kind, inspect.FloatType) and not math.isfinite(value):
        problems.add(path, f"{dotted(path)} must be a finite number{_bounds(kind, ' ')}, not {value}.")
    elif isinstance(kind, inspect.IntType | inspect.FloatType) and not _within(value, kind):
        problems.add(path, f"{dotted(path)} must be {_bounds(kind)}, not {value}.")


def _may_be_unset(kind: inspect.Type) -> bool:
    """TOML has no null; JSON and the structs' own defaults have."""
    kind = kind.type if isinstance(kind, inspect.Metadata) else kind
    return isinstance(kind, inspect.UnionType) and any(
        isinstance(option, inspect.NoneType) for option in kind.types
    )


def _fits(value: Any, kind: inspect.Type) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return number and isinstance(value, int)
        case inspect.FloatType():
            return number
        case inspect.StrType() | inspect.LiteralType():
            return isinstance(value, str)
        case inspect.ListType():
            return isinstance(value, list)
        case inspect.DictType():
            return isinstance(value, Mapping)
        case inspect.UnionType():
            return any(_fits(value, option) for option in kind.types)
        case _:
            return True


def _within(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return not (
        (kind.gt is not None and not value > kind.gt)
        or (kind.ge is not None and not value >= kind.ge)
        or (kind.lt is not None and not value < kind.lt)
        or (kind.le is not None and not value <= kind.le)
    )


def _bounds(kind: inspect.IntType | inspect.FloatType, lead: str = "") -> str:
    """`> 0`, `>= 0`, `between 0 and 65535`, `in (0.0, 1.0]`: as the documentation writes it."""
    if kind.gt is not None and kind.le is not None:
        return f"{lead}in ({float(kind.gt)}, {float(kind.le)}]"
    if kind.ge is not None and kind.le is not None:
        return f"{lead}between {kind.ge} and {kind.le}"
    if kind.gt is not None:
        return f"{lead}> {kind.gt}"
    return f"{lead}>= {kind.ge}" if kind.ge is not None else ""


def _told(value: Any, path: Path) -> str:
    """The value in words; a key of the API is a secret even where it is malformed."""
    return "a string" if isinstance(value, str) and "api_keys" in path else describe(value)


def expected(kind: inspect.Type) -> str:
    """A type in words: `an integer`, `a list of strings`."""
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "an integer"
        case inspect.FloatType():
            return "a number"
        case inspect.StrType():
            return "a string"
        case inspect.LiteralType():
            return "one of " + ", ".join(quoted(str(word)) for word in kind.values)
        case inspect.ListType():
            items = expected(plain(kind.item_type)).removeprefix("a ").removeprefix("an ")
            return f"a list of {items}s"
        case inspect.UnionType():
            return " or ".join(expected(option) for option in kind.types)
        case _:
            return "a table"


def describe(value: Any) -> str:
    """A value in words, for the end of a sentence."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {quoted(value if len(value) <= 60 else value[:57] + '...')}"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"a {type(value).__name__}"


def quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

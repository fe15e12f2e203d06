"""From text on a command line to a value of the key's type, and from a dotted path to that key."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect

from inferloom.config.decoding import fields_of, plain, quoted, unknown_key
from inferloom.config.drivers import OPTIONS
from inferloom.config.lines import Path
from inferloom.config.problems import dotted
from inferloom.config.schema import Config
from inferloom.errors import ConfigError


def coerce(text: str, kind: inspect.Type) -> Any:
    """`text` as a value of `kind`: commas make lists. What does not fit stays text, for checking to complain of."""
    match plain(kind):
        case inspect.BoolType():
            return {"true": True, "false": False}.get(text.strip().lower(), text)
        case inspect.IntType():
            return _number(text, int)
        case inspect.FloatType():
            return _number(text, float)
        case inspect.ListType(item_type=item):
            return [coerce(part.strip(), item) for part in text.split(",") if part.strip()]
        case inspect.UnionType():
            return _number(text, float)
        case _:
            return text


def _number(text: str, of: type[int] | type[float]) -> Any:
    try:
        return of(text)
    except ValueError:
        return text


def split_path(written: str) -> Path:
    """`model.0.driver.device` as segments; digits are indices."""
    segments = written.split(".")
    if not all(segments):
        raise ConfigError(
            f"{quoted(written)} is not a path of a key; write it like server.port or model.0.source."
        )
    return tuple(int(segment) if segment.isdecimal() else segment for segment in segments)


def type_at(path: Path, config: Config) -> inspect.Type:
    """The declared type of the key at `path`; ConfigError, with the nearest key, if there is none.

    `config` tells how many models there are and which options their drivers take.
    """
    struct: type[msgspec.Struct] = Config
    here: Path = ()
    rest = list(path)
    while True:
        if not rest:
            keys = ", ".join(fields_of(struct))
            raise ConfigError(f"{dotted(path)} is a table; name a key of it: {keys}.")
        segment = rest.pop(0)
        here = (*here, segment)
        fields = fields_of(struct)
        if not isinstance(segment, str) or segment not in fields:
            raise ConfigError(_unknown(path, here, fields))
        kind = plain(fields[segment].type)
        if here == ("model",):
            struct, here = _model_struct(rest, here, config)
        elif isinstance(kind, inspect.StructType):
            struct = kind.cls
        elif isinstance(kind, inspect.DictType):
            assert isinstance(here[1], int)
            struct = OPTIONS[config.model[here[1]].driver.type]
        elif not rest:
            return fields[segment].type
        elif isinstance(kind, inspect.ListType) and len(rest) == 1 and isinstance(rest[0], int):
            return kind.item_type
        else:
            raise ConfigError(f"{dotted(path)}: {dotted(here)} is a value; nothing is below it.")


def _model_struct(rest: list[str | int], here: Path, config: Config) -> tuple[type[msgspec.Struct], Path]:
    count = len(config.model)
    if not rest or not isinstance(rest[0], int):
        raise ConfigError(
            f"say which model by its number, counted from 0: model.0.{rest[0] if rest else 'source'}."
        )
    number = rest.pop(0)
    if isinstance(number, int) and number >= count:
        models = "there is one model, model.0" if count == 1 else f"there are {count} models, counted from 0"
        raise ConfigError(f"there is no model.{number}: {models}.")
    kind = plain(fields_of(Config)["model"].type)
    assert isinstance(kind, inspect.ListType)
    item = kind.item_type
    assert isinstance(item, inspect.StructType)
    return item.cls, (*here, number)


def _unknown(path: Path, here: Path, fields: dict[str, inspect.Field]) -> str:
    word = str(here[-1])
    if here == path and len(path) == 1:
        homes = [name for name in ("server", "auth", "telemetry", "runtime") if word in _keys_of(name)]
        if homes:
            return f"{quoted(word)} is a key of [{homes[0]}]: write {homes[0]}.{word}."
    return unknown_key(word, here[:-1], fields)


def _keys_of(section: str) -> dict[str, inspect.Field]:
    kind = plain(fields_of(Config)[section].type)
    return fields_of(kind.cls) if isinstance(kind, inspect.StructType) else {}

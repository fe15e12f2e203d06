"""Changing a configuration file key by key: comments stay, the whole file is checked first, the write is atomic."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable, Item

from inferloom.config.decoding import fields_of
from inferloom.config.difference import REDACTED
from inferloom.config.drivers import OPTIONS
from inferloom.config.lines import Path
from inferloom.config.loading import load, loads, read_text
from inferloom.config.problems import dotted
from inferloom.config.schema import Config
from inferloom.config.template import default, template
from inferloom.config.values import coerce, split_path, type_at
from inferloom.config.writing import changing, replace
from inferloom.errors import ConfigError

_NORMALISED = ("type", "device", "dtype", "activation_dtype")  # keys that are read in another spelling
_COMMENTED_KEYS = re.compile(r"(#.*\bapi_keys\b\s*=).*")


def init(path: FilePath, *, force: bool = False) -> None:
    """Write the template to `path`; a file that is there stays unless `force`."""
    with changing(path):
        if path.exists() and not force:
            raise ConfigError(f"{path}: the file exists; --force writes a new one over it.")
        replace(path, template())


def set_value(path: FilePath, key: str, text: str) -> Any:
    """Set the key at a dotted path to the value that `text` means there; returns the value.

    `source` and `hf_repo` say the same thing, so setting one takes the other out.
    Raises ConfigError, with the file untouched, if there is no such key or the whole file would not load.
    """
    with changing(path):
        before = read_text(path)
        config = loads(before, origin=str(path))
        where = split_path(key)
        value = coerce(text, type_at(where, config))
        base = _without_synonym(before, where)
        origin = f"{path} with {key} set"
        try:
            after = _checked(with_value(base, where, value), where, value, origin=origin)
        except ConfigError as refused:
            try:  # a new table below dotted keys is lost by tomlkit unless it is an inline one
                after = _checked(with_value(base, where, value, inline=True), where, value, origin=origin)
            except ConfigError:
                raise refused from None
        replace(path, after)
        return value


def unset(path: FilePath, key: str) -> None:
    """Take the key at a dotted path out of the file, so that its default holds again."""
    with changing(path):
        before = read_text(path)
        where = split_path(key)
        type_at(where, loads(before, origin=str(path)))
        document = _document(before)
        table = _walk(document, where[:-1], key)
        if table is None or not _has(table, where[-1]):
            raise ConfigError(f"{key} is not set in {path}; its default holds already.")
        del table[where[-1]]
        after = tomlkit.dumps(document)
        loads(after, origin=f"{path} without {key}")
        replace(path, after)


def get(path: FilePath, key: str) -> Any:
    """The value at a dotted path, the default where the file sets none; None if it is unset. Tables come as dicts."""
    config = load(path)
    where = split_path(key)
    found: Any = msgspec.to_builtins(config)
    for depth, segment in enumerate(where):
        if not _has(found, segment):
            return _default_at(where, depth, config)
        found = found[segment]
    return found


def _default_at(where: Path, depth: int, config: Config) -> Any:
    """The default of an option that the file does not set; ConfigError for what is no key at all."""
    type_at(where, config)
    assert where[depth - 1] == "options" and isinstance(where[1], int), dotted(where)
    return default(fields_of(OPTIONS[config.model[where[1]].driver.type])[str(where[depth])])


def with_value(text: str, where: Path, value: Any, *, inline: bool = False) -> str:
    """`text`, a valid TOML document, with the key at `where` set; comments and order stay.

    A table that is not there yet is made, as `[a.b]` or, if `inline`, as `{ }`.
    """
    document = _document(text)
    table = _walk(document, where[:-1], dotted(where), make=tomlkit.inline_table if inline else tomlkit.table)
    last = where[-1]
    if isinstance(last, int) and not _has(table, last):
        raise ConfigError(
            f"{dotted(where)}: the list has no element {last}; set the whole list, with commas."
        )
    item = tomlkit.item(value)
    if _has(table, last):
        old = table[last]
        if isinstance(old, Item) and isinstance(item, Item):
            item.trivia.indent, item.trivia.comment_ws = old.trivia.indent, old.trivia.comment_ws
            item.trivia.comment, item.trivia.trail = old.trivia.comment, old.trivia.trail
    table[last] = item
    return tomlkit.dumps(document)


def _document(text: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(
            f"the file cannot be changed key by key ({error}); change it with an editor."
        ) from None


def _checked(text: str, where: Path, value: Any, *, origin: str) -> str:
    """`text`, if it loads and the key holds what was asked for in it; else ConfigError."""
    found: Any = msgspec.to_builtins(loads(text, origin=origin))
    for segment in where:
        found = found[segment] if _has(found, segment) else None
    if found != value and where[-1] not in _NORMALISED:
        raise ConfigError(
            f"{dotted(where)} cannot be set in the way this file is written; change it with an editor."
        )
    return text


def _without_synonym(text: str, where: Path) -> str:
    other = {"source": "hf_repo", "hf_repo": "source"}.get(str(where[-1]))
    if where[0] != "model" or len(where) != 3 or other is None:
        return text
    document = _document(text)
    model = _walk(document, where[:-1], dotted(where))
    if model is None or other not in model:
        return text
    del model[other]
    return tomlkit.dumps(document)


def redacted(text: str) -> str:
    """`text`, a valid TOML document, without the API keys, those in comments included."""
    text = _COMMENTED_KEYS.sub(rf"\1 {REDACTED}", text)
    server = _document(text).get("server")
    keys = server.get("api_keys") if isinstance(server, dict) else None
    if not keys:
        return text
    hidden = [REDACTED] * len(keys) if isinstance(keys, list) else REDACTED
    return with_value(text, ("server", "api_keys"), hidden)


def _walk(document: Any, path: Path, key: str, *, make: Callable[[], Any] | None = None) -> Any:
    """The container at `path`; a missing table is made by `make`, and without it None is returned."""
    here: Any = document
    for segment in path:
        if not _has(here, segment):
            if make is None:
                return None
            if isinstance(segment, int):
                raise ConfigError(
                    f"{key}: the list has no element {segment}; set the whole list, with commas."
                )
            here[segment] = tomlkit.inline_table() if isinstance(here, InlineTable) else make()
        here = here[segment]
    return here


def _has(container: Any, segment: str | int) -> bool:
    if isinstance(segment, int):
        return isinstance(container, list) and segment < len(container)
    return isinstance(container, Mapping) and segment in container

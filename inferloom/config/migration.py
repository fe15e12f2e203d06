"""Rewriting a file of the older schema (see `legacy.py`) into the present one. Comments move with their keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import tomlkit
from tomlkit.items import Comment, Whitespace

from inferloom.config.legacy import DRIVER_NAMES, MOVED, is_single_table, old_keys
from inferloom.config.lines import Path, key_lines
from inferloom.config.loading import parse
from inferloom.config.problems import Problems, dotted
from inferloom.config.schema import DriverConfig
from inferloom.errors import ConfigError

_UNIVERSAL = frozenset(name for name in DriverConfig.__struct_fields__ if name not in ("type", "options"))


def migrate(text: str, *, origin: str) -> str:
    """`text` in the present schema. What it says is kept; whether it loads is for `loads` to say.

    Raises ConfigError if it is no TOML, already in the present schema, or ambiguous.
    """
    values = parse(text, origin=origin)
    if not list(old_keys(values)):
        raise ConfigError(f"{origin}: nothing to migrate; the file does not use the older schema.")
    lines = key_lines(text)
    problems = Problems(origin, lines)
    for path in _misshapen(values):
        problems.add(path, f"{dotted(path)} must be a table before the file can be migrated.")
    problems.raise_if_any()
    document = tomlkit.parse(text)
    names = _models(
        document, values, origin=origin, order=[str(path[1]) for path in lines if _is_model(path)]
    )
    _server(document, names, origin=origin)
    return tomlkit.dumps(document)


def _misshapen(values: Mapping[str, Any]) -> Iterator[Path]:
    """Places that migrating goes through and that hold something else than a table."""
    for section in ("server", "runtime"):
        if not isinstance(values.get(section, {}), Mapping):
            yield (section,)
    models = values.get("model", [])
    if isinstance(models, Mapping):
        models = {"": models} if is_single_table(models) else models
        entries = [(("model", name) if name else ("model",), entry) for name, entry in models.items()]
    elif isinstance(models, list):
        entries = [(("model", number), entry) for number, entry in enumerate(models)]
    else:
        yield ("model",)
        return
    for path, entry in entries:
        if not isinstance(entry, Mapping):
            yield path
            continue
        driver = entry.get("driver", {})
        places: dict[Path, Any] = {("scheduler",): entry.get("scheduler", {}), ("driver",): driver}
        if isinstance(driver, Mapping):
            places["driver", "options"] = driver.get("options", {})
        yield from ((*path, *place) for place, found in places.items() if not isinstance(found, Mapping))


def _is_model(path: tuple[str | int, ...]) -> bool:
    return len(path) == 2 and path[0] == "model"


def _models(document: tomlkit.TOMLDocument, values: Any, *, origin: str, order: list[str]) -> list[str]:
    """Turn the tables of models into `[[model]]`; returns their names in the order of the file."""
    old = document.get("model")
    if old is None:
        return []
    entries: list[tuple[str | None, Any]]
    if isinstance(values["model"], list):
        for entry in old:
            _model(entry, entry, origin=origin)
        return [str(entry.get("name")) for entry in values["model"]]
    if is_single_table(values["model"]):
        entries = [(None, old)]
    else:
        entries = [(name, old[name]) for name in dict.fromkeys(order)]
    array = tomlkit.aot()
    for name, entry in entries:
        table = tomlkit.table()
        if name is not None:
            table.add("name", name)
        _copy(entry, table)
        _model(table, table, origin=origin)
        array.append(table)
    del document["model"]
    document.append("model", array)
    return [str(name) for name, _ in entries if name is not None]


def _copy(source: Any, target: Any) -> None:
    """The keys of one table, with the comments among them, appended to another. Sub-tables come last."""
    body = source.value.body if hasattr(source, "value") and hasattr(source.value, "body") else None
    if body is None:  # a table written in several places
        for key in source:
            target[key] = source[key]
        return
    for key, item in body:
        if key is None:
            if isinstance(item, Comment):
                target.add(item)
        elif not isinstance(item, Whitespace):
            target[key.key] = item


def _model(entry: MutableMapping[str, Any], table: Any, *, origin: str) -> None:
    for key, (section, new) in MOVED.items():
        if key in entry:
            value = entry[key]
            del entry[key]
            _below(table, section)[new] = value
    scheduler = entry.get("scheduler")
    if scheduler is not None and "policy" in scheduler:
        value = scheduler["policy"]
        del scheduler["policy"]
        scheduler["batch_policy"] = value
    driver = entry.get("driver")
    if driver is not None:
        _driver(driver, origin=origin)


def _driver(driver: Any, *, origin: str) -> None:
    named = [name for name in list(driver) if name in DRIVER_NAMES and hasattr(driver[name], "items")]
    if not named:
        return
    chosen = str(driver["type"]) if "type" in driver else None
    if len(named) > 1 and chosen not in named:
        raise ConfigError(
            f"{origin}: [driver] has options for {' and '.join(named)} but no type that says which of them counts; "
            "add type, then migrate."
        )
    kept = chosen if chosen in named else named[0]
    options = driver[kept]
    for name in named:
        del driver[name]
    if chosen is None:
        driver["type"] = kept
    for key in list(options):
        if key in _UNIVERSAL:
            value = options[key]
            del options[key]
            driver[key] = value
    target = _below(driver, "options")
    _copy(options, target)


def _below(table: Any, section: str) -> Any:
    if section not in table:
        table[section] = tomlkit.table()
    return table[section]


def _server(document: tomlkit.TOMLDocument, names: list[str], *, origin: str) -> None:
    server: Any = document.get("server")
    if server is None:
        return
    if "primary_model" in server:
        primary = str(server["primary_model"])
        del server["primary_model"]
        # The first model is the default; another one is named, so that the order of the file can stay.
        if names and primary != names[0]:
            server["default_model"] = primary
    if "allow_filesystem" in server:
        value = server["allow_filesystem"]
        del server["allow_filesystem"]
        _runtime(document)["allow_fs"] = value


def _runtime(document: tomlkit.TOMLDocument) -> Any:
    if "runtime" not in document:
        document["runtime"] = tomlkit.table()
    return document["runtime"]

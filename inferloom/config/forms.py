"""Files of several models in whichever form: ours (TOML or JSON), or mistral.rs's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from inferloom.config.decoding import quoted
from inferloom.config.lines import Path, key_lines, line_of
from inferloom.config.loading import from_values, loads, parse, read_text
from inferloom.config.mistralrs import Refused
from inferloom.config.mistralrs_labelled import ENTRY_KEYS, VARIANTS, translate_labelled
from inferloom.config.mistralrs_tables import translate_tables
from inferloom.config.schema import Config
from inferloom.errors import ConfigError


def load_any(path: FilePath, *, default_model_id: str | None = None) -> Config:
    """The configuration in `path`, of whichever form: ours, or one of mistral.rs's (TOML or JSON).

    `default_model_id` goes before the file's own. Raises ConfigError.
    """
    origin, text = str(path), read_text(path)
    is_json = path.suffix.lower() == ".json" or (
        path.suffix.lower() != ".toml" and text.lstrip().startswith("{")
    )
    values = _parse_json(text, origin=origin) if is_json else parse(text, origin=origin)
    lines: dict[Path, int] = {} if is_json else key_lines(text)
    if not is_mistralrs(values):
        if is_json:
            return from_values(_with_default(values, default_model_id), origin=origin)
        config = loads(text, origin=origin)
        if default_model_id is None:
            return config
        return from_values(_with_default(values, default_model_id), origin=origin, lines=lines)
    try:
        translated = translate(values)
    except Refused as refused:
        line = line_of(lines, refused.path)
        raise ConfigError(f"{origin}{f':{line}' if line else ''}: {refused.sentence}") from None
    return from_values(_with_default(translated, default_model_id), origin=origin)


def is_mistralrs(values: Mapping[str, Any]) -> bool:
    """Whether this is a multi-model file of mistral.rs rather than a configuration of ours."""
    if "models" in values or "command" in values or "default_model_id" in values:
        return True
    return "model" not in values and any(
        isinstance(entry, Mapping) and any(key in VARIANTS or key in ENTRY_KEYS for key in entry)
        for entry in values.values()
    )


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """A file of mistral.rs as values of our schema."""
    newer = "models" in values or "command" in values
    translated = translate_tables(values) if newer else translate_labelled(values)
    return _with_default(translated, values.get("default_model_id"))


def _with_default(values: Mapping[str, Any], default_model_id: str | None) -> dict[str, Any]:
    if default_model_id is None:
        return dict(values)
    return {**values, "server": {**values.get("server", {}), "default_model": default_model_id}}


def _parse_json(text: str, *, origin: str) -> dict[str, Any]:
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{origin}:{error.lineno}: not valid JSON, column {error.colno}: {error.msg}."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: the file must hold an object whose keys are labels of models.")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {quoted(key)} is there twice.")
        found[key] = value
    return found

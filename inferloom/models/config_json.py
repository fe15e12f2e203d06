"""Reading a parsed config.json: numbers that must be there, and complaints that name the key."""

from __future__ import annotations

from typing import Any

from inferloom.errors import InvalidFormat


def architecture_of(config: dict[str, Any]) -> str:
    """The class that a config.json names first."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InvalidFormat("config.json names no architecture (`architectures` is missing or empty)")
    return names[0]


def size_of(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number of config.json, or `default` where the key is missing or null."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidFormat(f"config.json: {key} must be a positive whole number, not {value!r}")
    return value


def number_of(config: dict[str, Any], key: str, default: float) -> float:
    """A positive number of config.json, or `default` where the key is missing or null."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise InvalidFormat(f"config.json: {key} must be a positive number, not {value!r}")
    return float(value)


def cap_of(config: dict[str, Any], key: str, default: float | None) -> float | None:
    """A positive number; None where the key is null; `default` where it is missing."""
    if key not in config:
        return default
    return None if config[key] is None else number_of(config, key, 0.0)

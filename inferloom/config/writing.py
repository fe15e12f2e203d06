"""A configuration as TOML text, and files that are replaced whole or not at all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import tomlkit

from inferloom.config.disk import sync
from inferloom.config.schema import Config
from inferloom.errors import ConfigError


def dumps(config: Config) -> str:
    """`config` as TOML with every key that has a value; `loads` gives an equal Config back."""
    values = msgspec.to_builtins(config)
    sections: list[str] = []
    for name, table in values.items():
        for entry in table if isinstance(table, list) else [table]:
            sections += _tables(name, entry, f"[[{name}]]" if isinstance(table, list) else f"[{name}]")
    return "\n".join(sections)


def _tables(name: str, table: Mapping[str, Any], header: str) -> list[str]:
    lines = [f"{toml_key(key)} = {toml_value(value)}\n" for key, value in table.items() if _is_value(value)]
    below = [(f"{name}.{toml_key(key)}", value) for key, value in table.items() if isinstance(value, Mapping)]
    nested = [text for path, value in below for text in _tables(path, value, f"[{path}]")]
    return [f"{header}\n{''.join(lines)}", *nested]


def _is_value(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping)


def toml_value(value: Any) -> str:
    """A plain value as TOML."""
    return str(tomlkit.item(value).as_string())


def toml_key(key: str) -> str:
    """A key as TOML, quoted where it must be."""
    return tomlkit.key(key).as_string()


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Hold the configuration at `path` against other writers: a lock beside it, released however the holder ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(path: Path, text: str) -> None:
    """Put `text` into the file at `path` at once: readers see the old file or the new one, whole.

    The file is the owner's alone, because it may hold API keys. A symbolic link is followed, not replaced.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(target.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}.") from None

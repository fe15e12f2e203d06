"""The file that a server was started with, to be read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from inferloom.config.schema import Config


class ConfigFile(msgspec.Struct, frozen=True):
    """`read` gives what the server would be started with now: the file, and over it the flags that it was started with.
    Raises `ConfigError` with the line of whatever is wrong."""

    path: Path
    read: Callable[[], Config]

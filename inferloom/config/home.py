"""Where Inferloom keeps its files: the configuration, the cache, the registry of programs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from inferloom.errors import ConfigError

_UNITS = {
    "": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_CACHE_LIMIT = 50 * 2**30


def home() -> Path:
    """The folder of the configuration: `INFERLOOM_HOME`, then `PIE_HOME`, then `~/.inferloom`. It need not exist."""
    for variable in ("INFERLOOM_HOME", "PIE_HOME"):
        value = os.environ.get(variable)
        if value:
            return Path(value).expanduser().absolute()
    return Path.home() / ".inferloom"


def cache_dir() -> Path:
    """The folder of downloaded and converted weights: `INFERLOOM_CACHE`, else `cache` in the home folder."""
    value = os.environ.get("INFERLOOM_CACHE")
    return Path(value).expanduser().absolute() if value else home() / "cache"


def cache_limit() -> int:
    """Bytes that converted and packed weights may take in the cache: `INFERLOOM_CACHE_LIMIT`, such as `20GB` or `50GiB`,
    which is the default. Raises `ConfigError` for anything else."""
    value = os.environ.get("INFERLOOM_CACHE_LIMIT")
    if not value:
        return _CACHE_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", value.strip())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(
            f"INFERLOOM_CACHE_LIMIT is {value!r}: write bytes, or a number with {', '.join(unit for unit in _UNITS if unit)}."
        )
    return int(float(match[1]) * _UNITS[match[2]])


def config_path() -> Path:
    """The configuration that is read where no `--config` is given. It need not exist."""
    return home() / "config.toml"

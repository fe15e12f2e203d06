"""Where Inferloom keeps its files: the configuration, the cache, the registry of programs."""

from __future__ import annotations

import os
from pathlib import Path

from inferloom.config.quantities import bytes_of
from inferloom.errors import ConfigError

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
    found = bytes_of(value)
    if found is None:
        raise ConfigError(f'INFERLOOM_CACHE_LIMIT is {value!r}: write "20GB", "50GiB", or a number of bytes.')
    return found


def config_path() -> Path:
    """The configuration that is read where no `--config` is given. It need not exist."""
    return home() / "config.toml"

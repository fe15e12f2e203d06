"""Where Inferloom keeps its files: the configuration, the cache, the registry of programs."""

from __future__ import annotations

import os
from pathlib import Path


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


def config_path() -> Path:
    """The configuration that is read where no `--config` is given. It need not exist."""
    return home() / "config.toml"

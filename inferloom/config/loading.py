"""Reading a configuration: text or plain values in, a checked `Config` out."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any

from inferloom.config.checking import DTYPE_ALIASES, check
from inferloom.config.decoding import decode
from inferloom.config.drivers import canonical
from inferloom.config.legacy import refuse_older_schema
from inferloom.config.lines import Path, key_lines
from inferloom.config.problems import Problems
from inferloom.config.quantization import scheme
from inferloom.config.schema import Config
from inferloom.errors import ConfigError


def load(path: FilePath) -> Config:
    """The configuration in the file at `path`. Raises ConfigError with file, line and what to do."""
    return loads(read_text(path), origin=str(path))


def read_text(path: FilePath) -> str:
    """The text of a configuration file; ConfigError where it is missing or no text."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file; `inferloom config init` writes one, or name another with --config."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); a configuration is TOML.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None


def loads(text: str, *, origin: str) -> Config:
    """The configuration in `text`; `origin` names it in errors, with the line."""
    values = parse(text, origin=origin)
    lines = key_lines(text)
    refuse_older_schema(values, lines, origin=origin)
    return from_values(values, origin=origin, lines=lines)


def parse(text: str, *, origin: str) -> dict[str, Any]:
    """TOML as plain values; ConfigError with line and column."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", str(error), re.DOTALL)
        if found:
            raise ConfigError(
                f"{origin}:{found[2]}: not valid TOML, column {found[3]}: {found[1]}."
            ) from None
        last = text.count("\n") + 1
        what = str(error).removesuffix(" (at end of document)")
        raise ConfigError(f"{origin}:{last}: not valid TOML, at the end of the file: {what}.") from None


def from_values(values: Mapping[str, Any], *, origin: str, lines: dict[Path, int] | None = None) -> Config:
    """The configuration in plain values (of TOML, JSON, flags), checked; raises ConfigError with every problem."""
    problems = Problems(origin, lines)
    config = decode(normalised(values), Config, problems=problems)
    if config is not None:
        check(config, problems)
    problems.raise_if_any()
    assert config is not None
    return config


def normalised(values: Mapping[str, Any]) -> dict[str, Any]:
    """One spelling for what may be spelled in several ways: a single device, driver, dtype and quantization names."""
    models = values.get("model")
    if not isinstance(models, list):
        return dict(values)
    return {**values, "model": [_model(model) if isinstance(model, Mapping) else model for model in models]}


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(model)
    if isinstance(changed.get("quantization"), str):
        with suppress(ConfigError):  # what it does not know is complained about with its place, by `check`
            changed["quantization"] = scheme(changed["quantization"], where="")
    if isinstance(changed.get("dtype"), str):
        changed["dtype"] = DTYPE_ALIASES.get(changed["dtype"], changed["dtype"])
    if isinstance(changed.get("driver"), Mapping):
        driver = dict(changed["driver"])
        if isinstance(driver.get("device"), str):
            driver["device"] = [driver["device"]]
        if isinstance(driver.get("type"), str):
            driver["type"] = canonical(driver["type"])
        if isinstance(driver.get("activation_dtype"), str):
            dtype = driver["activation_dtype"]
            driver["activation_dtype"] = DTYPE_ALIASES.get(dtype, dtype)
        changed["driver"] = driver
    return changed

"""Times and sizes as people write them: "5m", "1h30m", "80%", "12GiB"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache

from inferloom.errors import ConfigError

FOREVER = math.inf

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1,
    "B": 1,
    **{f"{letter}iB": 1 << (10 * power) for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{letter: 1 << (10 * power) for power, letter in enumerate("KMGT", start=1)},
}
_BYTES_FOLDED = {unit.upper(): size for unit, size in _BYTES.items()}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def keep_alive_secs(value: float | str) -> float:
    """Seconds that an idle model stays: a number, or "90s", "5m", "1h30m"; 0 goes when idle, anything below 0 means for
    ever (`FOREVER`). Raises `ConfigError`."""
    if isinstance(value, str):
        value = _seconds(value)
    if isinstance(value, bool) or math.isnan(value):
        raise _no_time(value)
    return FOREVER if value < 0 else float(value)


@lru_cache(maxsize=64)  # every request asks
def _seconds(text: str) -> float:
    written = text.strip()
    try:
        return float(written)
    except ValueError:
        pass
    sign, rest = (-1.0, written[1:]) if written.startswith("-") else (1.0, written)
    parts = _PART.findall(rest)
    if not parts or "".join(_PART.sub("", rest).split()):
        raise _no_time(text)
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _no_time(value: object) -> ConfigError:
    return ConfigError(
        f'{value!r} is not a time: write seconds, "90s", "5m" or "1h30m", 0 to unload a model when it is '
        "idle, -1 to keep it"
    )


def size_bytes(text: str, *, whole: int | None) -> int:
    """ "12GiB", "500 MB" or a number of bytes; "80%" of `whole`. Raises `ConfigError`; also for a share where the whole is
    not known (None)."""
    written = text.strip()
    if written.endswith("%"):
        try:
            share = float(written[:-1])
        except ValueError:
            share = math.nan
        if not 0 < share <= 100:
            raise ConfigError(f'"{text}" is not a share of memory: write "1%" to "100%"')
        if whole is None:
            raise ConfigError(
                f'"{text}": a share of this device is not known here; write bytes such as "12GiB"'
            )
        return int(share / 100 * whole)
    found = bytes_of(written)
    if found is None:
        raise ConfigError(
            f'"{text}" is not a size of memory: write "12GiB", "500MB", or "80%" of what there is'
        )
    return found


def bytes_of(text: str) -> int | None:
    """ "12GiB", "500 MB" or a number of bytes; None for anything else."""
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _BYTES_FOLDED.get(match[2].upper())
    return None if match is None or unit is None else int(float(match[1]) * unit)


def budgets(written: str | Mapping[str, str], *, ram: int) -> dict[str, int]:
    """Bytes by device. One value is the CPU's; a table names devices, and the CPU has 80 % where it names none.

    Raises `ConfigError`.
    """
    if isinstance(written, str):
        written = {"cpu": written}
    found = {"cpu": size_bytes("80%", whole=ram)}
    for device, text in written.items():
        found[device] = size_bytes(text, whole=ram if device == "cpu" else None)
    return found

"""The JSON files of a checkpoint, read with errors that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inferloom.errors import InvalidFormat


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `InvalidFormat` where the file is missing, unreadable or holds something else."""
    value = _read(path)
    if not isinstance(value, dict):
        raise InvalidFormat(f"{path} holds no JSON object")
    return value


def read_json_list(path: Path) -> list[Any]:
    """A JSON array; raises `InvalidFormat` likewise."""
    value = _read(path)
    if not isinstance(value, list):
        raise InvalidFormat(f"{path} holds no JSON array")
    return value


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidFormat(f"{path.name} is missing from {path.parent}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidFormat(f"{path} cannot be read: {error}") from None

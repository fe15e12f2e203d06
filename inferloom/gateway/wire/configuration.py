"""What a change of the configuration's file would do and did, as it travels."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class NoFields(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request that takes nothing: no configuration comes from a request."""


class ConfigRow(msgspec.Struct, kw_only=True):
    """One key. `effect`: it holds at once (now), its model is replaced while it serves (reload), the server must be started
    again (restart), or a model is added or removed."""

    key: str
    model: str | None
    before: Any
    after: Any
    effect: Literal["now", "reload", "restart", "added", "removed"]
    applied: bool | UnsetType = UNSET
    error: str | UnsetType | None = UNSET


class ConfigPlan(msgspec.Struct, kw_only=True):
    file: str
    changes: list[ConfigRow]


class ConfigApplied(msgspec.Struct, kw_only=True):
    """`failed`: models that are what they were, each with its `error`; `restart`: keys that a restart is needed for."""

    file: str
    changes: list[ConfigRow]
    failed: list[str]
    restart: list[str]

"""Repositories on the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inferloom.sources.reference import HubRef
from inferloom.types import LoadProgress


def present(ref: HubRef, *, weights: bool) -> Path | None:
    return None


def fetch(ref: HubRef, progress: Callable[[LoadProgress], None], *, weights: bool) -> Path:
    from inferloom.errors import SourceError

    raise SourceError("hub repositories follow")


def trusted_links(ref: HubRef) -> Path:
    return Path("/nonexistent")

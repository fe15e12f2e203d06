"""What `GET /v1/events` streams, as it travels."""

from __future__ import annotations

import msgspec


class ModelNow(msgspec.Struct, kw_only=True):
    """A model as it is when the stream begins. `since` is Unix time."""

    id: str
    status: str
    state: str
    since: float
    stage: str | None = None
    fraction: float | None = None
    detail: str = ""
    reason: str | None = None


class Snapshot(msgspec.Struct, kw_only=True):
    """The first event: every model that is watched, in the order of the listing."""

    time: float
    models: list[ModelNow]


class StreamEnd(msgspec.Struct, kw_only=True):
    """The last event, `overflow` or `shutdown`: why nothing follows."""

    time: float
    message: str

"""What `GET /v1/events` streams, as it travels."""

from __future__ import annotations

import msgspec

from inferloom.gateway.wire.models import ModelNow


class Snapshot(msgspec.Struct, kw_only=True):
    """The first event: every model that is watched, in the order of the listing."""

    time: float
    models: list[ModelNow]


class StreamEnd(msgspec.Struct, kw_only=True):
    """The last event, `overflow` or `shutdown`: why nothing follows."""

    time: float
    message: str

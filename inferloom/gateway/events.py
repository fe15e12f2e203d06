"""`GET /v1/events`: how every model is, then every change as it happens, as server-sent events."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec

from inferloom.errors import InferloomError, InvalidRequest
from inferloom.gateway.call import CLIENT_LEFT, Call, encode
from inferloom.gateway.exchange import ClientLeft, Exchange
from inferloom.gateway.generation import STREAM_HEADERS
from inferloom.gateway.models import model_now
from inferloom.gateway.service import Service
from inferloom.gateway.wire.events import Snapshot, StreamEnd

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Entry
    from inferloom.catalog.events import Event, Subscription

OVERFLOW = "This client reads more slowly than things happen, and events were lost: connect again."
SHUTDOWN = "The server is shutting down."
MOST_NAMES = 256


async def watch(service: Service, call: Call) -> None:
    """Stream until the client leaves, falls behind, or the server ends."""
    models = _wanted(service, call)
    exchange = Exchange(call, streaming=True, headers=list(STREAM_HEADERS))
    service.watchers.add(exchange)
    subscription = service.events.subscribe(None if models is None else {entry.id for entry in models})
    try:
        await exchange.start_stream()
        if call.scope["method"] == "HEAD":
            await exchange.finish(b"")
            return
        snapshot = _snapshot(service, service.catalog.entries() if models is None else models)
        await exchange.write(frame("snapshot", snapshot))
        await _follow(exchange, subscription)
    except (InferloomError, asyncio.CancelledError) as caught:
        if not isinstance(exchange.reason(caught), ClientLeft):
            raise
        call.status = CLIENT_LEFT
        await exchange.drop()
    finally:
        subscription.close()
        exchange.settle()
        service.watchers.discard(exchange)


async def _follow(exchange: Exchange, subscription: Subscription) -> None:
    while events := await subscription.take():
        await exchange.write(b"".join([_event_frame(event) for event in events]))
    if subscription.overflowed:
        last = frame("overflow", StreamEnd(time=time.time(), message=OVERFLOW))
    else:
        last = frame("shutdown", StreamEnd(time=time.time(), message=SHUTDOWN))
    await exchange.finish(last)


def _wanted(service: Service, call: Call) -> list[Entry] | None:
    """The models of `?model=`, which may be repeated; None: all. Raises for unknown names and parameters."""
    query: bytes = call.scope.get("query_string", b"")
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="replace")
    if len(pairs) > MOST_NAMES:
        raise InvalidRequest(f"Name at most {MOST_NAMES} models, or none to watch all.", param="model")
    for key, _ in pairs:
        if key != "model":
            raise InvalidRequest(
                f"There is no parameter {key[:64]!r}: ?model=NAME, which may be repeated, is the only one.",
                param=key[:64],
            )
    if not pairs:
        return None
    found = {entry.id: entry for entry, _ in (service.resolve(call, name) for _, name in pairs)}
    if len(found) > 1:
        call.model = ""
    return list(found.values())


def _snapshot(service: Service, entries: list[Entry]) -> Snapshot:
    models = [model_now(service.catalog.status(entry.id), entry.id) for entry in entries]
    return Snapshot(time=time.time(), models=models)


def _event_frame(event: Event) -> bytes:
    return frame(event.name, event)


def frame(name: str, data: msgspec.Struct) -> bytes:
    """One server-sent event; JSON never holds a line break."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), encode(data))

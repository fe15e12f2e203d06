"""`GET /health`, `/ready`, `/metrics`: the process, whether it takes requests, and what it counted."""

from __future__ import annotations

from inferloom import __version__
from inferloom.gateway.call import Call
from inferloom.gateway.service import Service
from inferloom.gateway.wire.models import Health, Readiness, ReadyWord

_PROMETHEUS = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


async def health(service: Service, call: Call) -> None:
    """The process answers."""
    await call.json(Health(version=__version__))


async def ready(service: Service, call: Call) -> None:
    """Requests are taken and what is loaded at the start was. A model unloaded later changes nothing: a request
    loads it."""
    models = {entry.id: service.catalog.status(entry.id).word for entry in service.catalog.entries()}
    status: ReadyWord = "draining" if service.draining else "starting" if service.starting else "ready"
    await call.json(Readiness(status=status, models=models), status=200 if status == "ready" else 503)


async def metrics(service: Service, call: Call) -> None:
    service.metrics.waiting = service.admission.waiting
    await call.reply(service.metrics.text(), content_type=_PROMETHEUS)

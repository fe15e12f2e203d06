"""What every endpoint works with: the catalog, the limits, and the requests in progress."""

from __future__ import annotations

import math
import time
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import msgspec

from inferloom.catalog.events import Events
from inferloom.config.schema import Config
from inferloom.errors import InvalidRequest, ModelNotFound
from inferloom.gateway.access import Access
from inferloom.gateway.admission import DEFAULT_LIMIT, Admission
from inferloom.gateway.call import Call
from inferloom.gateway.exchange import Exchanges, Limits
from inferloom.gateway.metrics import Metrics, ModelRow
from inferloom.gateway.telemetry import Telemetry
from inferloom.runners.base import ModelRunner
from inferloom.types import ModelKind
from inferloom.worker.messages.replies import Stats

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Catalog, Entry
    from inferloom.catalog.lifecycle import ModelBytes
    from inferloom.gateway.configuration import Configuration

_VERBS: dict[ModelKind, str] = {"generate": "generates text", "embed": "makes embeddings"}


_UNBORN = ("declared", "loading", "warming")


class Service:
    """One serving gateway."""

    def __init__(
        self,
        catalog: Catalog,
        config: Config,
        *,
        limits: Limits,
        access: Access,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.catalog = catalog
        self.config = config
        self.access = access
        self.configuration: Configuration | None = None  # its file, where there is one
        self.exchanges = Exchanges(limits)
        self.watchers = Exchanges(limits)  # streams of events, which no shutdown waits for
        self.admission = Admission(
            config.server.max_concurrent_requests, patience=config.server.queue_timeout_secs
        )
        self.metrics = Metrics(self._model_rows)
        self.events = Events(lambda id: catalog.status(id).word)
        catalog.observe(self.events.changed)
        catalog.observe(self.metrics.residency.changed)
        catalog.observe_progress(self.events.progressed)
        self.telemetry = telemetry
        if telemetry is not None:
            catalog.observe(telemetry.changed)
        self.draining = False
        self._starting = {entry.id for entry in catalog.entries() if not entry.config.lazy}

    def take_server(self) -> None:
        """`[server]` has changed: hand on what others keep of it."""
        server = self.config.server
        self.access.take(server)
        self.admission.limit = server.max_concurrent_requests or DEFAULT_LIMIT
        self.admission.patience = server.queue_timeout_secs
        self.catalog.set_server(server)

    def resolve(self, call: Call, name: str | None) -> tuple[Entry, str]:
        """The model of a request, and the name its answer carries: as it was given, else the model's id."""
        call.model = "unknown"  # unknown names share a label: clients don't make series
        entry = self.catalog.resolve(name)
        call.model = entry.id
        return entry, entry.id if name is None or name.strip() in ("", "default") else name

    async def admit(self, call: Call, entry: Entry, *, deadline: float | None = None) -> None:
        """Wait for a place until `deadline` (time.monotonic()). `admission.leave` gives it back."""
        call.queued = time.perf_counter()
        await self.admission.enter(deadline=deadline)
        call.admitted = time.perf_counter()
        if self.telemetry is not None:
            call.loading = self._is_loading(entry)

    def _is_loading(self, entry: Entry) -> bool:
        try:
            return self.catalog.status(entry.id).state != "ready"
        except ModelNotFound:  # removed while the request was in line
            return False

    def leased(self, call: Call) -> None:
        """The request has its model."""
        call.leased = time.perf_counter()
        self.metrics.waited(call.model, call.leased - call.queued)

    def lease(
        self, entry: Entry, *, keep_alive: float | None = None, deadline: float | None = None
    ) -> AbstractAsyncContextManager[ModelRunner]:
        """A lease that waits for the model as long as loading may take, until `deadline` (time.monotonic()) at most.
        `keep_alive`: seconds that the request lets the model stay idle after it."""
        patience = self.config.server.load_timeout_secs
        if patience > 0:
            deadline = min(time.monotonic() + patience, deadline or math.inf)
        return self.catalog.lease(entry.id, deadline=deadline, keep_alive=keep_alive)

    def answer_limit(self, entry: Entry, deadline: float | None) -> tuple[float | None, str]:
        """When an answer that begins now must be complete (time.monotonic()), and what says so: the model's limit, or the
        request's own `deadline`."""
        seconds = entry.config.scheduler.request_timeout_secs
        end = time.monotonic() + seconds if seconds > 0 else math.inf
        if deadline is not None and deadline < end:
            return deadline, "timeout_secs"
        return (end, "request_timeout_secs") if seconds > 0 else (None, "")

    def load_progress(self, entry: Entry) -> str:
        """How far the load is that a request waits for, in a few words."""
        try:
            status = self.catalog.status(entry.id)
        except ModelNotFound:
            return f"{entry.id} was removed"
        about = "" if status.expected_secs is None else f", about {max(1, math.ceil(status.expected_secs))} s"
        if status.yielding:
            return f"waiting for the turn of {entry.id}{about}"
        if status.stage is None:
            return f"waiting for {entry.id}: {status.state}"
        stage = status.stage
        if stage == "room":
            if status.bytes is None:
                return f"waiting for room in memory for {entry.id}{about}"
            stage = "start"  # it has its room, and its worker has not reported yet
        share = "" if status.fraction is None else f" {status.fraction:.0%}".replace("%", " %")
        return f"loading {entry.id}: {stage}{share}"

    def refuse_other_kind(
        self, entry: Entry, wanted: ModelKind, *, runner: ModelRunner | None = None
    ) -> None:
        """Raise where the model is known to do something else, naming the served models that can do it.

        Without its `runner`, an unloaded model is judged by the card of its last load, so as not to load it for that.
        """
        if runner is None and entry.runner is not None:
            return  # it is loaded: the lease will tell
        card = runner.card() if runner is not None else self.catalog.status(entry.id).card
        if card is None or card.kind == wanted:
            return
        able = [other.id for other in self.catalog.entries() if self.kind(other) == wanted]
        advice = (
            f"of the served models, {', '.join(able)} can" if able else "no model that is served is known to"
        )
        raise InvalidRequest(
            f"The model {entry.id} {_VERBS[card.kind]} and cannot do this; {advice}.",
            param="model",
            code="wrong_model_kind",
        )

    def kind(self, entry: Entry) -> ModelKind | None:
        """What a model does, where that is known: from its card."""
        card = self.catalog.status(entry.id).card
        return card.kind if card is not None else None

    @property
    def starting(self) -> bool:
        """Whether a model that is loaded at the start has neither been loaded nor failed yet."""
        if self._starting:
            entries = {entry.id: entry for entry in self.catalog.entries()}  # some may have been removed
            self._starting = {
                id for id in self._starting if id in entries and self.catalog.status(id).state in _UNBORN
            }
        return bool(self._starting)

    def _model_rows(self) -> list[ModelRow]:
        return [self._model_row(entry) for entry in self.catalog.entries()]

    def _model_row(self, entry: Entry) -> ModelRow:
        status = self.catalog.status(entry.id)
        row = ModelRow(model=entry.id, state=str(status.state), loaded=status.word == "loaded")
        if status.bytes is not None:
            row = _with_memory(row, status.bytes)
        if not row.loaded or status.card is None:
            return row
        stats = getattr(entry.runner, "stats", None) or Stats(0)  # runners without an engine have none
        return msgspec.structs.replace(
            row,
            weight_bytes=status.card.weight_bytes,
            kv_bytes=status.card.kv_bytes,
            running=stats.running,
            waiting=stats.waiting,
            drafted_tokens=stats.drafted_tokens,
            accepted_tokens=stats.accepted_tokens,
            pages_total=stats.pages_total,
            pages_free=stats.pages_free,
            pages_cached=stats.pages_cached,
        )


def _with_memory(row: ModelRow, held: ModelBytes) -> ModelRow:
    return msgspec.structs.replace(
        row,
        held_bytes={"weights": held.weights, "kv": held.kv, "workspace": held.workspace},
        estimated_bytes=held.expected,
        measured_bytes=held.measured,
        estimate_error=held.error,
    )

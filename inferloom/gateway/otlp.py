"""Traces and metrics over OTLP gRPC.

A request's spans are made when it is over, from the times it noted on its way: while it runs it pays for nothing. They
wait in a bounded queue for a thread that sends them; a collector that does not answer costs spans and one log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from inferloom import __version__
from inferloom.catalog.lifecycle import State, Transition
from inferloom.config.schema import TelemetryConfig
from inferloom.gateway.call import Call
from inferloom.gateway.metrics import Metrics
from inferloom.gateway.otlp_metrics import export_interval, metrics_data

QUEUE = 2048  # spans that wait to be sent; more are dropped
EXPORT_SECS = 5.0  # for one export, its retries included
SPANS_EVERY = 1.0  # seconds
FLUSH_SECS = 2.0  # at the end
LAST_TRY_SECS = 0.2  # … where the collector was away
POINTS = 5000  # of metrics in one message, which gRPC limits to 4 MiB

# Asked by probes and scrapers many times a minute, or for hours: traces of them say nothing.
UNTRACED = frozenset({"/health", "/ready", "/metrics", "/v1/events"})
# How OpenTelemetry's conventions call what an endpoint does.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
NO_MODEL = ("", "unknown")

Attributes = dict[str, AttributeValue]
log = logging.getLogger("inferloom.telemetry")


class Otlp:
    """The `Telemetry` that is exported. What it sends are names, numbers and times: never prompts, answers or keys."""

    def __init__(self, config: TelemetryConfig) -> None:
        """Raises `ConfigError` for what cannot be of OpenTelemetry's own variables."""
        self._metrics_every = export_interval()
        # one line of ours for each outage instead of theirs for each export
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        insecure = not config.endpoint.startswith("https://")
        self._outage = Outage(config.endpoint)
        self._resource = Resource.create(
            {
                "service.name": config.service_name,
                "service.version": __version__,
                "service.instance.id": str(uuid.uuid4()),
            }
        )
        self._spans = OTLPSpanExporter(endpoint=config.endpoint, insecure=insecure, timeout=EXPORT_SECS)
        self._metrics = OTLPMetricExporter(
            endpoint=config.endpoint, insecure=insecure, timeout=EXPORT_SECS, max_export_batch_size=POINTS
        )
        self._processor = BatchSpanProcessor(
            Watched(self._spans, self._outage),
            max_queue_size=QUEUE,
            schedule_delay_millis=SPANS_EVERY * 1000,
        )
        self._provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("inferloom", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._began = time.time_ns()
        self._counted: Metrics | None = None
        self._exporting: asyncio.Task[None] | None = None
        self._loading: dict[str, int] = {}  # since when, ns
        self._loads: dict[str, SpanContext] = {}  # the last load of each model that is in memory

    # --- traces -----------------------------------------------------------------------------------------------------

    def answered(self, call: Call) -> None:
        if call.endpoint in UNTRACED:
            return
        now, now_ns = time.perf_counter(), time.time_ns()

        def at(moment: float) -> int:
            """Of time.perf_counter(), in Unix nanoseconds."""
            return now_ns - int((now - moment) * 1e9)

        request = self._tracer.start_span(
            "request",
            context=self._caller(call),
            kind=SpanKind.SERVER,
            start_time=at(call.begun),
            attributes=_request_attributes(call),
        )
        if request.is_recording():
            if call.error_code is not None and not 400 <= call.status < 500:
                request.set_status(Status(StatusCode.ERROR, call.error_code))
            self._phases(call, request, at=at, end=now)
        request.end(now_ns)

    def _caller(self, call: Call) -> Context:
        """The span of whoever asked, where W3C's headers name it."""
        carrier = {
            key.decode("ascii"): value.decode("latin-1")
            for key, value in call.scope["headers"]
            if key in (b"traceparent", b"tracestate")
        }
        return self._propagator.extract(carrier, Context())

    def _phases(self, call: Call, request: Span, *, at: Callable[[float], int], end: float) -> None:
        """A child for each phase that was reached; a phase ends where the next begins."""
        parent = set_span_in_context(request)
        model: Attributes = {"gen_ai.request.model": call.model}

        def phase(
            name: str, begun: float, ended: float, links: Sequence[Link] = (), **attributes: int | None
        ) -> None:
            if not begun:
                return
            given = {f"gen_ai.usage.{key}": value for key, value in attributes.items() if value is not None}
            span = self._tracer.start_span(
                name, parent, start_time=at(begun), attributes={**model, **given}, links=links
            )
            span.end(at(ended or end))

        usage = call.usage
        phase("queue", call.queued, call.admitted)
        if call.loading:
            load = self._loads.get(call.model)
            phase(
                "load",
                call.admitted,
                call.leased,
                links=[Link(load)] if load is not None and call.leased else (),
            )
        if call.endpoint == "/v1/embeddings":
            phase("embed", call.leased, end, input_tokens=usage.prompt_tokens if usage else None)
            return
        prompt = usage.prompt_tokens if usage else None
        phase("prefill", call.leased, call.first_token, input_tokens=prompt)
        phase("decode", call.first_token, end, output_tokens=usage.completion_tokens if usage else None)

    def changed(self, change: Transition) -> None:
        """A load is a trace of its own: many requests may wait for it, or none. Theirs link to it."""
        now = time.time_ns()
        if change.new is State.LOADING:
            self._loading[change.id] = now
        elif change.new in (State.READY, State.FAILED, State.UNLOADED) and change.id in self._loading:
            self._loaded(change, begun=self._loading.pop(change.id), ended=now)
        elif change.cause == "replaced" and change.load_seconds is not None:  # loaded beside what it replaces
            self._loaded(change, begun=now - int(change.load_seconds * 1e9), ended=now)
        elif change.new is State.UNLOADED:
            self._loads.pop(change.id, None)

    def _loaded(self, change: Transition, *, begun: int, ended: int) -> None:
        span = self._tracer.start_span(
            "model.load",
            context=Context(),
            start_time=begun,
            attributes={
                "gen_ai.request.model": change.id,
                "inferloom.model.state": str(change.new),
                **{f"inferloom.load.{stage}_seconds": secs for stage, secs in change.stages.items()},
            },
        )
        if change.new is State.FAILED:
            span.set_status(Status(StatusCode.ERROR, "load failed"))
        self._loads[change.id] = span.get_span_context()
        span.end(ended)

    # --- metrics ----------------------------------------------------------------------------------------------------

    def start(self, metrics: Metrics) -> None:
        self._counted = metrics
        self._exporting = asyncio.create_task(self._export_metrics(), name="export metrics")

    async def _export_metrics(self) -> None:
        while True:
            await asyncio.sleep(self._metrics_every)
            await in_thread(self._metrics_export())

    def _metrics_export(self) -> Callable[[], None]:
        """An export of what is counted now, which is read in the event loop and sent from a thread."""
        assert self._counted is not None
        families = list(self._counted.registry.collect())

        def export() -> None:
            data = metrics_data(families, resource=self._resource, began=self._began)
            self._outage.note(self._metrics.export(data) is MetricExportResult.SUCCESS)

        return export

    # --- the end ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if self._exporting is not None:
            self._exporting.cancel()
        flushes = [in_thread(self._processor.force_flush)]
        if self._counted is not None:
            flushes.append(in_thread(self._metrics_export()))
        patience = LAST_TRY_SECS if self._outage.down else FLUSH_SECS
        await asyncio.wait([asyncio.ensure_future(flush) for flush in flushes], timeout=patience)
        # closing the channels ends what still waits for a collector
        self._spans.shutdown()
        self._metrics.shutdown()
        await asyncio.wait([asyncio.ensure_future(in_thread(self._provider.shutdown))], timeout=FLUSH_SECS)


class Outage:
    """Says once that the collector cannot be reached, and once that it can again."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self.down = False

    def note(self, sent: bool) -> None:
        """Called from the exporting threads."""
        with self._lock:
            changed, self.down = self.down is sent, not sent
        if not changed:
            return
        if sent:
            log.info("telemetry reaches %s again", self._endpoint)
        else:
            log.warning(
                "telemetry cannot be sent to %s: is a collector there that speaks OTLP over gRPC? "
                "Requests go on; at most %d spans wait, further ones are dropped",
                self._endpoint,
                QUEUE,
            )


class Watched(SpanExporter):
    """An exporter whose results are noted."""

    def __init__(self, exporter: SpanExporter, outage: Outage) -> None:
        self._exporter = exporter
        self._outage = outage

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        self._outage.note(result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """`Otlp.close` has done it."""


def _request_attributes(call: Call) -> Attributes:
    found: Attributes = {
        "http.request.method": call.scope["method"],
        "http.route": call.endpoint,
        "http.response.status_code": call.status,
        "inferloom.request_id": call.request_id.decode("ascii"),
    }
    if call.endpoint in OPERATIONS:
        found["gen_ai.operation.name"] = OPERATIONS[call.endpoint]
    if call.model not in NO_MODEL:
        found["gen_ai.request.model"] = call.model
    if call.error_code is not None:
        found["error.type"] = call.error_code
    if call.first_token:
        found["inferloom.time_to_first_token_seconds"] = call.first_token - call.begun
    if call.usage is not None:
        found["gen_ai.usage.input_tokens"] = call.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = call.usage.completion_tokens
        found["inferloom.cached_tokens"] = call.usage.cached_tokens
    return found


async def in_thread(work: Callable[[], object]) -> None:
    """Run `work` in a thread of its own, which the end of the process does not wait for, as it would for a pool's."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def run() -> None:
        try:
            work()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(finish)

    threading.Thread(target=run, name="telemetry", daemon=True).start()
    await done

"""An OpenTelemetry collector: a gRPC server that keeps what it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Span:
    """A span as it came; ids are hexadecimal, times seconds."""

    name: str
    id: str
    parent: str
    trace: str
    begun: float
    ended: float
    attributes: dict[str, Any]
    kind: int
    failed: bool
    links: tuple[str, ...]
    service: str


class Collector:
    def __init__(self, port: int) -> None:
        self.port = port
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._metrics: list[tuple[str, Any]] = []  # of what service, and the metric as it came

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    @property
    def metrics(self) -> list[tuple[str, Any]]:
        with self._lock:
            return list(self._metrics)

    def wait(self, condition: Callable[[], Any], seconds: float = 15.0) -> Any:
        """What `condition` gives, once that is true."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.02)
        return found

    def trace(self, *, with_id: str) -> dict[str, Span]:
        """The spans of one trace by their names, once its request has come."""
        self.wait(lambda: any(one.trace == with_id and one.name == "request" for one in self.spans))
        return {one.name: one for one in self.spans if one.trace == with_id}

    def request(self, request_id: str) -> Span:
        """The span of one request."""

        def find() -> Span | None:
            wanted = (s for s in self.spans if s.attributes.get("inferloom.request_id") == request_id)
            return next(wanted, None)

        return self.wait(find)

    def take_spans(self, request: Any) -> None:
        found = [
            Span(
                name=span.name,
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                trace=span.trace_id.hex(),
                begun=span.start_time_unix_nano / 1e9,
                ended=span.end_time_unix_nano / 1e9,
                attributes=_plain(span.attributes),
                kind=span.kind,
                failed=span.status.code == 2,
                links=tuple(link.span_id.hex() for link in span.links),
                service=_plain(resource.resource.attributes)["service.name"],
            )
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self._spans += found

    def take_metrics(self, request: Any) -> None:
        found = [
            (_plain(resource.resource.attributes)["service.name"], metric)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        with self._lock:
            self._metrics += found


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector on 127.0.0.1, on a free port where none is named."""
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector(server.add_insecure_port(f"127.0.0.1:{port}"))

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            collector.take_spans(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            collector.take_metrics(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    server.start()
    try:
        yield collector
    finally:
        server.stop(grace=0).wait(5)

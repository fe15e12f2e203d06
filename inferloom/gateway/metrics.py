"""Counters of the gateway, in a registry of their own, labelled by model where that means something.

Children are kept in dictionaries: looking a label up in prometheus-client costs more than counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inferloom.gateway.residency import Residency
from inferloom.types import Usage

MOST_MODELS = 1000  # names of models that are labels; the names of those declared after them share one
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PER_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of one model; the engine's figures are as of its last report."""

    model: str
    state: str
    loaded: bool
    weight_bytes: int = 0
    kv_bytes: int = 0
    running: int = 0
    waiting: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    pages_total: int = 0
    pages_free: int = 0
    pages_cached: int = 0
    held_bytes: dict[str, int] = {}  # what the ledger holds for it: weights, kv, workspace
    estimated_bytes: int | None = None
    measured_bytes: int | None = None
    estimate_error: float | None = None


_GAUGES = {
    "loaded": ("inferloom_model_loaded", "Whether a model is loaded."),
    "weight_bytes": ("inferloom_model_weight_bytes", "Bytes of a loaded model's weights."),
    "kv_bytes": ("inferloom_model_kv_bytes", "Bytes of a loaded model's KV pages."),
    "running": ("inferloom_engine_sequences_running", "Sequences in the engine's batch."),
    "waiting": ("inferloom_engine_sequences_waiting", "Sequences that wait for the engine."),
    "drafted_tokens": (
        "inferloom_engine_drafted_tokens",
        "Tokens that were drafted and verified since loading.",
    ),
    "accepted_tokens": ("inferloom_engine_accepted_tokens", "Drafted tokens that held, since loading."),
    "pages_total": ("inferloom_engine_kv_pages", "KV pages of the engine."),
    "pages_free": ("inferloom_engine_kv_pages_free", "KV pages that hold nothing."),
    "pages_cached": ("inferloom_engine_kv_pages_cached", "KV pages that the prefix cache alone holds."),
}

_MEMORY = {
    "estimated_bytes": (
        "inferloom_model_estimated_bytes",
        "Bytes it was expected to take before its first request.",
    ),
    "measured_bytes": ("inferloom_model_measured_bytes", "Bytes (PSS) of its process after its load."),
    "estimate_error": ("inferloom_model_estimate_error_ratio", "Measured by expected bytes, less one."),
}


class Metrics:
    """What is counted, and how it is shown."""

    def __init__(self, models: Callable[[], Iterable[ModelRow]]) -> None:
        # a time of creation beside every counter would double the page
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "inferloom_http_requests",
            "Requests answered.",
            ["endpoint", "status", "model"],
            registry=registry,
        )
        self._seconds = Histogram(
            "inferloom_http_request_seconds",
            "Time from a request's first byte to its answer's last.",
            ["endpoint", "model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "inferloom_time_to_first_token_seconds",
            "Time to the first token.",
            ["model"],
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self._per_token = Histogram(
            "inferloom_time_per_output_token_seconds",
            "Mean time between an answer's tokens.",
            ["model"],
            buckets=_PER_TOKEN,
            registry=registry,
        )
        self._prompt = Counter("inferloom_prompt_tokens", "Tokens of prompts.", ["model"], registry=registry)
        self._cached = Counter(
            "inferloom_prompt_tokens_cached",
            "Tokens of prompts from the prefix cache.",
            ["model"],
            registry=registry,
        )
        self._generated = Counter(
            "inferloom_generated_tokens", "Tokens generated.", ["model"], registry=registry
        )
        self._cancelled = Counter(
            "inferloom_requests_cancelled", "Requests whose client left.", ["model"], registry=registry
        )
        self._queue_wait = Histogram(
            "inferloom_queue_wait_seconds",
            "Time from a request's coming to its having its model: its place in line, and a load.",
            ["model"],
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.residency = Residency(registry, label=self.label)
        self._errors = Counter("inferloom_errors", "Errors answered.", ["code", "model"], registry=registry)
        self.in_flight = 0  # requests being answered
        self.waiting = 0  # requests in line for a place
        Gauge("inferloom_requests_in_flight", "Requests being answered.", registry=registry).set_function(
            lambda: self.in_flight
        )
        Gauge("inferloom_requests_waiting", "Requests in line for a place.", registry=registry).set_function(
            lambda: self.waiting
        )
        registry.register(_Models(models))
        self._labels: set[str] = set()
        self._request_children: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}
        self._model_children: dict[str, tuple[Histogram, Histogram, Counter, Counter, Counter]] = {}
        self._wait_children: dict[str, Histogram] = {}

    def label(self, model: str) -> str:
        """A model's name as a label. Models come and go at run time, so the number of labels has a limit."""
        if model not in self._labels:
            if len(self._labels) >= MOST_MODELS:
                return "other"
            self._labels.add(model)
        return model

    def request(self, *, endpoint: str, status: int, model: str, seconds: float, error: str | None) -> None:
        key = (endpoint, status, model)
        children = self._request_children.get(key)
        if children is None:
            label = self.label(model)
            children = (
                self._requests.labels(endpoint, str(status), label),
                self._seconds.labels(endpoint, label),
            )
            if label == model:
                self._request_children[key] = children
        children[0].inc()
        children[1].observe(seconds)
        if error is not None:
            self._errors.labels(error, self.label(model)).inc()

    def waited(self, model: str, seconds: float) -> None:
        """A request has its model, `seconds` after it came."""
        child = self._wait_children.get(model)
        if child is None:
            label = self.label(model)
            child = self._queue_wait.labels(label)
            if label == model:
                self._wait_children[model] = child
        child.observe(seconds)

    def cancelled(self, model: str) -> None:
        self._cancelled.labels(self.label(model)).inc()

    def generation(self, *, model: str, usage: Usage, first_token: float, seconds: float) -> None:
        """A finished generation: seconds from its start to its first token and to its last."""
        first, per_token, prompt, cached, generated = self._children(model)
        first.observe(first_token)
        if usage.completion_tokens > 1:
            per_token.observe((seconds - first_token) / (usage.completion_tokens - 1))
        prompt.inc(usage.prompt_tokens)
        cached.inc(usage.cached_tokens)
        generated.inc(usage.completion_tokens)

    def embedding(self, *, model: str, prompt_tokens: int) -> None:
        self._children(model)[2].inc(prompt_tokens)

    def _children(self, model: str) -> tuple[Histogram, Histogram, Counter, Counter, Counter]:
        children = self._model_children.get(model)
        if children is None:
            label = self.label(model)
            children = (
                self._first_token.labels(label),
                self._per_token.labels(label),
                self._prompt.labels(label),
                self._cached.labels(label),
                self._generated.labels(label),
            )
            if label == model:
                self._model_children[model] = children
        return children

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _Models(Collector):
    """Reads the models' states when they are asked for."""

    def __init__(self, models: Callable[[], Iterable[ModelRow]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        rows = list(self._models())
        state = GaugeMetricFamily(
            "inferloom_model_state", "1 for the state a model is in.", labels=["model", "state"]
        )
        for row in rows:
            state.add_metric([row.model, row.state], 1)
        yield state
        for field, (name, meaning) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, meaning, labels=["model"])
            for row in rows:
                gauge.add_metric([row.model], float(getattr(row, field)))
            yield gauge
        yield from _memory(rows)


def _memory(rows: list[ModelRow]) -> Iterator[Metric]:
    held = GaugeMetricFamily(
        "inferloom_model_bytes", "Bytes the ledger holds for a model, by what for.", labels=["model", "kind"]
    )
    for row in rows:
        for kind, amount in row.held_bytes.items():
            held.add_metric([row.model, kind], amount)
    yield held
    for field, (name, meaning) in _MEMORY.items():
        gauge = GaugeMetricFamily(name, meaning, labels=["model"])
        for row in rows:
            if (value := getattr(row, field)) is not None:
                gauge.add_metric([row.model], float(value))
        yield gauge

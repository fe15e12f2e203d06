"""Which models were in memory for how long, how they came there and why they left, as counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from inferloom.catalog.lifecycle import State, Transition

_LOAD_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

# Why a model left memory: the causes of a transition; without one somebody asked for it.
REASONS = ("evicted", "expired", "replaced", "asked", "crashed")
_COMING = (State.LOADING, State.WARMING)
_OUT = (State.UNLOADED, State.FAILED)


class Residency(Collector):
    """An observer of the catalog. Each model is resident from `ready` until it is unloaded or its worker died."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        label: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`label`: a model's name as it is shown."""
        self._label = label
        self._clock = clock
        self._loads = Counter(
            "inferloom_model_loads",
            "Loads that ended, by their result.",
            ["model", "result"],
            registry=registry,
        )
        self._seconds = Histogram(
            "inferloom_model_load_seconds",
            "Time a load took that succeeded.",
            ["model"],
            buckets=_LOAD_SECONDS,
            registry=registry,
        )
        self._evictions = Counter(
            "inferloom_model_evictions",
            "Times a loaded model left memory, by the reason.",
            ["model", "reason"],
            registry=registry,
        )
        self._since: dict[str, float] = {}  # of those that are resident
        self._spent: dict[str, float] = {}  # seconds of earlier stays
        self._leaving: dict[str, str] = {}  # why those that drain leave
        registry.register(self)

    def changed(self, change: Transition) -> None:
        model, label = change.id, self._label(change.id)
        if change.new is State.READY:
            if change.cause != "shared":  # it got another name, and was loaded before
                self._loads.labels(label, "ready").inc()
            if change.load_seconds is not None:
                self._seconds.labels(label).observe(change.load_seconds)
            self._since.setdefault(model, self._clock())
            if change.cause == "replaced":
                self._evictions.labels(label, change.cause).inc()
        elif change.old in _COMING and change.new in _OUT:
            result = "failed" if change.new is State.FAILED else "stopped"
            self._loads.labels(label, result).inc()
        if change.new is State.DRAINING:
            self._leaving[model] = change.cause or "asked"
        elif change.new in _OUT and model in self._since:
            self._leave(model, change)

    def _leave(self, model: str, change: Transition) -> None:
        since = self._since.pop(model)
        label = self._label(model)
        self._spent[label] = self._spent.get(label, 0.0) + self._clock() - since
        reason = self._leaving.pop(model, None) or ("crashed" if change.new is State.FAILED else "asked")
        self._evictions.labels(label, reason if reason in REASONS else "other").inc()

    def describe(self) -> Iterator[Metric]:
        """Known without collecting, which registering would do."""
        yield CounterMetricFamily("inferloom_model_residency_seconds", "Seconds a model was in memory.")

    def collect(self) -> Iterator[Metric]:
        now = self._clock()
        seconds = dict(self._spent)
        for model, since in self._since.items():
            label = self._label(model)
            seconds[label] = seconds.get(label, 0.0) + now - since
        family = CounterMetricFamily(
            "inferloom_model_residency_seconds", "Seconds a model was in memory.", labels=["model"]
        )
        for label, spent in seconds.items():
            family.add_metric([label], spent)
        yield family

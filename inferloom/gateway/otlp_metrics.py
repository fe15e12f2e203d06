"""What `/metrics` shows, as OpenTelemetry's data: counted once, told in two languages."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric as Family
from prometheus_client.core import Sample

from inferloom import __version__
from inferloom.errors import ConfigError

EVERY_SECS = 15.0  # unless OTEL_METRIC_EXPORT_INTERVAL (ms) says otherwise
Labels = frozenset[tuple[str, str]]


def export_interval() -> float:
    """Seconds between two exports. Raises `ConfigError` where the environment says what is none."""
    written = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")
    try:
        every = float(written) / 1000 if written else EVERY_SECS
    except ValueError:
        every = math.nan
    if not 0 < every < math.inf:
        raise ConfigError(f"OTEL_METRIC_EXPORT_INTERVAL is {written!r}: write milliseconds, above 0")
    return every


def metrics_data(families: Iterable[Family], *, resource: Resource, began: int) -> MetricsData:
    """Families of a Prometheus registry under their own names. `began`: since when was counted, Unix nanoseconds."""
    now = time.time_ns()
    metrics = [metric for family in families if (metric := _metric(family, began, now)) is not None]
    scope = ScopeMetrics(InstrumentationScope("inferloom", __version__), metrics, schema_url="")
    return MetricsData([ResourceMetrics(resource, [scope], schema_url="")])


def _metric(family: Family, began: int, now: int) -> Metric | None:
    """None for a family without samples."""
    data: Gauge | Sum | Histogram
    if family.type == "histogram":
        points = list(_histogram_points(family.samples, began, now))
        data = Histogram(points, AggregationTemporality.CUMULATIVE)
    elif family.type == "counter":
        data = Sum(
            [_number(sample, began, now) for sample in family.samples if sample.name.endswith("_total")],
            AggregationTemporality.CUMULATIVE,
            is_monotonic=True,
        )
    else:
        data = Gauge([_number(sample, began, now) for sample in family.samples])
    return Metric(family.name, family.documentation, "", data) if data.data_points else None


def _number(sample: Sample, began: int, now: int) -> NumberDataPoint:
    return NumberDataPoint(
        attributes=dict(sample.labels), start_time_unix_nano=began, time_unix_nano=now, value=sample.value
    )


def _histogram_points(samples: list[Sample], began: int, now: int) -> Iterator[HistogramDataPoint]:
    """One point for each set of labels. Prometheus counts what is at most a bound, OpenTelemetry what is between two."""
    buckets: dict[Labels, list[tuple[float, float]]] = {}
    sums: dict[Labels, float] = {}
    for sample in samples:
        labels = frozenset((key, value) for key, value in sample.labels.items() if key != "le")
        if sample.name.endswith("_bucket"):
            buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    for labels, counted in buckets.items():
        counted.sort()
        below = [0.0, *(count for _, count in counted)]
        yield HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=began,
            time_unix_nano=now,
            count=int(below[-1]),
            sum=sums.get(labels, 0.0),
            bucket_counts=[int(upto - lower) for lower, upto in pairwise(below)],
            explicit_bounds=[bound for bound, _ in counted[:-1]],  # the last one is infinity
            min=None,  # type: ignore[arg-type]  # optional in the protocol; Prometheus does not know it
            max=None,  # type: ignore[arg-type]
        )

"""What a measured level comes to: rates and percentiles, as a table, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from inferloom.cli.load import Sample
from inferloom.cli.picture import Chart, Line


class Spread(msgspec.Struct, frozen=True):
    """Percentiles of a list of seconds, in milliseconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread | None:
        """None where there is nothing to tell. Percentiles are of the nearest rank."""
        if not seconds:
            return None
        ordered = sorted(seconds)
        p50, p90, p99 = (
            1e3 * ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100) - 1))]
            for percent in (50, 90, 99)
        )
        return cls(p50, p90, p99)


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """All requests at one concurrency. Rates are per second of the level's wall time, errors left out."""

    concurrency: int
    requests: int
    errors: int
    seconds: float
    requests_per_second: float
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_second: float
    time_to_first_token_ms: Spread | None
    inter_token_ms: Spread | None  # gaps between pieces that arrived, of all requests together
    time_per_output_token_ms: Spread | None  # each request's mean
    latency_ms: Spread | None
    error: str | None = None  # the first

    @classmethod
    def of(cls, samples: Sequence[Sample], *, concurrency: int) -> Level:
        good = [sample for sample in samples if sample.error is None]
        seconds = max(s.ended for s in samples) - min(s.began for s in samples)
        tokens = sum(sample.completion_tokens for sample in good)
        gaps = [later - earlier for s in good for earlier, later in zip(s.pieces, s.pieces[1:], strict=False)]
        return cls(
            concurrency=concurrency,
            requests=len(samples),
            errors=len(samples) - len(good),
            seconds=seconds,
            requests_per_second=len(good) / seconds,
            prompt_tokens=sum(sample.prompt_tokens for sample in good),
            output_tokens=tokens,
            output_tokens_per_second=tokens / seconds,
            time_to_first_token_ms=Spread.of([s.first for s in good if s.first is not None]),
            inter_token_ms=Spread.of(gaps),
            time_per_output_token_ms=Spread.of([s.per_token for s in good if s.per_token is not None]),
            latency_ms=Spread.of([s.seconds for s in good]),
            error=next((s.error for s in samples if s.error is not None), None),
        )


_COLUMNS: tuple[tuple[str, Callable[[Level], str]], ...] = (
    ("users", lambda level: str(level.concurrency)),
    ("requests", lambda level: str(level.requests)),
    ("errors", lambda level: str(level.errors)),
    ("output tok/s", lambda level: f"{level.output_tokens_per_second:,.1f}"),
    ("req/s", lambda level: f"{level.requests_per_second:,.2f}"),
    ("first token p50 / p99 ms", lambda level: _pair(level.time_to_first_token_ms)),
    ("between tokens p50 / p99 ms", lambda level: _pair(level.inter_token_ms)),
    ("whole answer p50 / p99 ms", lambda level: _pair(level.latency_ms)),
)


def _pair(spread: Spread | None) -> str:
    return "–" if spread is None else f"{spread.p50:,.1f} / {spread.p99:,.1f}"


def table(levels: Sequence[Level]) -> str:
    """Columns under their headings, right-aligned."""
    rows = [[heading for heading, _ in _COLUMNS]]
    rows += [[show(level) for _, show in _COLUMNS] for level in levels]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def as_json(levels: Sequence[Level], **about: Any) -> bytes:
    """`about` is what was measured; `levels` follow."""
    return msgspec.json.format(msgspec.json.encode({**about, "levels": list(levels)}), indent=2) + b"\n"


def picture(levels: Sequence[Level], *, title: str) -> str:
    """An SVG: output tokens per second over the number of users, and the median time to the first token below."""
    users = [float(level.concurrency) for level in levels]
    rates = Line("output tokens/s", users, [level.output_tokens_per_second for level in levels])
    waits = [(u, level.time_to_first_token_ms) for u, level in zip(users, levels, strict=True)]
    known = [(u, spread) for u, spread in waits if spread is not None]
    charts = [Chart(title, "users", "output tokens/s", [rates])]
    if known:
        p50 = Line("p50", [u for u, _ in known], [spread.p50 for _, spread in known])
        p99 = Line("p99", [u for u, _ in known], [spread.p99 for _, spread in known])
        charts.append(Chart("Time to the first token", "users", "ms", [p50, p99]))
    return Chart.stacked(charts)

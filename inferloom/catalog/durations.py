"""What loads take: as measured, else a guess from their bytes."""

from __future__ import annotations

from inferloom.types import LoadReport

READING = 1e9  # bytes per second that a load is guessed to take where none was measured
STARTING = 0.1  # seconds, likewise


def load_secs(report: LoadReport | None, bytes_: int) -> float:
    """Of the next load. `report`: of the last one, whose preparation of files need not be done again; nor has the next one to
    wait for the forkserver's own start, as the first may have had."""
    if report is None:
        return STARTING + bytes_ / READING
    once = report.stages.get("pack", 0.0) + report.stages.get("start", 0.0)
    return max(0.0, report.seconds - once)


def remaining_secs(report: LoadReport | None, elapsed: float) -> float:
    """Of a load that has gone on for `elapsed`; 0 where none was measured."""
    return max(0.0, load_secs(report, 0) - elapsed) if report is not None else 0.0

"""How soon something that failed is tried again."""

from __future__ import annotations

LONGEST = 60.0  # seconds


def retry_delay(failures: int) -> float:
    """Seconds to wait before the next try after `failures` in a row: 0, 0, 1, 2, 4 … 60."""
    if failures <= 1:
        return 0.0
    return min(LONGEST, 2.0 ** min(failures - 2, 10))

from __future__ import annotations

from inferloom.worker.pacing import retry_delay


def test_one_retry_at_once_then_longer_and_longer_up_to_a_minute() -> None:
    assert [retry_delay(failures) for failures in range(1, 11)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert retry_delay(10_000) == 60

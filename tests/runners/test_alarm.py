from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from inferloom.runners.alarm import Alarm


async def test_it_rings_with_the_time_it_was_set_to_last_of_all_that_were_earlier() -> None:
    rung: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    alarm = Alarm(rung.set_result, clock=time.monotonic)
    now = time.monotonic()
    alarm.by(now + 60.0)
    alarm.by(now + 0.01)
    alarm.by(now + 0.02)
    assert await rung == now + 0.01
    assert time.monotonic() >= now + 0.01


async def test_times_that_move_on_make_no_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, made = asyncio.get_running_loop(), []
    later = loop.call_later

    def noting(delay: float, *rest: Any) -> asyncio.TimerHandle:
        made.append(delay)
        return later(delay, *rest)

    monkeypatch.setattr(loop, "call_later", noting)
    alarm = Alarm(lambda when: None, clock=time.monotonic)
    alarm.by(math.inf)
    assert made == []
    for seconds in range(60, 80):
        alarm.by(time.monotonic() + seconds)
    assert len(made) == 1
    alarm.off()


async def test_turned_off_it_does_not_ring_and_can_be_set_again() -> None:
    rung: list[float] = []
    alarm = Alarm(rung.append, clock=time.monotonic)
    alarm.by(time.monotonic())
    alarm.off()
    await asyncio.sleep(0.01)
    assert rung == []
    alarm.by(5.0)  # long past
    await asyncio.sleep(0.01)
    assert rung == [5.0]

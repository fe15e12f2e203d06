"""How many requests are worked on, and how many wait."""

from __future__ import annotations

import asyncio

import pytest
from gateway.stand_in import until

from inferloom.errors import RateLimited, RequestTimeout
from inferloom.gateway.admission import Admission

BODY = {"messages": "x"}


async def test_places_go_to_the_line_in_its_order():
    admission = Admission(1, patience=5)
    await admission.enter()
    order: list[int] = []

    async def wait(which: int) -> None:
        await admission.enter()
        order.append(which)
        admission.leave()

    admission.limit = 2  # a line of two
    admission.running = 2
    waiting = [asyncio.create_task(wait(which)) for which in range(2)]
    await until(lambda: admission.waiting == 2)
    admission.leave()
    await asyncio.gather(*waiting)
    assert order == [0, 1]
    assert admission.running == 1


async def test_a_full_line_turns_away_and_says_when_to_come_back():
    admission = Admission(1, patience=5)
    await admission.enter()
    waiting = asyncio.create_task(admission.enter())
    await until(lambda: admission.waiting == 1)
    with pytest.raises(RateLimited) as caught:
        await admission.enter()
    assert caught.value.retry_after == 1
    admission.leave()
    await waiting


async def test_patience_ends():
    admission = Admission(1, patience=0.01)
    await admission.enter()
    with pytest.raises(RequestTimeout, match="queue_timeout_secs"):
        await admission.enter()
    assert (admission.running, admission.waiting) == (1, 0)


async def test_a_place_handed_to_one_who_left_goes_on_to_the_next():
    admission = Admission(2, patience=5)
    await admission.enter()
    await admission.enter()
    first, second = (asyncio.create_task(admission.enter()) for _ in range(2))
    await until(lambda: admission.waiting == 2)
    admission.leave()  # the place is the first's …
    first.cancel()  # … who leaves in the same moment
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 5)
    assert (admission.running, admission.waiting) == (2, 0)


async def test_over_the_limit_requests_wait_and_then_are_refused_with_retry_after(serve):
    gateway = await serve(max_concurrent_requests=1)
    gateway.talker.hold_after = 1
    first = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=BODY))
    await gateway.talker.started.wait()
    second = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=BODY))
    await until(lambda: gateway.service.admission.waiting == 1)
    third = await gateway.http.post("/v1/chat/completions", json=BODY)
    assert (third.status_code, third.headers["retry-after"]) == (429, "1")
    assert third.json()["error"]["type"] == "rate_limit_error"
    gateway.talker.hold_after = None
    handle = gateway.talker.handles[0]
    for chunk in gateway.talker.script(gateway.talker.batches[0])[1:]:
        handle.feed(chunk)
    handle.finish()
    assert [(await task).status_code for task in (first, second)] == [200, 200]
    assert gateway.service.admission.running == 0


async def test_waiting_in_line_has_a_limit(serve):
    gateway = await serve(max_concurrent_requests=1, queue_timeout_secs=0.02)
    gateway.talker.hold_after = 1
    stream = await gateway.openai.chat.completions.create(
        model="talker", messages=[{"role": "user", "content": "x"}], stream=True
    )
    response = await gateway.http.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 504
    await stream.close()

"""A stream whose model is still loading is told how far that is; before it has begun, an error keeps its status."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import asynccontextmanager

import openai
import pytest
from gateway.sse import Stream
from gateway.stand_in import ScriptedRunner, StandInEntry, chat_card, model, until

from inferloom.gateway.exchange import Limits

CHAT = {"messages": [{"role": "user", "content": "x"}], "stream": True}
COMPLETION = {"prompt": "x", "stream": True}
QUICK = Limits(sweep=0.01, loading_after=0.1, loading_every=0.1)


@asynccontextmanager
async def asking(gateway, *, path: str = "chat/completions", **fields: object):
    body = (CHAT if path == "chat/completions" else COMPLETION) | fields
    async with gateway.http.stream("POST", f"/v1/{path}", json=body) as response:
        yield Stream(response)


async def chat(gateway, **fields: object):
    return await gateway.http.post("/v1/chat/completions", json=CHAT | fields)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_a_stream_that_waits_for_a_load_is_told_how_far_it_is(workers, path):
    gateway = await workers(a={"load_secs": 1.0, "text": "hi"}, limits=QUICK)
    async with asking(gateway, path=path) as stream:
        assert stream.response.status_code == 200
        assert gateway.catalog.status("a").state == "loading"  # the headers did not wait for it
        seen = await stream.rest()
    said = [one.comment for one in seen if one.comment is not None]
    told = [match for one in said if (match := re.fullmatch(r"loading a: load (\d+) %", one))]
    shares = [int(match[1]) for match in told]
    assert len(told) >= 3
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 100
    data = [one.data for one in seen if one.comment is None]
    assert data[-1] == "[DONE]"
    assert data[-2]["choices"][0]["finish_reason"] == "stop"


async def test_comments_come_once_a_second_and_after_one_second():
    limits = Limits()
    assert (limits.loading_after, limits.loading_every) == (1.0, 1.0)
    assert limits.sweep < limits.loading_every


async def test_they_are_not_more_frequent_than_their_limit(workers):
    gateway = await workers(
        a={"load_secs": 1.0}, limits=Limits(sweep=0.01, loading_after=0.1, loading_every=0.4)
    )
    begun = time.monotonic()
    async with asking(gateway) as stream:
        seen = await stream.rest()
    most = (time.monotonic() - begun) / 0.4 + 1
    assert 1 <= sum(one.comment is not None for one in seen) <= most


async def test_the_official_client_reads_past_the_comments(workers):
    gateway = await workers(a={"load_secs": 0.5, "text": "good morning"}, limits=QUICK)
    stream = await gateway.openai.chat.completions.create(model="a", **CHAT)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "good morning"


async def test_a_load_that_fails_later_ends_the_stream_with_its_reason(workers):
    gateway = await workers(a={"load_secs": 0.3, "fail_load": "the disk is on fire"}, limits=QUICK)
    async with asking(gateway) as stream:
        assert stream.response.status_code == 200
        seen = await stream.rest()
    assert any(one.comment for one in seen)
    error, done = [one.data for one in seen if one.comment is None]
    assert done == "[DONE]"
    assert error["error"]["code"] == "model_load_failed"
    assert "the disk is on fire" in error["error"]["message"]


async def test_the_official_client_raises_what_ends_the_stream(workers):
    gateway = await workers(a={"load_secs": 0.3, "fail_load": "the disk is on fire"}, limits=QUICK)
    stream = await gateway.openai.chat.completions.create(model="a", **CHAT)
    with pytest.raises(openai.APIError, match="the disk is on fire"):
        [_ async for _ in stream]


async def test_a_load_that_fails_soon_has_the_status_of_its_error(workers):
    gateway = await workers(a={"fail_load": "the disk is on fire"}, limits=Limits(loading_after=30.0))
    response = await chat(gateway)
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/json"
    assert "the disk is on fire" in response.json()["error"]["message"]


async def test_a_failure_that_is_known_has_the_status_of_its_error(workers):
    gateway = await workers(a={"load_secs": 0.3, "fail_load": "the disk is on fire"}, limits=QUICK)
    await chat(gateway)
    paced = await chat(gateway)
    assert paced.status_code == 503
    assert int(paced.headers["retry-after"]) >= 1


async def test_what_is_not_streamed_keeps_the_status_of_its_error(workers):
    gateway = await workers(a={"load_secs": 0.3, "fail_load": "the disk is on fire"}, limits=QUICK)
    response = await chat(gateway, stream=False)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_load_failed"


async def test_what_is_not_streamed_gets_no_comments(workers):
    gateway = await workers(a={"load_secs": 0.5, "text": "hi"}, limits=QUICK)
    response = await chat(gateway, stream=False)
    assert response.json()["choices"][0]["message"]["content"] == "hi"


async def test_a_loaded_model_gets_no_comments(workers):
    gateway = await workers(
        a={"text": "one two three four", "tokens_per_second": 40},
        limits=Limits(sweep=0.01, loading_after=0.0),
    )
    await gateway.http.post("/v1/models/load", json={"model_id": "a"})
    async with asking(gateway) as stream:
        assert not any(one.comment for one in await stream.rest())


async def test_a_burst_that_waits_is_one_load_and_each_is_told(workers):
    gateway = await workers(a={"load_secs": 0.6, "text": "hi"}, limits=QUICK)

    async def one() -> tuple[int, object]:
        async with asking(gateway) as stream:
            seen = await stream.rest()
        return sum(frame.comment is not None for frame in seen), seen[-1].data

    told = await asyncio.gather(*(one() for _ in range(20)))
    assert all(comments >= 1 and last == "[DONE]" for comments, last in told)
    assert gateway.catalog.status("a").loads == 1


async def test_a_stream_that_waits_for_room_is_told_so(workers):
    gateway = await workers(
        busy={"weights_mb": 60, "text": "x " * 40, "tokens_per_second": 40},
        next={"weights_mb": 60, "text": "hi"},
        budget="100MiB",
        limits=QUICK,
    )
    async with asking(gateway, model="busy") as first:
        await first.next()
        async with asking(gateway, model="next") as second:
            said = (await second.next()).comment
            assert said is not None and re.fullmatch(
                r"waiting for room in memory for next(, about \d+ s)?", said
            )
            assert (await first.rest())[-1].data == "[DONE]"
            assert (await second.rest())[-1].data == "[DONE]"


async def test_a_client_that_leaves_while_it_is_told_stops_the_load(workers):
    gateway = await workers(a={"load_secs": 60}, limits=QUICK)
    async with asking(gateway) as stream:
        assert (await stream.next()).comment is not None
    await until(lambda: gateway.catalog.status("a").state == "unloaded")
    await until(lambda: len(gateway.service.exchanges) == 0 and gateway.service.admission.running == 0)


async def test_a_wait_that_lasts_too_long_ends_with_an_error_event(workers):
    gateway = await workers(a={"load_secs": 60}, limits=QUICK, server={"load_timeout_secs": 0.4})
    async with asking(gateway) as stream:
        seen = await stream.rest()
    error, done = [one.data for one in seen if one.comment is None]
    assert (error["error"]["code"], done) == ("timeout", "[DONE]")


async def test_a_model_that_is_removed_while_a_stream_waits_harms_no_other(gateway):
    gone = StandInEntry("gone", model("gone"), ScriptedRunner(chat_card()))
    assert gateway.service.load_progress(gone) == "gone was removed"

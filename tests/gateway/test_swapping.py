"""Models that share memory for one of them, as clients see it: refusals with the time to come again, what a stream is told
meanwhile, and loads that nobody waits for any more."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from gateway.sse import Stream
from gateway.stand_in import until

from inferloom.gateway.exchange import Limits

QUICK = Limits(sweep=0.01, loading_after=0.1, loading_every=0.1)
CHAT = {"messages": [{"role": "user", "content": "x"}]}
LONG = {"weights_mb": 60, "text": "x " * 400, "tokens_per_second": 40}
SHORT = {"weights_mb": 60, "text": "hi"}


async def chat(gateway, model: str, **fields: object) -> httpx.Response:
    return await gateway.http.post("/v1/chat/completions", json={"model": model, **CHAT, **fields})


async def test_a_full_line_answers_429_with_the_time_to_come_again(workers):
    gateway = await workers(busy=LONG, next=SHORT, budget="100MiB", server={"max_waiting": 1})
    async with gateway.http.stream(
        "POST", "/v1/chat/completions", json={"model": "busy", **CHAT, "stream": True}
    ) as response:
        stream = Stream(response)
        await stream.next()
        waits = asyncio.create_task(chat(gateway, "next"))
        await until(lambda: gateway.catalog.status("next").waiting == 1)
        refused = await chat(gateway, "next")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert "max_waiting" in error["message"]
    assert (await waits).status_code == 200  # the stream's client has left


async def test_a_stream_that_waits_for_room_is_told_about_how_long(workers):
    gateway = await workers(busy=LONG, next=SHORT, budget="100MiB", limits=QUICK)
    assert (await chat(gateway, "next")).status_code == 200  # what its load takes is known now
    body = {**CHAT, "stream": True}
    async with gateway.http.stream("POST", "/v1/chat/completions", json={"model": "busy", **body}) as first:
        begun = Stream(first)
        await begun.next()
        async with gateway.http.stream(
            "POST", "/v1/chat/completions", json={"model": "next", **body}
        ) as second:
            stream = Stream(second)
            said = [(await stream.next()).comment for _ in range(3)]
            assert all(
                one is not None and one.startswith("waiting for room in memory for next") for one in said
            )
            details = (await gateway.http.get("/v1/models/next")).json()
            assert (details["stage"], details["waiting"]) == ("room", 1)
            await first.aclose()
            assert (await stream.rest())[-1].data == "[DONE]"


async def test_a_stream_whose_model_yields_is_told_so(workers):
    gateway = await workers(busy=LONG, next=SHORT, budget="100MiB", limits=QUICK)
    body = {**CHAT, "stream": True}
    async with gateway.http.stream("POST", "/v1/chat/completions", json={"model": "busy", **body}) as first:
        begun = Stream(first)
        await begun.next()
        other = asyncio.create_task(chat(gateway, "next"))
        await until(lambda: gateway.catalog.status("busy").yielding, seconds=30.0)
        assert (await gateway.http.get("/v1/models/busy")).json()["yielding"] is True
        async with gateway.http.stream(
            "POST", "/v1/chat/completions", json={"model": "busy", **body}
        ) as second:
            stream = Stream(second)
            said = (await stream.next()).comment
            assert said is not None and said.startswith("waiting for the turn of busy")
        await first.aclose()
        assert (await other).status_code == 200


async def test_a_deadline_below_the_load_itself_is_a_503(workers):
    gateway = await workers(a={"load_secs": 0.5})
    await gateway.http.post("/v1/models/load", json={"model_id": "a"})
    await gateway.http.post("/v1/models/unload", json={"model_id": "a"})
    gateway.service.config.server.load_timeout_secs = 0.2  # what requests wait at most from now on
    refused = await chat(gateway, "a")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert gateway.catalog.status("a").state == "unloaded"


@pytest.mark.parametrize("verb", ["load", "reload"])
async def test_the_last_client_that_waits_for_a_load_stops_it_by_leaving(workers, verb):
    gateway = await workers(a={"load_secs": 60})
    asked = [
        asyncio.create_task(gateway.http.post(f"/v1/models/{verb}", json={"model_id": "a"})) for _ in range(2)
    ]
    await until(lambda: gateway.catalog.status("a").stage == "load")
    await until(lambda: len(gateway.service.exchanges) == 2)
    asked[0].cancel()
    await until(lambda: len(gateway.service.exchanges) == 1)
    assert gateway.catalog.status("a").state == "loading"
    asked[1].cancel()
    await until(lambda: gateway.catalog.status("a").state == "unloaded")
    await asyncio.gather(*asked, return_exceptions=True)
    assert len(gateway.service.exchanges) == 0


async def test_a_load_goes_on_for_a_request_that_waits_for_it_too(workers):
    gateway = await workers(a={"load_secs": 0.5, "text": "hi"})
    asked = asyncio.create_task(gateway.http.post("/v1/models/load", json={"model_id": "a"}))
    await until(lambda: gateway.catalog.status("a").stage == "load")
    waits = asyncio.create_task(chat(gateway, "a"))
    await until(lambda: gateway.catalog.status("a").waiting == 1)
    asked.cancel()
    assert (await waits).status_code == 200
    assert gateway.catalog.status("a").loads == 1
    await asyncio.gather(asked, return_exceptions=True)

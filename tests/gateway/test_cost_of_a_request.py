"""What a request may cost beyond its own work: no look for room, no timer, nothing for the collector of cycles."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from typing import Any

import pytest
from gateway.conftest import Gateway, Serve

from inferloom.gateway.call import Call
from inferloom.gateway.exchange import Exchange, Limits
from inferloom.runners.base import RunHandle
from inferloom.runners.run import Run

REQUESTS = 20
PLAIN = {"model": "a", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
STREAM = {**PLAIN, "stream": True}


class Client:
    """One connection that asks one thing after the other, and makes no timers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, gateway: Gateway) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", gateway.port))

    async def ask(self, request: dict[str, Any]) -> None:
        body = json.dumps(request).encode()
        self._writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert b" 200 " in head
        if request.get("stream"):
            assert b"[DONE]" in await self._reader.readuntil(b"\r\n0\r\n\r\n")
        else:
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await self._reader.readexactly(length))["usage"]["completion_tokens"] == 8

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def warm(workers: Serve) -> tuple[Gateway, Client]:
    """A loaded model whose idle time is limited, as requests' time is, and a client that has asked it before."""
    gateway = await workers(a={"text": "word " * 20}, server={"keep_alive": "5m"}, limits=Limits(sweep=600.0))
    client = await Client.to(gateway)
    for request in (PLAIN, STREAM):
        await client.ask(request)
    return gateway, client


@pytest.mark.parametrize("request_", [PLAIN, STREAM], ids=["plain", "stream"])
async def test_requests_on_a_loaded_model_make_no_timers_and_nobody_look_for_room(
    workers: Serve, monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any]
) -> None:
    gateway, client = await warm(workers)
    await asyncio.sleep(0)  # what the last request left to be done
    arbiter = gateway.catalog.resolve("a").residence.arbiter
    looks: list[str] = []
    look = arbiter.device
    monkeypatch.setattr(arbiter, "device", lambda name: looks.append(name) or look(name))
    timers: list[str] = []
    loop = asyncio.get_running_loop()
    at = loop.call_at  # `call_later` and `asyncio.timeout` end there too

    def noting(
        when: float, callback: Callable[..., object], *args: Any, **kwargs: Any
    ) -> asyncio.TimerHandle:
        timers.append(f"{callback.__module__}.{callback.__qualname__}")
        return at(when, callback, *args, **kwargs)

    monkeypatch.setattr(loop, "call_at", noting)
    for _ in range(REQUESTS):
        await client.ask(request_)
    monkeypatch.undo()
    await client.close()
    assert looks == []
    # the server's own: how long a connection may be silent, and its tick
    own = ("uvicorn.", "asyncio.futures._set_result_unless_cancelled")
    assert [timer for timer in timers if not timer.startswith(own)] == []


@pytest.mark.parametrize("request_", [PLAIN, STREAM], ids=["plain", "stream"])
async def test_what_a_request_was_made_of_is_gone_with_it(workers: Serve, request_: dict[str, Any]) -> None:
    _, client = await warm(workers)
    gc.collect()
    gc.disable()
    try:
        for _ in range(REQUESTS):
            await client.ask(request_)
        await asyncio.sleep(0)
        kinds = (Call, Exchange, Run, RunHandle)
        left = [type(one).__name__ for one in gc.get_objects() if type(one) in kinds]
    finally:
        gc.enable()
        await client.close()
    assert len(left) <= len(kinds), left  # those of the last request, where its task has yet to end

"""What may happen to a stream: clients that leave or don't read, errors, silence, time limits."""

from __future__ import annotations

import asyncio
import json
import socket

import openai
import pytest
from gateway.stand_in import until

from inferloom.errors import ContextLengthExceeded, WorkerDied
from inferloom.gateway.exchange import Limits
from inferloom.types import TokenChunk

BODY = {"messages": [{"role": "user", "content": "x"}]}


async def post(gateway, **fields):
    return await gateway.http.post("/v1/chat/completions", json=BODY | fields)


async def raw(gateway, body: dict, *, receive_buffer: int = 0):
    """A connection that has sent a request and read nothing."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=receive_buffer or 2**16)
    content = json.dumps(body).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
    )
    await writer.drain()
    return reader, writer


async def test_closing_the_stream_cancels_the_run(gateway):
    gateway.talker.hold_after = 2
    stream = await gateway.openai.chat.completions.create(model="talker", stream=True, **BODY)
    async for _ in stream:
        break
    await stream.close()
    await asyncio.wait_for(gateway.talker.cancelled.wait(), 5)
    await until(lambda: gateway.catalog.leases == 0 and len(gateway.service.exchanges) == 0)
    assert gateway.service.admission.running == 0


async def test_a_client_that_leaves_a_whole_answer_cancels_the_run(gateway):
    gateway.talker.hold_after = 2
    _, writer = await raw(gateway, BODY)
    await asyncio.wait_for(gateway.talker.started.wait(), 5)
    writer.close()
    await asyncio.wait_for(gateway.talker.cancelled.wait(), 5)
    await until(lambda: gateway.catalog.leases == 0)


async def test_a_client_that_leaves_after_a_long_body_cancels_the_run(gateway):
    gateway.talker.hold_after = 2
    long = {"messages": [{"role": "user", "content": "x" * 300_000}]}  # reading was paused meanwhile
    _, writer = await raw(gateway, long)
    await asyncio.wait_for(gateway.talker.started.wait(), 5)
    writer.close()
    await asyncio.wait_for(gateway.talker.cancelled.wait(), 5)
    await until(lambda: gateway.catalog.leases == 0)


async def test_a_client_that_leaves_its_second_request_cancels_that_run(gateway):
    reader, writer = await raw(gateway, BODY)
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    await until(lambda: len(gateway.service.exchanges) == 0)
    gateway.talker.started.clear()
    gateway.talker.hold_after = 2
    content = json.dumps(BODY).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
    )
    await asyncio.wait_for(gateway.talker.started.wait(), 5)
    writer.close()
    await asyncio.wait_for(gateway.talker.cancelled.wait(), 5)


async def test_where_no_server_tells_of_a_leaving_client_it_is_waited_for(gateway):
    """Under any other ASGI host."""
    gateway.talker.hold_after = 2
    left = asyncio.Event()
    content = json.dumps(BODY).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        raise AssertionError("nobody is there to be answered")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }
    serving = asyncio.create_task(gateway.app(scope, receive, send))
    await asyncio.wait_for(gateway.talker.started.wait(), 5)
    left.set()
    await asyncio.wait_for(gateway.talker.cancelled.wait(), 5)
    await asyncio.wait_for(serving, 5)


async def test_a_client_that_leaves_while_its_model_loads_gives_up_the_wait(gateway):
    gateway.catalog.default.gate = asyncio.Event()
    _, writer = await raw(gateway, BODY | {"stream": True})
    await until(lambda: len(gateway.service.exchanges) == 1)
    writer.close()
    await until(lambda: len(gateway.service.exchanges) == 0)
    assert gateway.talker.batches == []
    assert gateway.service.admission.running == 0


async def test_an_error_before_the_first_token_has_its_own_status(gateway):
    gateway.talker.hold_after = 0
    gateway.talker.error = ContextLengthExceeded("3000 tokens, 2048 fit", param="messages")
    response = await post(gateway, stream=True)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_an_error_in_mid_stream_is_an_event_and_then_done(gateway):
    gateway.talker.hold_after = 2
    gateway.talker.error = WorkerDied("the worker died")
    response = await post(gateway, stream=True)
    assert response.status_code == 200
    frames = response.text.split("\n\n")
    assert '"Paris"' in frames[1]
    assert json.loads(frames[3].removeprefix("data: ")) == {
        "error": {"message": "the worker died", "type": "server_error", "param": None, "code": "worker_died"}
    }
    assert frames[4:] == ["data: [DONE]", ""]


async def test_the_official_client_raises_the_error_of_a_stream(gateway):
    gateway.talker.hold_after = 2
    gateway.talker.error = WorkerDied("the worker died")
    stream = await gateway.openai.chat.completions.create(model="talker", stream=True, **BODY)
    with pytest.raises(openai.APIError, match="the worker died"):
        async for _ in stream:
            pass


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_choice_that_never_finishes_is_an_error(gateway, streaming):
    gateway.talker.script = lambda batch: [TokenChunk(text="half")]
    response = await post(gateway, stream=streaming)
    assert "ended before it was complete" in response.text
    assert response.status_code == (200 if streaming else 500)


async def test_silence_is_filled_with_comments(serve):
    gateway = await serve(limits=Limits(sweep=0.01, comment_after=0.03))
    gateway.talker.hold_after = 0
    reader, writer = await raw(gateway, BODY | {"stream": True})
    seen = b""
    while seen.count(b": keep-alive\n\n") < 2:
        seen += await asyncio.wait_for(reader.read(4096), 5)
    handle = gateway.talker.handles[0]
    handle.feed(TokenChunk(text="late", finish_reason="stop"))
    handle.finish()
    while b"[DONE]" not in seen:
        seen += await asyncio.wait_for(reader.read(4096), 5)
    assert seen.count(b"HTTP/1.1 200") == 1
    assert b'"content":"late"' in seen
    writer.close()


async def test_an_error_after_a_comment_is_an_event(serve):
    gateway = await serve(limits=Limits(sweep=0.01, comment_after=0.03))
    gateway.talker.hold_after = 0
    reader, writer = await raw(gateway, BODY | {"stream": True})
    seen = b""
    while b": keep-alive" not in seen:
        seen += await asyncio.wait_for(reader.read(4096), 5)
    gateway.talker.handles[0].fail(WorkerDied("gone"))
    while b"[DONE]" not in seen:
        seen += await asyncio.wait_for(reader.read(4096), 5)
    assert b'"worker_died"' in seen
    writer.close()


BIG = "x" * 65536


async def stalled(gateway):
    """A stream with megabytes to say to a client that reads nothing; `say()` adds more."""
    gateway.talker.script = lambda batch: [TokenChunk(text=BIG)]
    gateway.talker.hold_after = 1
    reader, writer = await raw(gateway, BODY | {"stream": True}, receive_buffer=4096)
    await asyncio.wait_for(gateway.talker.started.wait(), 5)
    handle = gateway.talker.handles[0]
    exchange = next(iter(gateway.service.exchanges._all))

    async def say(text: str = BIG) -> None:
        handle.feed(TokenChunk(text=text))
        await asyncio.sleep(0)

    for _ in range(4000):
        await say()
        if exchange.sending_since and handle.buffered > 2:
            return exchange, say, writer, reader
    raise AssertionError("the client's buffers never filled")


async def test_a_client_that_reads_nothing_is_left_after_a_while(serve):
    gateway = await serve(limits=Limits(sweep=0.01, stalled_after=0.05))
    exchange, _, writer, _ = await stalled(gateway)
    await asyncio.wait_for(gateway.talker.cancelled.wait(), 5)
    await until(lambda: len(gateway.service.exchanges) == 0 and gateway.catalog.leases == 0)
    assert exchange.call.status == 499
    writer.close()


async def test_what_waits_for_a_client_that_does_not_read_is_bounded(serve):
    gateway = await serve(limits=Limits(sweep=0.01, buffered_chunks=50))
    _, say, writer, _ = await stalled(gateway)
    for _ in range(60):
        await say("y")
    await asyncio.wait_for(gateway.talker.cancelled.wait(), 5)
    await until(lambda: len(gateway.service.exchanges) == 0)
    writer.close()


async def test_a_slow_first_token_is_a_504(serve):
    gateway = await serve(limits=Limits(sweep=0.01), first_token_timeout_secs=0.03)
    gateway.talker.hold_after = 0
    response = await post(gateway)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    assert "first_token_timeout_secs" in response.json()["error"]["message"]
    assert gateway.talker.cancelled.is_set()


@pytest.mark.parametrize("streaming, status", [(False, 504), (True, 200)])
async def test_a_request_that_takes_too_long_ends_with_an_error(serve, streaming, status):
    gateway = await serve(limits=Limits(sweep=0.01))
    gateway.catalog.default.config.scheduler.request_timeout_secs = 0.05
    gateway.talker.hold_after = 2
    response = await post(gateway, stream=streaming)
    assert response.status_code == status
    assert "request_timeout_secs" in response.text
    assert gateway.talker.batches[0].deadline is not None
    if streaming:
        assert response.text.endswith("data: [DONE]\n\n")


async def test_a_run_that_is_ended_from_outside_says_so(gateway):
    gateway.talker.script = lambda batch: [TokenChunk(text="a"), TokenChunk(finish_reason="cancelled")]
    assert (await post(gateway)).json()["error"]["code"] == "cancelled"
    assert '"code":"cancelled"' in (await post(gateway, stream=True)).text


async def test_a_request_sent_before_the_stream_before_it_has_ended_is_answered_after_it(gateway):
    gateway.talker.hold_after = 2
    body = BODY | {"stream": True}
    reader, writer = await raw(gateway, body)
    await asyncio.wait_for(gateway.talker.started.wait(), 5)
    content = json.dumps(body).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
    )
    await writer.drain()
    gateway.talker.hold_after = None
    (held,) = gateway.talker.handles
    held.feed(TokenChunk(text=" France"))
    await asyncio.sleep(0.01)
    held.feed(TokenChunk(finish_reason="stop"))
    held.finish()
    answers = [await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5) for _ in range(2)]
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b" France") == answer.count(b"data: [DONE]") == 1
    writer.close()

"""Generations in progress: each one's run, its time limits, and the reasons to end it early.

One sweep a few times a second looks after all of them, so that a stream costs no timer of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from inferloom.errors import Cancelled, InferloomError, RequestTimeout
from inferloom.gateway.call import Call
from inferloom.gateway.log import one_line
from inferloom.runners.base import RunHandle
from inferloom.types import TokenChunk

ABORT = "inferloom.abort"  # the ASGI extension by which our server lets a connection be dropped
ON_LEAVE = "inferloom.on_leave"  # … and by which it tells that the client has closed it
WRITER = "inferloom.writer"  # … and by which it gives a `Writer` of the body of a scope's response, or None


class Writer(Protocol):
    """Writes parts of a body that has begun past ASGI's coroutines, which a token of a stream need not pay for."""

    @property
    def ready(self) -> bool:
        """Whether the client reads as fast as we write, and the body goes on."""
        ...

    def write(self, body: bytes) -> None: ...


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds of what keeps streams healthy; tests shorten them."""

    sweep: float = 0.25
    comment_after: float = 10.0  # silence after which an SSE comment is sent
    loading_after: float = (
        1.0  # a stream that waits so long for its model begins, and tells how far the load is
    )
    loading_every: float = 1.0  # at most
    stalled_after: float = 60.0  # a client that reads nothing for so long is left
    buffered_chunks: int = 8192  # unread chunks behind a client that does not read


class ClientLeft(Cancelled):
    """The client closed the connection, or reads nothing; nobody is there to be told."""


class Exchange:
    """One generation for one call: from the wait for its model to its last byte."""

    __slots__ = (
        "_unwatch",
        "call",
        "comment",
        "deadline",
        "error",
        "first_token_deadline",
        "handle",
        "headers",
        "last_sent",
        "limit",
        "sending_since",
        "streaming",
        "task",
        "wait",
        "waits_since",
    )

    def __init__(self, call: Call, *, streaming: bool, headers: list[tuple[bytes, bytes]]) -> None:
        self.call = call
        self.streaming = streaming
        self.headers = headers
        self.task = asyncio.current_task()
        self.handle: RunHandle | None = None
        self.error: InferloomError | None = None
        self.deadline = 0.0  # 0: none
        self.limit = ""  # what sets it
        self.first_token_deadline = 0.0
        self.last_sent = asyncio.get_running_loop().time()
        self.sending_since = 0.0
        self.comment: asyncio.Task[None] | None = None
        self.wait: Callable[[], str] | None = None  # tells how far the load is that this one waits for
        self.waits_since = 0.0
        on_leave = call.scope.get("extensions", {}).get(ON_LEAVE)
        self._unwatch: Callable[[], object] = (
            on_leave(self._left) if on_leave is not None else asyncio.create_task(self._watch()).cancel
        )

    async def _watch(self) -> None:
        """Wait for the client to leave, where no server of ours tells; a finished response ends the wait too."""
        while (await self.call.receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        self.abort(ClientLeft("The client closed the connection."))

    def abort(self, error: InferloomError) -> None:
        """End the generation with `error`, wherever it stands. The first reason counts."""
        if self.error is not None:
            return
        self.error = error
        if self.handle is not None:
            self.handle.cancel()
            self.handle.fail(error)
        if (self.handle is None or self.sending_since) and self.task is not None:
            self.task.cancel()

    def reason(self, caught: BaseException) -> BaseException:
        """Why it ended: the reason it was aborted for, where there is one, in place of what was caught."""
        if self.error is None:
            return caught
        if isinstance(caught, asyncio.CancelledError) and self.task is not None:
            self.task.uncancel()
        return self.error

    def settle(self) -> None:
        """Nothing more is waited for: neither the client's leaving nor the run. Before the last bytes are sent."""
        self._unwatch()
        self._unwatch = _nothing  # it refers to us: in a circle we would be left to the collector of cycles
        self.streaming = False  # no comment any more
        self.wait = None
        if self.comment is not None and not self.call.started:
            self.comment.cancel()  # it has not begun, and what follows is no stream
            self.comment = None
        if self.handle is not None and not self.handle.finished:
            self.handle.cancel()

    def waits_for(self, progress: Callable[[], str]) -> None:
        """From now on, until `waits_no_more`, it waits for its model: `progress` says what a comment tells of that."""
        self.wait = progress
        self.waits_since = asyncio.get_running_loop().time()

    def waits_no_more(self) -> None:
        self.wait = None

    # streaming
    async def start_stream(self) -> None:
        await self.call.start(200, self.headers)

    def write_directly(self, handle: RunHandle, frames_of: Callable[[Sequence[TokenChunk]], bytes]) -> None:
        """Have the frames of what comes written as it comes, where the server can; while the client does not keep up,
        and for the end of a choice, the consumer is woken."""
        writer_of = self.call.scope.get("extensions", {}).get(WRITER)
        writer: Writer | None = writer_of(self.call.scope) if writer_of is not None else None
        if writer is None:
            return
        time = asyncio.get_running_loop().time

        def write(chunks: list[TokenChunk]) -> bool:
            if self.sending_since or self.comment is not None or self.error is not None or not writer.ready:
                return False
            for chunk in chunks:
                if chunk.finish_reason is not None:
                    return False
            if frames := frames_of(chunks):
                writer.write(frames)
                self.last_sent = time()
            return True

        handle.divert(write)

    async def write(self, frames: bytes) -> None:
        """Send frames, noting how long the client lets us wait."""
        loop = asyncio.get_running_loop()
        self.sending_since = loop.time()
        if self.comment is not None:
            await self.comment
            self.comment = None
        await self.call.send({"type": "http.response.body", "body": frames, "more_body": True})
        self.last_sent = loop.time()
        self.sending_since = 0.0

    async def finish(self, frames: bytes) -> None:
        """The last frames."""
        self.settle()
        self.sending_since = asyncio.get_running_loop().time()
        if self.comment is not None:
            await self.comment
            self.comment = None
        await self.call.send({"type": "http.response.body", "body": frames})
        self.sending_since = 0.0

    async def drop(self) -> None:
        """Leave a client that has left, or does not read: what is buffered for it goes too."""
        if self.comment is not None:
            self.comment.cancel()
        abort = self.call.scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort()
            while (await self.call.receive())["type"] != "http.disconnect":
                pass

    async def _comment(self, text: str) -> None:
        if not self.call.started:
            await self.start_stream()
        body = f": {one_line(text)}\n\n".encode(errors="replace")
        await self.call.send({"type": "http.response.body", "body": body, "more_body": True})

    def _say(self, text: str, now: float) -> None:
        self.last_sent = now
        self.comment = asyncio.get_running_loop().create_task(self._comment(text))

    def sweep(self, now: float, limits: Limits) -> None:
        """Look after time limits and silence. Called a few times a second."""
        if self.sending_since:
            stalled = now - self.sending_since > limits.stalled_after
            if stalled or (self.handle is not None and self.handle.buffered > limits.buffered_chunks):
                self.abort(ClientLeft("The client does not read its stream."))
        elif self.deadline and now > self.deadline:
            self.abort(RequestTimeout(f"The answer took longer than {self.limit} allows."))
        elif self.first_token_deadline and now > self.first_token_deadline:
            self.abort(RequestTimeout("No first token came within first_token_timeout_secs."))
        elif self.streaming and self.error is None:
            self._break_silence(now, limits)

    def _break_silence(self, now: float, limits: Limits) -> None:
        """How far a load is that takes long, or a sign of life. A load that fails within `loading_after` has its own
        HTTP status, since the response has not begun."""
        silence = now - self.last_sent
        if self.comment is not None and not self.comment.done():
            if silence > limits.stalled_after:
                self.abort(ClientLeft("The client does not read its stream."))
        elif self.wait is not None and now - self.waits_since >= limits.loading_after:
            if silence >= limits.loading_every or not self.call.started:
                self._say(self.wait(), now)
        elif silence > limits.comment_after:
            self._say("keep-alive", now)


def _nothing() -> None:
    """There is nothing to be taken back."""


class Exchanges:
    """All generations in progress, and whatever else ends when its client leaves."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._all: set[Exchange] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._all)

    def add(self, exchange: Exchange) -> None:
        self._all.add(exchange)
        if self._timer is None:
            self._arm()

    def discard(self, exchange: Exchange) -> None:
        self._all.discard(exchange)

    async def hold(self, call: Call, work: Awaitable[object]) -> None:
        """Do something that is answered at once or not at all: given up with `ClientLeft` when the client leaves, and then
        no other request is harmed."""
        exchange = Exchange(call, streaming=False, headers=[])
        self.add(exchange)
        try:
            await work
        except (InferloomError, asyncio.CancelledError) as caught:
            raise exchange.reason(caught) from None
        finally:
            exchange.settle()
            self.discard(exchange)

    def abort_all(self, error: InferloomError) -> None:
        for exchange in list(self._all):
            exchange.abort(error)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.limits.sweep, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        if not self._all:
            return
        now = asyncio.get_running_loop().time()
        for exchange in list(self._all):
            exchange.sweep(now, self.limits)
        self._arm()

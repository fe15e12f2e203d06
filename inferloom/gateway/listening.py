"""uvicorn, fitted to the gateway: signals are ours, and what it says for itself comes in our envelope."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from inferloom.errors import InvalidRequest
from inferloom.gateway.call import Scope
from inferloom.gateway.exchange import ABORT, ON_LEAVE, WRITER
from inferloom.gateway.wire.errors import encode_error

KEEP_ALIVE_SECONDS = 75


class BodyWriter:
    """Chunks of one response's body, written as uvicorn writes them."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def ready(self) -> bool:
        cycle = self._cycle
        under_way = cycle.response_started and not cycle.response_complete and not cycle.disconnected
        return bool(under_way and cycle.chunked_encoding and not cycle.flow.write_paused)

    def write(self, body: bytes) -> None:
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 whose requests can drop their connection (a client that does not read keeps no buffer), are told when
    the client leaves, which spares each of them a task that waits for it, and can write without a coroutine."""

    _left: Callable[[], None] | None = None  # of the request that is being answered: there is one at a time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # nothing in it refers to a request: a circle would leave each of them to the collector of cycles
        self._extensions = {ABORT: transport.abort, ON_LEAVE: self.on_leave, WRITER: self.writer}

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item]

    def writer(self, scope: Scope) -> BodyWriter | None:
        """Of the response to that request; None while a later one is being read already (pipelining)."""
        cycle = self.cycle
        return BodyWriter(cycle) if cycle.scope is scope else None

    def on_leave(self, left: Callable[[], None]) -> Callable[[], None]:
        """Have `left` called once if the client closes the connection; calling what is returned takes that back."""
        self._left = left
        if self.transport.is_closing():
            self.loop.call_soon(self._tell)
        else:
            self.flow.resume_reading()  # it may be paused after a long body, and nothing would be noticed

        def withdraw() -> None:
            if self._left is left:
                self._left = None

        return withdraw

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._tell()

    def _tell(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            left()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is told so, in JSON."""
        body = encode_error(InvalidRequest(msg, code="invalid_http"))
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()


class Listener(uvicorn.Server):
    """A uvicorn server that leaves signals alone: who runs it says when to stop."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                backlog=4096,
            )
        )

        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_listening(self) -> None:
        """Refuse new connections from now on, and let those that are there finish."""
        self.should_exit = True
        for server in getattr(self, "servers", []):
            server.close()

"""Two ways to the same HTTP interface: a server over a socket, or the application inside this process."""

from __future__ import annotations

import asyncio
import http.client
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from inferloom.errors import ConfigError, InferloomError

AsgiApp = Callable[
    [dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]
CONNECT_SECONDS = 5.0
UNREAD_MESSAGES = 64  # of an application in this process; then it waits for its reader


class NoServer(InferloomError):
    """Nothing answers at the address."""

    status = 503
    code = "no_server"


class Reply(ABC):
    """A response whose body is read as it arrives. `close` before its end tells the other side to stop."""

    status: int

    @abstractmethod
    def lines(self) -> Iterator[bytes]:
        """The body, line by line, without line ends."""

    @abstractmethod
    def close(self) -> None: ...

    def json(self) -> Any:
        """The whole body as JSON; None where it is not JSON."""
        try:
            return json.loads(b"\n".join(self.lines()))
        except ValueError:
            return None
        finally:
            self.close()


class Transport(ABC):
    @abstractmethod
    def request(self, method: str, path: str, payload: Any = None) -> Reply: ...

    def close(self) -> None:
        return None


def _headers(api_key: str | None, body: bytes | None) -> dict[str, str]:
    headers = {"accept": "application/json, text/event-stream"}
    if body is not None:
        headers["content-type"] = "application/json"
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    return headers


# --- over a socket --------------------------------------------------------------------------------------------------


class HttpTransport(Transport):
    """One connection for each request to the server at `url` (`http://host:port`, a path prefix is kept)."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not the address of a server; write it like http://127.0.0.1:8080")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._api_key = api_key

    def request(self, method: str, path: str, payload: Any = None) -> Reply:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_SECONDS)
        body = None if payload is None else json.dumps(payload).encode()
        try:
            connection.connect()
            # Loading a model may take minutes before the first byte: from here on the server sets the limits.
            connection.sock.settimeout(None)
            connection.request(method, self._prefix + path, body, _headers(self._api_key, body))
            return _SocketReply(connection, connection.getresponse(), self.url)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NoServer(f"no Inferloom server answers at {self.url}: {error}") from None


class _SocketReply(Reply):
    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, url: str
    ) -> None:
        self.status = response.status
        self._connection = connection
        self._response = response
        self._url = url

    def lines(self) -> Iterator[bytes]:
        try:
            while line := self._response.readline():
                yield line.rstrip(b"\r\n")
        except (OSError, http.client.HTTPException):
            raise NoServer(f"the connection to {self._url} was lost in the middle of the answer") from None

    def close(self) -> None:
        self._response.close()
        self._connection.close()


# --- inside this process --------------------------------------------------------------------------------------------


class AppTransport(Transport):
    """Calls an ASGI application on an event loop that runs while a reply is read.

    `runner` belongs to the caller. Ctrl-C reaches the reader as KeyboardInterrupt, the application as a disconnect.
    """

    def __init__(self, app: AsgiApp, runner: asyncio.Runner, *, api_key: str | None = None) -> None:
        self._app = app
        self._runner = runner
        self._api_key = api_key

    def request(self, method: str, path: str, payload: Any = None) -> Reply:
        body = None if payload is None else json.dumps(payload).encode()
        headers = {
            "host": "127.0.0.1",
            "content-length": str(len(body or b"")),
            **_headers(self._api_key, body),
        }
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
            "state": {},
        }
        reply = _AppReply(self._runner, body or b"")
        reply.start(self._app, scope)
        return reply


class _AppReply(Reply):
    def __init__(self, runner: asyncio.Runner, body: bytes) -> None:
        self._runner = runner
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self._arrived: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(UNREAD_MESSAGES)
        self._task: asyncio.Task[None] | None = None

    def start(self, app: AsgiApp, scope: dict[str, Any]) -> None:
        self._runner.run(self._begin(app, scope))
        message = self._next()
        if message is None:
            raise InferloomError("the request ended without an answer")
        self.status = int(message["status"])

    async def _begin(self, app: AsgiApp, scope: dict[str, Any]) -> None:
        async def call() -> None:
            try:
                await app(scope, self._receive, self._send)
            finally:
                if not self._gone.is_set():
                    await self._arrived.put(None)

        self._task = asyncio.create_task(call())

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._gone.is_set():
            raise OSError("the reader has gone")  # as a server's socket would
        await self._arrived.put(message)

    def _next(self) -> dict[str, Any] | None:
        return self._runner.run(self._arrived.get())

    def lines(self) -> Iterator[bytes]:
        rest = b""
        while (message := self._next()) is not None:
            rest += message.get("body", b"")
            *whole, rest = rest.split(b"\n")
            for line in whole:
                yield line.rstrip(b"\r")
            if not message.get("more_body", False):
                break
        if rest:
            yield rest

    def close(self) -> None:
        async def end(task: asyncio.Task[None]) -> None:
            self._gone.set()
            while not self._arrived.empty():
                self._arrived.get_nowait()  # a sender that waits for room goes on, and its next message is refused
            await asyncio.wait([task], timeout=CONNECT_SECONDS)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        if self._task is not None:
            task, self._task = self._task, None
            self._runner.run(end(task))

"""Requests for measuring a server with: one connection a user, each streamed answer timed piece by piece.

Cheap on purpose (asyncio, httptools, no JSON of what is only counted): on a small machine the client runs on the
processors that it measures.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from inferloom.cli.transport import NoServer
from inferloom.errors import ConfigError

READ_BYTES = 1 << 16
CONNECT_SECONDS = 5.0


class Sample(msgspec.Struct):
    """One request. Times are of one monotonic clock, in seconds; `pieces` are when text arrived."""

    began: float
    ended: float = 0.0
    pieces: list[float] = []
    prompt_tokens: int = 0
    completion_tokens: int = 0  # as the server counted; the number of pieces where it does not
    error: str | None = None
    status: int = 200

    @property
    def first(self) -> float | None:
        """Seconds to the first text."""
        return self.pieces[0] - self.began if self.pieces else None

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def per_token(self) -> float | None:
        """Mean seconds between tokens after the first."""
        if self.completion_tokens < 2 or len(self.pieces) < 2:
            return None
        return (self.pieces[-1] - self.pieces[0]) / (self.completion_tokens - 1)


class Endpoint:
    """Where requests go: `url` is a server's address with or without its `/v1`."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not the address of a server; write it like http://127.0.0.1:8080")
        self.secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port or (443 if self.secure else 80)
        self.prefix = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self.prefix}"
        self._headers = f"host: {parts.netloc}\r\naccept: application/json, text/event-stream\r\n"
        if api_key:
            self._headers += f"authorization: Bearer {api_key}\r\n"

    def head(self, method: str, path: str, length: int) -> bytes:
        return (
            f"{method} {self.prefix}{path} HTTP/1.1\r\n{self._headers}"
            f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        ).encode()


class Connection:
    """A kept connection to an endpoint, for one request at a time. Opened again when the server has closed it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def stream(self, path: str, body: dict[str, Any]) -> Sample:
        """Post `body` and follow the answer's events. What goes wrong is told in the sample, not raised, but for a
        server that cannot be reached at all (`NoServer`)."""
        data = json.dumps(body).encode()
        reader, writer = await self._open()
        sample = Sample(began=time.perf_counter(), pieces=[])
        answer = _Answer(sample)
        try:
            writer.write(self._endpoint.head("POST", path, len(data)) + data)
            while not answer.done:
                chunk = await reader.read(READ_BYTES)
                if not chunk:
                    raise ConnectionError("the server closed the connection in the middle of the answer")
                answer.feed(chunk)
        except (OSError, httptools.HttpParserError) as error:
            sample.error = str(error) or type(error).__name__
            self.close()
        else:
            answer.settle()
            if not answer.keep_alive:
                self.close()
        sample.ended = time.perf_counter()
        return sample

    async def get(self, path: str) -> Any:
        """The JSON at `path`; None where the server has none."""
        reader, writer = await self._open()
        answer = _Answer(Sample(began=time.perf_counter(), pieces=[]))
        try:
            writer.write(self._endpoint.head("GET", path, 0))
            while not answer.done:
                chunk = await reader.read(READ_BYTES)
                if not chunk:
                    return None
                answer.feed(chunk)
        except OSError:
            return None
        finally:
            self.close()
        return answer.json() if answer.status < 400 else None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and not self._streams[0].at_eof():
            return self._streams
        self.close()
        to = self._endpoint
        context = ssl.create_default_context() if to.secure else None
        try:
            opening = asyncio.open_connection(to.host, to.port, ssl=context)
            self._streams = await asyncio.wait_for(opening, CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            raise NoServer(f"nothing answers at {to.url}: {error or 'timed out'}") from None
        return self._streams

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class _Answer:
    """A response as it arrives: httptools' callbacks, then lines, then events."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._whole: list[bytes] = []
        self.status = 0
        self.done = False
        self.keep_alive = False
        self._events = False
        self._now = 0.0

    def feed(self, data: bytes) -> None:
        self._now = time.perf_counter()
        self._parser.feed_data(data)

    # --- httptools calls these

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._events = value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        self.status = self._sample.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._events or self.status >= 400:
            self._whole.append(body)
            return
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def on_message_complete(self) -> None:
        self.done = True
        self.keep_alive = self._parser.should_keep_alive()

    # ---

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            return
        try:
            event = _decode(data)
        except msgspec.DecodeError as error:
            self._sample.error = f"an event that cannot be read: {error}"
            return
        if event.error is not None:
            self._sample.error = _said(event.error)
        if event.usage is not None:
            self._sample.prompt_tokens = event.usage.prompt_tokens
            self._sample.completion_tokens = event.usage.completion_tokens
        if any(choice.has_text for choice in event.choices):
            self._sample.pieces.append(self._now)

    def settle(self) -> None:
        sample = self._sample
        if self.status >= 400:
            body = self.json()
            said = _said(body.get("error")) if isinstance(body, dict) else None
            sample.error = said or f"status {self.status}"
        elif sample.error is None and not sample.pieces:
            sample.error = "an answer without text"
        sample.completion_tokens = sample.completion_tokens or len(sample.pieces)

    def json(self) -> Any:
        try:
            return json.loads(b"".join(self._whole))
        except ValueError:
            return None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None

    @property
    def has_text(self) -> bool:
        delta = self.delta
        return bool(self.text or (delta is not None and (delta.content or delta.reasoning_content)))


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode: Callable[[bytes], _Event] = msgspec.json.Decoder(_Event).decode


def _said(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error)

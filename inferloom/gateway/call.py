"""One HTTP request and its reply, on plain ASGI: the hot paths pay for nothing they don't use."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec

from inferloom.errors import InferloomError, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from inferloom.gateway.ids import unique
from inferloom.gateway.log import logger
from inferloom.gateway.wire.errors import encode_error, retry_after, status_of
from inferloom.types import Usage

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MAX_BODY = 32 << 20
CLIENT_LEFT = 499  # as nginx counts them; never sent
_JSON = (b"content-type", b"application/json")
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

encode = msgspec.json.Encoder().encode


class ClientGone(Exception):
    """The client closed the connection before its request was read."""


class Call:
    """What is known of one request: its id, headers and peer; and what was answered, for metrics and the log."""

    __slots__ = (
        "admitted",
        "begun",
        "endpoint",
        "error_code",
        "first_token",
        "leased",
        "loading",
        "model",
        "queued",
        "receive",
        "request_id",
        "scope",
        "send",
        "started",
        "status",
        "usage",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.request_id: bytes = request_id(scope["headers"])
        self.begun = time.perf_counter()
        self.started = False  # whether a response has begun
        self.status = 0
        self.endpoint = "other"
        self.model = ""
        self.error_code: str | None = None
        # when it came to its next phase, in time.perf_counter() seconds; 0: it did not
        self.queued = self.admitted = self.leased = self.first_token = 0.0
        self.loading = False  # whether its model was not loaded when it was admitted
        self.usage: Usage | None = None

    # reading
    async def body(self) -> bytes:
        """The whole body. Raises for more than 32 MiB, and for a content type that is not JSON."""
        self._check_headers()
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            parts = [body]
            size = len(body)
            while message.get("more_body"):
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                if size > MAX_BODY:
                    raise _too_large()
                parts.append(part)
            body = b"".join(parts)
        if len(body) > MAX_BODY:
            raise _too_large()
        if not body:
            raise InvalidRequest("The body is empty: send a JSON object.", code="invalid_json")
        return body

    async def no_body(self) -> None:
        """Read to the end of a request that says all by its path: an empty body or `{}`, as JSON like any other."""
        self._check_headers()
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if message.get("more_body") or message.get("body", b"").strip() not in (b"", b"{}"):
            raise InvalidRequest("This request takes nothing: send {}.")

    def _check_headers(self) -> None:
        content_type = b""
        for key, value in self.scope["headers"]:
            if key == b"content-type":
                content_type = value
            elif key == b"content-length" and value.isdigit() and int(value[:20]) > MAX_BODY:
                raise _too_large()
            elif key == b"content-encoding" and value.lower() not in (b"", b"identity"):
                raise UnsupportedMediaType("Compressed bodies are not read here; send plain JSON.")
        if content_type == b"application/json":
            return
        kind = content_type.partition(b";")[0].strip().lower()
        if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
            given = kind.decode("ascii", "replace")[:60] if kind else "none"
            raise UnsupportedMediaType(f"The content type must be application/json; it is {given}.")

    # replying
    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.started = True
        self.status = status
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"x-request-id", self.request_id), *headers],
            }
        )

    async def reply(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: tuple[bytes, bytes] = _JSON,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """A whole response at once."""
        await self.start(status, [content_type, (b"content-length", b"%d" % len(body)), *headers])
        await self.send({"type": "http.response.body", "body": body})

    async def json(
        self, answer: Any, *, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        await self.reply(encode(answer), status=status, headers=headers)

    async def error(
        self,
        error: BaseException,
        *,
        body: bytes | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """The error's envelope, or `body` in its place, with the status and headers that belong to the error."""
        self.note(error)
        more: Headers = list(headers)
        seconds = retry_after(error)
        if seconds is not None:
            more.append((b"retry-after", b"%d" % seconds))
        status = status_of(error)
        if status == 401:
            more.append((b"www-authenticate", b"Bearer"))
        elif status in (413, 415):
            more.append((b"connection", b"close"))  # the rest of the body is not read
        await self.reply(encode_error(error) if body is None else body, status=status, headers=more)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self.begun

    def note(self, error: BaseException) -> None:
        """Remember an error for metrics, and log it where it is ours: never its prompt, always its id."""
        extra = {"request_id": self.request_id.decode("ascii"), "model": self.model}
        if isinstance(error, InferloomError):
            self.error_code = error.code
            if error.status >= 500:
                logger.warning("%s: %s", error.code, error.message, extra=extra)
        else:
            self.error_code = "internal_error"
            logger.error("unexpected error in %s", self.endpoint, extra=extra, exc_info=error)


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's `x-request-id` where it is short and plain, else a new one."""
    for key, value in headers:
        if key == b"x-request-id" and _SANE_ID.fullmatch(value):
            return bytes(value)
    return b"req_" + unique().encode()


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {MAX_BODY >> 20} MiB; send less in one request.")

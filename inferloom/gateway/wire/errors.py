"""OpenAI's error envelope, made from our taxonomy."""

from __future__ import annotations

import math

import msgspec

from inferloom.errors import InferloomError


class ErrorBody(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct):
    error: ErrorBody


INTERNAL = "The server met an unexpected error; its log has the details under this request's id."


def error_body(error: BaseException) -> ErrorBody:
    """The error object of an exception. What is not of our taxonomy tells nothing of itself."""
    if isinstance(error, InferloomError):
        return ErrorBody(message=error.message, type=error.type, param=error.param, code=error.code)
    return ErrorBody(message=INTERNAL, type="server_error", code="internal_error")


def encode_error(error: BaseException) -> bytes:
    return msgspec.json.encode(ErrorEnvelope(error_body(error)))


def status_of(error: BaseException) -> int:
    return error.status if isinstance(error, InferloomError) else 500


def retry_after(error: BaseException) -> int | None:
    """Whole seconds for `Retry-After`: what the error knows, else 1 where trying again makes sense."""
    if not isinstance(error, InferloomError):
        return None
    if error.retry_after is not None:
        return max(1, math.ceil(error.retry_after))
    return 1 if error.status in (429, 503) else None

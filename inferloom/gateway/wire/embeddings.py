"""`POST /v1/embeddings`: the request, and rows of an answer."""

from __future__ import annotations

import array
import binascii
import sys
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inferloom.errors import InvalidRequest
from inferloom.gateway.wire.completions import split
from inferloom.gateway.wire.keeping import KeepAlive
from inferloom.gateway.wire.patience import TimeoutSecs
from inferloom.types import EmbedResult

MAX_INPUTS = 2048  # OpenAI's limit


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of an embedding request. `input`: a text, texts, token ids, or lists of token ids."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    keep_alive: KeepAlive | None = None
    timeout_secs: TimeoutSecs | None = None
    user: str | None = None


class Embedding(msgspec.Struct, kw_only=True):
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str
    index: int


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def inputs(request: EmbeddingRequest) -> list[str | list[int]]:
    found = split(request.input, field="input")
    if len(found) > MAX_INPUTS:
        raise InvalidRequest(
            f"`input` holds {len(found)} items, {MAX_INPUTS} are the limit; send several requests.",
            param="input",
        )
    if any(not item for item in found):
        raise InvalidRequest(
            "`input` holds an empty text or list; every input needs at least one token.", param="input"
        )
    return found


def rows(result: EmbedResult) -> list[array.array[float]]:
    """One float32 array per input."""
    values = array.array("f")
    values.frombytes(result.data)
    if sys.byteorder == "big":
        values.byteswap()
    width = result.dimensions
    return [values[start : start + width] for start in range(0, len(values), width)]


def encode_row(row: array.array[float], encoding: str) -> list[float] | str:
    """A row as JSON numbers, or as base64 of little-endian float32."""
    if encoding == "float":
        return row.tolist()
    if sys.byteorder == "big":
        row = row[:]
        row.byteswap()
    return binascii.b2a_base64(row.tobytes(), newline=False).decode()

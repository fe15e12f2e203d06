"""Server-sent events as a client reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Frame:
    """An event with its data, or a comment."""

    event: str = ""
    data: Any = None
    comment: str | None = None


async def frames(response: httpx.Response) -> AsyncIterator[Frame]:
    event, data = "", None
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield Frame(comment=line[1:].strip())
        elif line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            text = line.removeprefix("data: ")
            data = text if text == "[DONE]" else json.loads(text)
        elif not line and data is not None:
            yield Frame(event, data)
            event, data = "", None


class Stream:
    """A stream that is read one frame at a time, never waiting for longer than `patience` seconds."""

    def __init__(self, response: httpx.Response, *, patience: float = 10.0) -> None:
        self.response = response
        self._frames = frames(response)
        self._patience = patience

    async def next(self) -> Frame | None:
        """The next frame; None at the end."""
        async with asyncio.timeout(self._patience):
            return await anext(self._frames, None)

    async def until(self, **wanted: Any) -> list[Frame]:
        """Everything up to the first event whose data has these values."""
        seen: list[Frame] = []
        while (frame := await self.next()) is not None:
            seen.append(frame)
            if isinstance(frame.data, dict) and wanted.items() <= frame.data.items():
                return seen
        raise AssertionError(f"the stream ended without {wanted}: {seen}")

    async def rest(self) -> list[Frame]:
        seen: list[Frame] = []
        while (frame := await self.next()) is not None:
            seen.append(frame)
        return seen

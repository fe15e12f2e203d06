"""Several runs read as one: a completion request with a list of prompts."""

from __future__ import annotations

import asyncio

from inferloom.errors import InferloomError
from inferloom.runners.base import RunHandle
from inferloom.types import TokenChunk, Usage


class Merged:
    """`handles[k]`'s choice `i` becomes choice `k × n + i` of one run; the usages are added.

    The first error of a run ends all of them.
    """

    def __init__(self, handles: list[RunHandle], *, n: int) -> None:
        self._handles = handles
        self._n = n
        self._left = len(handles)
        self._usage = Usage()
        self.handle = RunHandle(on_cancel=self._cancel)
        self._pumps = [asyncio.create_task(self._pump(index)) for index in range(len(handles))]

    def _cancel(self) -> None:
        for handle in self._handles:
            handle.cancel()
        for pump in self._pumps:
            pump.cancel()

    async def _pump(self, which: int) -> None:
        handle = self._handles[which]
        try:
            while chunks := await handle.take():
                for chunk in chunks:
                    self._feed(chunk, which)
        except InferloomError as error:
            self._cancel()
            self.handle.fail(error)
            return
        self._left -= 1
        if not self._left:
            self.handle.finish()

    def _feed(self, chunk: TokenChunk, which: int) -> None:
        usage = chunk.usage
        if usage is not None:
            total = self._usage
            self._usage = chunk.usage = Usage(
                prompt_tokens=total.prompt_tokens + usage.prompt_tokens,
                completion_tokens=total.completion_tokens + usage.completion_tokens,
                cached_tokens=total.cached_tokens + usage.cached_tokens,
            )
        chunk.index += which * self._n
        self.handle.feed(chunk)

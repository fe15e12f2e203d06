"""The conformance kit finds what is wrong with a runner."""

from __future__ import annotations

import pytest

from inferloom.runners.base import ModelRunner, RunHandle, SessionRebuildCause
from inferloom.testing import check_runner
from inferloom.types import ExecuteBatch, RuntimeKind, TokenChunk, TransportKind, Usage


class Scripted(ModelRunner):
    """Answers everything with two words; subclasses do one thing wrong."""

    usage = Usage(prompt_tokens=1, completion_tokens=2)

    async def execute(self, batch: ExecuteBatch) -> RunHandle:
        handle = RunHandle()
        for index in range(batch.n):
            handle.feed(TokenChunk(index=index, text="two "))
            last = index == batch.n - 1
            handle.feed(
                TokenChunk(
                    index=index, text="words", finish_reason="stop", usage=self.usage if last else None
                )
            )
        handle.finish()
        return handle

    async def rebuild_session(self, cause: SessionRebuildCause) -> None:
        return None

    def runtime_kind(self) -> RuntimeKind:
        return RuntimeKind.CUSTOM

    def transport_kind(self) -> TransportKind:
        return TransportKind.IN_PROCESS


async def test_a_runner_of_ones_own_passes() -> None:
    await check_runner(Scripted())


async def test_an_answer_without_usage_is_found() -> None:
    class WithoutUsage(Scripted):
        usage = None  # type: ignore[assignment]

    with pytest.raises(AssertionError, match="usage comes once"):
        await check_runner(WithoutUsage())


async def test_choices_that_are_not_given_are_found() -> None:
    class OneChoice(Scripted):
        async def execute(self, batch: ExecuteBatch) -> RunHandle:
            batch.n = 1
            return await super().execute(batch)

    with pytest.raises(AssertionError, match="n = 2 gives the choices 0 and 1"):
        await check_runner(OneChoice())


async def test_an_answer_longer_than_asked_for_is_found() -> None:
    class TooLong(Scripted):
        usage = Usage(prompt_tokens=1, completion_tokens=9)

    with pytest.raises(AssertionError, match="max_tokens bounds"):
        await check_runner(TooLong())

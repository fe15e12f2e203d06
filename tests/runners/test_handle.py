"""An answer in progress, read as it comes or whole."""

from __future__ import annotations

import asyncio

import pytest

from inferloom.errors import WorkerDied
from inferloom.runners.base import RunHandle
from inferloom.types import TokenChunk


async def test_the_rest_is_handed_over_at_the_end_and_not_before() -> None:
    handle = RunHandle()
    rest = asyncio.create_task(handle.take_rest())
    for text in "abc":
        await asyncio.sleep(0)
        handle.feed(TokenChunk(text=text))
    await asyncio.sleep(0)
    assert not rest.done()
    handle.finish()
    assert "".join(chunk.text for chunk in await rest) == "abc"


async def test_the_rest_of_a_finished_run_is_there_at_once() -> None:
    handle = RunHandle()
    handle.feed(TokenChunk(text="a"))
    assert [chunk.text for chunk in await handle.take()] == ["a"]
    handle.finish()
    assert await handle.take_rest() == []


@pytest.mark.parametrize("waiting", [True, False])
async def test_an_error_is_the_rest_whatever_came_before_it(waiting: bool) -> None:
    handle = RunHandle()
    rest = asyncio.create_task(handle.take_rest())
    if waiting:
        await asyncio.sleep(0)
    handle.feed(TokenChunk(text="a"))
    handle.fail(WorkerDied("gone"))
    with pytest.raises(WorkerDied):
        await rest

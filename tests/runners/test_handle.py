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


async def test_a_sink_gets_what_arrives_in_one_turn_at_once_and_the_end_goes_to_the_consumer():
    handle, passed = RunHandle(), []

    def sink(chunks: list[TokenChunk]) -> bool:
        passed.append([chunk.text for chunk in chunks])
        return True

    handle.divert(sink)
    taking = asyncio.create_task(handle.take())
    await asyncio.sleep(0)
    for turn in ("ab", "c"):
        for text in turn:
            handle.feed(TokenChunk(text=text))
        await asyncio.sleep(0)
    handle.feed(TokenChunk(text="d"))
    handle.finish()
    assert [chunk.text for chunk in await taking] == ["d"]
    assert passed == [["a", "b"], ["c"]]


async def test_what_a_sink_refuses_is_left_to_the_consumer_in_order():
    handle = RunHandle()
    willing = True
    handle.divert(lambda chunks: willing)
    handle.feed(TokenChunk(text="passed"))
    await asyncio.sleep(0)
    willing = False
    for text in ("first", "second"):
        handle.feed(TokenChunk(text=text))
    assert [chunk.text for chunk in await handle.take()] == ["first", "second"]

"""What every `ModelRunner` must do, as checks that any implementation can be put through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from inferloom.errors import InferloomError
from inferloom.runners.base import ModelRunner, RunHandle, SessionRebuildCause
from inferloom.types import ChatMessage, ExecuteBatch, RuntimeKind, TokenChunk, TransportKind, Usage

Check = Callable[[ModelRunner, str], Awaitable[None]]

PATIENCE = 60.0  # seconds for any single answer


async def check_runner(runner: ModelRunner, *, model: str = "model") -> None:
    """Put a ready runner of a text model through every check; raises `AssertionError` with what is wrong.

    `model` is the name its requests carry. The runner is usable afterwards, and its session was rebuilt once.
    """
    for check in CHECKS:
        await check(runner, model)


async def says_what_it_is(runner: ModelRunner, model: str) -> None:
    assert isinstance(runner.runtime_kind(), RuntimeKind), "runtime_kind() is a RuntimeKind"
    assert isinstance(runner.transport_kind(), TransportKind), "transport_kind() is a TransportKind"
    assert isinstance(runner.gil_pinned(), bool), "gil_pinned() is a bool"
    cost = runner.estimate_cost_usd(_batch(model))
    assert cost is None or cost >= 0, "estimate_cost_usd() is None or not negative"
    if runner.transport_kind() is not TransportKind.REMOTE_NETWORK:
        assert runner.rate_limits() is None, "a local runner has no rate limits"


async def answers(runner: ModelRunner, model: str) -> None:
    begun = time.monotonic()
    handle = await runner.execute(_batch(model))
    assert isinstance(handle, RunHandle), "execute() returns a RunHandle"
    chunks = await _read(handle)
    assert chunks, "an answer has at least one chunk"
    assert time.monotonic() - begun < PATIENCE, "an answer comes"
    _check_choice(chunks, 0)
    usage = _usage(chunks)
    assert usage.prompt_tokens > 0, "usage counts the prompt's tokens"
    said = any(chunk.text for chunk in chunks)  # a model may end at once
    assert said <= usage.completion_tokens <= 8, (
        "usage counts the answer's tokens, and max_tokens bounds them"
    )
    assert await handle.take() == [], "after the end take() gives an empty list"


async def answers_with_choices(runner: ModelRunner, model: str) -> None:
    chunks = await _read(await runner.execute(_batch(model, n=2)))
    assert {chunk.index for chunk in chunks} == {0, 1}, "n = 2 gives the choices 0 and 1"
    for index in (0, 1):
        _check_choice([chunk for chunk in chunks if chunk.index == index], index)
    _usage(chunks)


async def answers_side_by_side(runner: ModelRunner, model: str) -> None:
    handles = await asyncio.gather(*(runner.execute(_batch(model, number)) for number in range(8)))
    for chunks in await asyncio.gather(*map(_read, handles)):
        _check_choice(chunks, 0)


async def counts_cached_tokens_within_the_prompt(runner: ModelRunner, model: str) -> None:
    for _ in range(2):
        usage = _usage(await _read(await runner.execute(_batch(model))))
        assert 0 <= usage.cached_tokens <= usage.prompt_tokens, "cached tokens are part of the prompt's"


async def cancels(runner: ModelRunner, model: str) -> None:
    handle = await runner.execute(_batch(model, max_tokens=64))
    handle.cancel()
    handle.cancel()  # twice is as good as once
    await _read(handle)  # ends, with whatever had arrived
    assert handle.finished, "a cancelled run ends"
    _check_choice(await _read(await runner.execute(_batch(model))), 0)


async def refuses_before_it_starts(runner: ModelRunner, model: str) -> None:
    card = runner.card()
    if card is None:
        return
    try:
        handle = await runner.execute(_batch(model, max_tokens=card.max_model_len + 1))
        await _read(handle)
    except InferloomError as error:
        assert 400 <= error.status < 500, "what cannot fit is the request's fault"
        return
    raise AssertionError("more tokens than the context holds are refused")


async def rebuilds_its_session(runner: ModelRunner, model: str) -> None:
    await runner.rebuild_session(SessionRebuildCause.CONFIG_CHANGED)
    _check_choice(await _read(await runner.execute(_batch(model))), 0)


CHECKS: tuple[Check, ...] = (
    says_what_it_is,
    answers,
    answers_with_choices,
    answers_side_by_side,
    counts_cached_tokens_within_the_prompt,
    cancels,
    refuses_before_it_starts,
    rebuilds_its_session,
)


def _batch(model: str, number: int = 0, *, n: int = 1, max_tokens: int = 8) -> ExecuteBatch:
    return ExecuteBatch(
        request_id=f"check-{number}",
        model=model,
        messages=(ChatMessage(role="user", content=f"Say something about the number {number}."),),
        n=n,
        max_tokens=max_tokens,
    )


async def _read(handle: RunHandle) -> list[TokenChunk]:
    async with asyncio.timeout(PATIENCE):
        return [chunk async for chunk in handle]


def _check_choice(chunks: list[TokenChunk], index: int) -> None:
    assert chunks, f"choice {index} has chunks"
    assert all(isinstance(chunk, TokenChunk) for chunk in chunks), "an answer is made of TokenChunks"
    ends = [chunk.finish_reason is not None for chunk in chunks]
    assert ends[-1], f"the last chunk of choice {index} has a finish_reason"
    assert sum(ends) == 1, f"one chunk of choice {index} has a finish_reason"


def _usage(chunks: list[TokenChunk]) -> Usage:
    given = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(given) == 1, "usage comes once"
    assert chunks[-1].usage is not None, "usage is on the request's last chunk"
    return given[0]

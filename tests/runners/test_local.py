"""A request through a runner over a real worker with a scripted model."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from worker_driving import becomes, gone

from inferloom.config.schema import DriverConfig, ModelConfig
from inferloom.errors import (
    Cancelled,
    ContextLengthExceeded,
    InvalidRequest,
    LoadFailed,
    RequestTimeout,
    Unsupported,
    WorkerDied,
)
from inferloom.runners.base import RunHandle, SessionRebuildCause, WeightSource
from inferloom.runners.local import LocalRunner
from inferloom.testing import check_runner
from inferloom.types import (
    ChatMessage,
    Constraint,
    EmbedBatch,
    ExecuteBatch,
    LoadProgress,
    Sampling,
    TokenChunk,
)
from inferloom.worker.pool import WorkerPool

Start = Callable[..., Awaitable[LocalRunner]]


def ask(text: str | None = "hello", **fields: Any) -> ExecuteBatch:
    return ExecuteBatch(request_id="r", model="m", text=text, **fields)


def chat(*messages: ChatMessage, **fields: Any) -> ExecuteBatch:
    return ExecuteBatch(
        request_id="r", model="m", messages=messages or (ChatMessage(role="user", content="hi"),), **fields
    )


async def read(handle: RunHandle) -> list[TokenChunk]:
    async with asyncio.timeout(20):
        return [chunk async for chunk in handle]


def text_of(chunks: list[TokenChunk], index: int = 0) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.index == index)


async def test_the_dummy_runner_passes_the_conformance_kit(start: Start) -> None:
    await check_runner(await start())


async def test_an_answer_is_the_script_and_its_usage_comes_last(start: Start) -> None:
    runner = await start(text="Grüße 👋!")
    chunks = await read(await runner.execute(ask("hello")))
    assert text_of(chunks) == "Grüße 👋!"
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, len("Grüße 👋!".encode()))
    assert [chunk for chunk in chunks[:-1] if chunk.usage] == []


async def test_pieces_never_end_within_a_character(start: Start) -> None:
    runner = await start(text="é👋" * 3)
    for chunk in await read(await runner.execute(ask())):
        assert "\ufffd" not in chunk.text


async def test_max_tokens_bounds_the_answer(start: Start) -> None:
    runner = await start(text="abcdef")
    chunks = await read(await runner.execute(ask(max_tokens=3)))
    assert (text_of(chunks), chunks[-1].finish_reason) == ("abc", "length")


async def test_a_stop_string_ends_a_choice_and_is_not_shown(start: Start) -> None:
    runner = await start(text="one two three")
    chunks = await read(await runner.execute(ask(stop=(" tw", "three"), n=2, ignore_eos=True)))
    assert [text_of(chunks, index) for index in (0, 1)] == ["one", "one"]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop", "stop"]
    await _idles(runner)


async def test_a_stop_string_that_never_completes_is_shown_at_the_end(start: Start) -> None:
    runner = await start(text="almost sto")
    assert text_of(await read(await runner.execute(ask(stop=("stop",))))) == "almost sto"


async def test_stop_token_ids_end_the_answer(start: Start) -> None:
    runner = await start(text="abc")
    chunks = await read(await runner.execute(ask(stop_token_ids=(ord("c"),))))
    assert (text_of(chunks), chunks[-1].finish_reason) == ("ab", "stop")


async def test_echo_repeats_the_prompt_with_its_logprobs(start: Start) -> None:
    runner = await start(text="xyz")
    chunks = await read(await runner.execute(ask("ab", echo=True, logprobs=1, max_tokens=1)))
    assert text_of(chunks) == "abx"
    tokens = [one for chunk in chunks for one in chunk.logprobs]
    assert [one.token for one in tokens] == ["a", "b", "x"]
    assert tokens[0].logprob is None and tokens[1].logprob is not None
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 1


async def test_echo_of_0_tokens_is_the_prompt_alone(start: Start) -> None:
    runner = await start()
    chunks = await read(await runner.execute(ask("ab", echo=True, max_tokens=0)))
    assert (text_of(chunks), chunks[-1].finish_reason) == ("ab", "length")


async def test_logprobs_hold_text_and_bytes(start: Start) -> None:
    runner = await start(text="é")
    tokens = [one for chunk in await read(await runner.execute(ask(logprobs=0))) for one in chunk.logprobs]
    assert b"".join(one.bytes for one in tokens) == "é".encode()
    assert all(one.top == () for one in tokens)


async def test_the_models_system_prompt_stands_in_where_the_request_has_none(start: Start) -> None:
    plain, prompted = await start(), await start(model={"system_prompt": "Be brief."})
    message = ChatMessage(role="user", content="hi")
    given = ChatMessage(role="system", content="Be brief.")

    async def prompt_tokens(runner: LocalRunner, *messages: ChatMessage) -> int:
        handle = await runner.execute(chat(*messages, max_tokens=1))
        await read(handle)
        return handle.prompt_tokens

    assert await prompt_tokens(prompted, message) == await prompt_tokens(plain, given, message)
    own = ChatMessage(role="developer", content="x")
    assert await prompt_tokens(prompted, own, message) == await prompt_tokens(plain, own, message)


async def test_too_long_a_prompt_is_refused_with_both_numbers(start: Start) -> None:
    runner = await start(model={"max_model_len": 16})
    with pytest.raises(ContextLengthExceeded, match=r"(?s)20 tokens.*16 tokens"):
        await runner.execute(ask("x" * 20))
    with pytest.raises(ContextLengthExceeded, match=r"(?s)10 tokens.*7 of answer.*16 tokens"):
        await runner.execute(ask("x" * 10, max_tokens=7))
    with pytest.raises(ContextLengthExceeded) as caught:
        await runner.execute(ask("x" * 20, max_tokens=7))
    assert caught.value.param == "prompt"


async def test_an_answer_without_a_limit_has_what_the_context_has_left(start: Start) -> None:
    runner = await start(text="abc", model={"max_model_len": 16})
    chunks = await read(await runner.execute(ask("x" * 10, ignore_eos=True)))
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.completion_tokens, chunks[-1].finish_reason) == (6, "length")


async def test_token_ids_outside_the_vocabulary_are_refused(start: Start) -> None:
    runner = await start()
    with pytest.raises(InvalidRequest, match="token id 5000 is not in this model's vocabulary"):
        await runner.execute(ask(None, token_ids=[1, 5000]))
    with pytest.raises(InvalidRequest, match="token id 6000 is not in this model's vocabulary"):
        await runner.execute(ask("x", stop_token_ids=(6000,)))
    with pytest.raises(InvalidRequest, match="token id 7000 is not in this model's vocabulary") as caught:
        await runner.execute(ask("x", sampling=Sampling(logit_bias={1: 1.0, 7000: -1.0})))
    assert caught.value.param == "logit_bias"


async def test_an_empty_prompt_without_a_bos_is_refused(start: Start) -> None:
    runner = await start()
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        await runner.execute(ask(""))


async def test_a_constraint_that_the_driver_cannot_keep_is_refused(start: Start) -> None:
    runner = await start()
    with pytest.raises(Unsupported, match="dummy"):
        await read(await runner.execute(chat(constraint=Constraint(kind="json_object"))))


async def test_a_cancelled_run_leaves_the_worker_within_a_step(start: Start) -> None:
    runner = await start()
    handle = await runner.execute(ask(ignore_eos=True))
    await handle.take()
    handle.cancel()
    assert (await runner.ask_stats()).running == 0
    assert runner.running == 0
    await read(handle)
    assert handle.finished


async def test_a_deadline_ends_a_run_with_a_timeout(start: Start) -> None:
    runner = await start(tokens_per_second=20.0)
    handle = await runner.execute(ask(ignore_eos=True, deadline=time.monotonic() + 0.2))
    with pytest.raises(RequestTimeout):
        await read(handle)
    await _idles(runner)


async def test_a_death_fails_every_run_with_the_signals_name(start: Start, pool: WorkerPool) -> None:
    deaths: list[Exception] = []
    runner = LocalRunner(
        ModelConfig(name="m", driver=DriverConfig(type="dummy", options={"tokens_per_second": 50.0})),
        pool,
        on_death=deaths.append,
    )
    await runner.load_weights(None, WeightSource(source=""))
    other = await start(text="undisturbed " * 5, tokens_per_second=100.0)
    handles = [await runner.execute(ask(ignore_eos=True)) for _ in range(3)]
    undisturbed = asyncio.create_task(read(await other.execute(ask())))
    await handles[0].take()
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGKILL)
    for handle in handles:
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await read(handle)
    assert len(deaths) == 1
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await runner.execute(ask())
    assert text_of(await undisturbed) == "undisturbed " * 5


async def test_a_rebuilt_session_answers_again(start: Start) -> None:
    runner = await start(text="back")
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGKILL)
    await becomes(lambda: runner.pid is None)
    await runner.rebuild_session(SessionRebuildCause.WORKER_DIED)
    assert text_of(await read(await runner.execute(ask()))) == "back"


async def test_closing_ends_runs_with_an_error_and_the_process(start: Start) -> None:
    runner = await start(tokens_per_second=50.0)
    pid = runner.pid
    assert pid is not None
    handle = await runner.execute(ask(ignore_eos=True))
    await handle.take()
    await runner.close()
    assert gone(pid)
    with pytest.raises(Cancelled, match="unloaded"):
        await read(handle)


async def test_a_failed_load_is_the_workers_own_reason_and_leaves_no_process(pool: WorkerPool) -> None:
    config = ModelConfig(name="m", driver=DriverConfig(type="dummy", options={"fail_load": "no luck"}))
    with pytest.raises(LoadFailed, match="no luck"):
        await LocalRunner(config, pool).load_weights(None, WeightSource(source=""))
    assert pool.workers == []


async def test_a_load_that_takes_too_long_is_given_up(pool: WorkerPool) -> None:
    config = ModelConfig(name="m", driver=DriverConfig(type="dummy", options={"load_secs": 30.0}))
    runner = LocalRunner(config, pool, load_timeout=0.3)
    with pytest.raises(LoadFailed, match=r"within 0\.3 s"):
        await runner.load_weights(None, WeightSource(source=""))
    assert pool.workers == []


async def test_a_worker_that_dies_while_loading_fails_the_load(pool: WorkerPool) -> None:
    config = ModelConfig(name="m", driver=DriverConfig(type="dummy", options={"load_secs": 30.0}))
    load = asyncio.create_task(LocalRunner(config, pool).load_weights(None, WeightSource(source="")))
    await becomes(lambda: bool(pool.workers))
    os.kill(pool.workers[0].pid, signal.SIGKILL)
    with pytest.raises(LoadFailed, match="died while loading: SIGKILL"):
        await load


async def test_a_worker_that_dies_while_the_tokenizer_is_read_fails_the_load(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = LocalRunner(ModelConfig(name="m", driver=DriverConfig(type="dummy")), pool)
    start = runner._start

    async def killed(*arguments: Any) -> Any:
        result = await start(*arguments)
        assert runner._process is not None
        runner._process.kill()
        await runner._process.exit
        return result

    monkeypatch.setattr(runner, "_start", killed)
    with pytest.raises(LoadFailed, match="SIGKILL"):
        await runner.load_weights(None, WeightSource(source=""))


async def test_the_progress_of_a_load_is_relayed(pool: WorkerPool) -> None:
    seen: list[LoadProgress] = []
    config = ModelConfig(name="m", driver=DriverConfig(type="dummy", options={"load_secs": 0.1}))
    runner = LocalRunner(config, pool)
    report = await runner.load_weights(None, WeightSource(source=""), seen.append)
    assert {progress.stage for progress in seen} == {"load"}
    assert report.pid == runner.pid
    assert report.seconds >= 0.1
    await runner.close()


async def test_embeddings_come_in_the_order_of_their_inputs(start: Start) -> None:
    runner = await start(kind="embed", dimensions=16)

    async def embed(*inputs: str | list[int], dimensions: int | None = None) -> list[bytes]:
        batch = EmbedBatch(request_id="r", model="m", inputs=list(inputs), dimensions=dimensions)
        result = await runner.embed(batch)
        size = 4 * result.dimensions
        return [result.data[at : at + size] for at in range(0, len(result.data), size)]

    both = await embed("a", "b")
    assert both == [*await embed("a"), *await embed([ord("b")])]
    (short,) = await embed("a", dimensions=4)
    assert len(short) == 16
    with pytest.raises(InvalidRequest, match="have 16"):
        await embed("a", dimensions=17)
    with pytest.raises(InvalidRequest, match="input 1 is empty"):
        await embed("a", "")
    with pytest.raises(InvalidRequest, match="makes embeddings"):
        await runner.execute(ask())


async def test_an_embedding_of_a_text_model_is_refused(start: Start) -> None:
    runner = await start()
    with pytest.raises(InvalidRequest, match="makes no embeddings"):
        await runner.embed(EmbedBatch(request_id="r", model="m", inputs=["a"]))


async def test_text_is_tokenized_and_back(start: Start) -> None:
    runner = await start()
    long = "äöü " * 10_000
    assert await runner.detokenize(await runner.tokenize(long)) == long
    with pytest.raises(InvalidRequest, match="vocabulary"):
        await runner.detokenize([1, -1])


async def _idles(runner: LocalRunner) -> None:
    """The worker has nothing left to do."""
    async with asyncio.timeout(10):
        while (await runner.ask_stats()).running:
            pass

"""Leases, loads and unloads over real workers with scripted models."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from worker_driving import becomes, descriptors, gone

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import State, Transition
from inferloom.config.schema import Config, DriverConfig, ModelConfig, ServerConfig
from inferloom.errors import (
    Cancelled,
    LoadFailed,
    ModelUnavailable,
    RequestTimeout,
    WorkerDied,
)
from inferloom.runners.base import ModelRunner, RunHandle
from inferloom.types import ExecuteBatch
from inferloom.worker.pool import WorkerPool

Open = Callable[..., Catalog]


@pytest.fixture
async def catalogs(pool: WorkerPool) -> AsyncIterator[Open]:
    """Makes catalogs of lazy dummies: `catalogs(a={…options}, server={…})`."""
    made: list[Catalog] = []

    def make(*, server: dict[str, Any] | None = None, **models: dict[str, Any]) -> Catalog:
        config = Config(
            server=ServerConfig(**(server or {})),
            model=[
                ModelConfig(name=name, lazy=True, driver=DriverConfig(type="dummy", options=options))
                for name, options in models.items()
            ],
        )
        made.append(Catalog(config, pool))
        return made[-1]

    yield make
    for catalog in made:
        await catalog.close()


def watch(catalog: Catalog) -> list[Transition]:
    seen: list[Transition] = []
    catalog.observe(seen.append)
    return seen


def states(seen: list[Transition]) -> list[State]:
    return [transition.new for transition in seen]


async def endless(runner: ModelRunner) -> RunHandle:
    """A run that has begun and does not end by itself."""
    handle = await runner.execute(
        ExecuteBatch(request_id="r", model="m", text="x", ignore_eos=True, max_tokens=30_000)
    )
    await handle.take()
    return handle


async def answer(catalog: Catalog, name: str | None = None) -> str:
    async with catalog.lease(name) as runner:
        handle = await runner.execute(ExecuteBatch(request_id="r", model="m", text="x"))
        return "".join([chunk.text async for chunk in handle])


def pid_of(catalog: Catalog, name: str) -> int:
    pid = catalog.status(name).pid
    assert pid is not None
    return pid


async def test_models_are_listed_in_the_configurations_order(catalogs: Open) -> None:
    catalog = catalogs(b={}, a={}, c={})
    assert [entry.id for entry in catalog.entries()] == ["b", "a", "c"]
    assert catalog.default.id == "b"


async def test_a_burst_on_an_unloaded_model_loads_once(catalogs: Open) -> None:
    catalog = catalogs(a={"text": "hi", "load_secs": 0.1})
    seen = watch(catalog)
    assert await asyncio.gather(*(answer(catalog) for _ in range(20))) == ["hi"] * 20
    assert states(seen) == [State.LOADING, State.WARMING, State.READY]
    assert catalog.status("a").loads == 1


async def test_what_is_not_lazy_is_loaded_at_the_start(pool: WorkerPool) -> None:
    models = [
        ModelConfig(name="eager", driver=DriverConfig(type="dummy")),
        ModelConfig(name="lazy", lazy=True, driver=DriverConfig(type="dummy")),
        ModelConfig(name="bad", driver=DriverConfig(type="dummy", options={"fail_load": "no luck"})),
    ]
    catalog = Catalog(Config(model=models), pool)
    await catalog.start()
    await becomes(
        lambda: catalog.status("eager").word == "loaded" and catalog.status("bad").state == "failed"
    )
    assert catalog.status("lazy").state is State.DECLARED
    assert catalog.status("bad").reason == "no luck"
    await catalog.close()


async def test_the_progress_of_a_load_is_in_the_status(catalogs: Open) -> None:
    catalog = catalogs(a={"load_secs": 0.3})
    load = asyncio.create_task(catalog.load("a"))
    await becomes(lambda: (catalog.status("a").fraction or 0) > 0)
    status = catalog.status("a")
    assert (status.word, status.state, status.stage) == ("reloading", State.LOADING, "load")
    await load
    assert catalog.status("a").stage is None


async def test_the_last_waiter_leaving_cancels_the_load(catalogs: Open, pool: WorkerPool) -> None:
    catalog = catalogs(a={"load_secs": 30.0})
    waiters = [asyncio.create_task(answer(catalog)) for _ in range(2)]
    await becomes(lambda: bool(pool.workers))
    pid = pool.workers[0].pid
    waiters[0].cancel()
    await asyncio.gather(waiters[0], return_exceptions=True)
    assert catalog.status("a").state is State.LOADING
    waiters[1].cancel()
    await asyncio.gather(waiters[1], return_exceptions=True)
    await becomes(lambda: catalog.status("a").state is State.UNLOADED)
    assert gone(pid)


async def test_a_request_that_comes_while_a_load_is_being_given_up_starts_another(catalogs: Open) -> None:
    catalog = catalogs(a={"text": "hi", "load_secs": 0.2})
    for ticks in range(12):
        given_up = asyncio.create_task(answer(catalog))
        for _ in range(ticks):
            await asyncio.sleep(0)
        given_up.cancel()
        assert await answer(catalog) == "hi"
        await catalog.unload("a")


async def test_each_request_waits_for_a_load_until_its_own_deadline(catalogs: Open) -> None:
    catalog = catalogs(a={"load_secs": 0.4})
    patient = asyncio.create_task(answer(catalog))
    with pytest.raises(RequestTimeout, match="not loaded in time"):
        async with catalog.lease("a", deadline=time.monotonic() + 0.05):
            pass
    assert await patient
    assert catalog.status("a").loads == 1


async def test_a_failed_load_is_retried_at_once_and_then_paced(catalogs: Open) -> None:
    catalog = catalogs(a={"fail_load": "no luck"})
    seen = watch(catalog)
    with pytest.raises(LoadFailed, match="no luck"):
        await answer(catalog)
    assert states(seen) == [State.LOADING, State.FAILED] * 2
    with pytest.raises(ModelUnavailable, match="no luck") as refused:
        await answer(catalog)
    assert refused.value.retry_after is not None and 0 < refused.value.retry_after <= 1
    assert len(seen) == 4
    status = catalog.status("a")
    assert (status.word, status.reason) == ("internal_error", "no luck")
    assert status.retry_at is not None and status.retry_at > time.monotonic()
    with pytest.raises(LoadFailed):
        await catalog.load("a")  # the operator's own call is not paced
    assert len(seen) == 6


async def test_a_crash_in_mid_stream_fails_that_stream_and_the_next_request_is_answered(
    catalogs: Open,
) -> None:
    catalog = catalogs(
        a={"text": "hi", "tokens_per_second": 200.0}, b={"text": "undisturbed", "tokens_per_second": 100.0}
    )
    await answer(catalog, "b")
    other = asyncio.create_task(answer(catalog, "b"))
    with pytest.raises(WorkerDied, match="SIGKILL"):
        async with catalog.lease("a") as runner:
            handle = await endless(runner)
            os.kill(pid_of(catalog, "a"), signal.SIGKILL)
            async for _ in handle:
                pass
    assert await answer(catalog, "a") == "hi"
    assert await other == "undisturbed"
    assert catalog.status("b").loads == 1


async def test_a_crashed_model_is_loaded_again_without_being_asked(catalogs: Open) -> None:
    catalog = catalogs(a={})
    await answer(catalog)
    seen = watch(catalog)
    os.kill(pid_of(catalog, "a"), signal.SIGSEGV)
    await becomes(lambda: catalog.status("a").loads == 2)
    assert states(seen) == [State.FAILED, State.LOADING, State.WARMING, State.READY]
    assert seen[0].reason is not None and "SIGSEGV" in seen[0].reason


async def test_crashes_in_a_row_are_paced_until_a_request_was_served(catalogs: Open) -> None:
    catalog = catalogs(a={})
    await catalog.load("a")
    os.kill(pid_of(catalog, "a"), signal.SIGKILL)
    await becomes(lambda: catalog.status("a").loads == 2)
    os.kill(pid_of(catalog, "a"), signal.SIGKILL)
    await becomes(lambda: catalog.status("a").state is State.FAILED)
    with pytest.raises(ModelUnavailable, match="SIGKILL") as refused:
        await answer(catalog)
    assert refused.value.retry_after is not None
    await catalog.load("a")
    await answer(catalog)
    os.kill(pid_of(catalog, "a"), signal.SIGKILL)
    await becomes(lambda: catalog.status("a").loads == 4)


async def test_unload_waits_for_leases_and_for_the_process_to_be_gone(catalogs: Open) -> None:
    catalog = catalogs(a={"text": "some words", "tokens_per_second": 100.0})
    seen = watch(catalog)
    running = asyncio.create_task(answer(catalog))
    await becomes(lambda: catalog.status("a").leases == 1)
    pid = pid_of(catalog, "a")
    unload = asyncio.create_task(catalog.unload("a"))
    await becomes(lambda: catalog.status("a").state is State.DRAINING)
    assert catalog.status("a").word == "loaded"
    status = await unload
    assert gone(pid)
    assert await running == "some words"
    assert (status.word, status.state) == ("unloaded", State.UNLOADED)
    assert states(seen)[3:] == [State.DRAINING, State.UNLOADING, State.UNLOADED]


async def test_a_request_that_meets_a_draining_model_waits_and_reloads_it(catalogs: Open) -> None:
    catalog = catalogs(a={"text": "some words", "tokens_per_second": 100.0})
    first = asyncio.create_task(answer(catalog))
    await becomes(lambda: catalog.status("a").leases == 1)
    unload = asyncio.create_task(catalog.unload("a"))
    await becomes(lambda: catalog.status("a").state is State.DRAINING)
    second = asyncio.create_task(answer(catalog))
    assert await first == await second == "some words"
    await unload
    assert catalog.status("a").loads == 2


async def test_a_forced_unload_ends_streams_with_an_error(catalogs: Open) -> None:
    catalog = catalogs(a={"tokens_per_second": 100.0})

    async def stream() -> None:
        async with catalog.lease("a") as runner:
            async for _ in await endless(runner):
                pass

    streaming = asyncio.create_task(stream())
    await becomes(lambda: catalog.status("a").leases == 1)
    drain = asyncio.create_task(catalog.unload("a"))  # one that waits …
    await becomes(lambda: catalog.status("a").state is State.DRAINING)
    await catalog.unload("a", force=True)  # … is overtaken
    with pytest.raises(Cancelled, match="unloaded"):
        await streaming
    await drain
    assert catalog.status("a").leases == 0


async def test_a_drain_that_takes_too_long_ends_streams(catalogs: Open) -> None:
    catalog = catalogs(a={"tokens_per_second": 100.0}, server={"drain_timeout_secs": 0.1})
    async with catalog.lease("a") as runner:
        handle = await endless(runner)
        await catalog.unload("a")
        with pytest.raises(Cancelled):
            async for _ in handle:
                pass


async def test_unloading_while_loading_stops_the_load(catalogs: Open, pool: WorkerPool) -> None:
    catalog = catalogs(a={"load_secs": 30.0})
    waiting = asyncio.create_task(catalog.load("a"))
    await becomes(lambda: bool(pool.workers))
    status = await catalog.unload("a")
    assert status.state is State.UNLOADED
    assert pool.workers == []
    with pytest.raises(ModelUnavailable, match="stopped by an unload"):
        await waiting


async def test_a_request_outlasts_an_unload_of_the_load_it_waits_for(
    catalogs: Open, pool: WorkerPool
) -> None:
    catalog = catalogs(a={"load_secs": 0.3, "text": "A"})
    waiting = asyncio.create_task(answer(catalog))
    await becomes(lambda: bool(pool.workers))
    await catalog.unload("a")
    assert not waiting.done()
    assert await waiting
    assert catalog.status("a").loads == 1


async def test_unloading_what_is_not_loaded_changes_nothing(catalogs: Open) -> None:
    catalog = catalogs(a={})
    for _ in range(2):
        assert (await catalog.unload("a")).word == "unloaded"


async def test_reload_is_idempotent_and_leaves_no_ghost(catalogs: Open) -> None:
    catalog = catalogs(a={})
    for _ in range(2):
        assert (await catalog.reload("a")).word == "loaded"
    assert catalog.status("a").loads == 1
    await catalog.unload("a")
    assert (await catalog.reload("a")).word == "loaded"
    assert [entry.id for entry in catalog.entries()] == ["a"]


async def test_the_default_model_never_moves(catalogs: Open) -> None:
    catalog = catalogs(a={"text": "A"}, b={"text": "B"})
    await answer(catalog, "b")
    await answer(catalog, "a")
    await catalog.unload("a")
    await catalog.unload("b")
    assert catalog.default.id == "a"
    assert await answer(catalog, "default") == "A"


async def test_unload_then_load_at_the_same_time_end_in_a_defined_state(catalogs: Open) -> None:
    catalog = catalogs(a={"text": "A"})
    for _ in range(10):
        await asyncio.gather(
            catalog.load("a"), catalog.unload("a"), answer(catalog), catalog.load("a"), return_exceptions=True
        )
        assert catalog.status("a").state in (State.READY, State.UNLOADED)
        assert await answer(catalog) == "A"


async def test_twenty_cycles_leak_nothing(catalogs: Open, pool: WorkerPool) -> None:
    catalog = catalogs(a={})
    await catalog.load("a")
    await catalog.unload("a")
    before = descriptors()
    for _ in range(20):
        await catalog.load("a")
        await catalog.unload("a")
    await becomes(lambda: descriptors() == before)
    assert pool.workers == []


async def test_shutting_down_drains_and_gives_out_no_more_leases(catalogs: Open) -> None:
    catalog = catalogs(a={"text": "some words", "tokens_per_second": 100.0})
    running = asyncio.create_task(answer(catalog))
    await becomes(lambda: catalog.status("a").leases == 1)
    assert await catalog.drain(10)
    assert await running == "some words"
    with pytest.raises(ModelUnavailable, match="shutting down"):
        catalog.lease("a")


async def test_a_drain_says_when_its_time_is_up(catalogs: Open) -> None:
    catalog = catalogs(a={"tokens_per_second": 10.0})
    async with catalog.lease("a") as runner:
        handle = await endless(runner)
        assert not await catalog.drain(0.05)
        handle.cancel()


async def test_closing_while_everything_is_going_on_ends_every_process(pool: WorkerPool) -> None:
    models = [
        ModelConfig(name="slow", driver=DriverConfig(type="dummy", options={"load_secs": 30.0})),
        ModelConfig(name="busy", driver=DriverConfig(type="dummy", options={"tokens_per_second": 10.0})),
    ]
    catalog = Catalog(Config(model=models), pool)
    await catalog.start()
    async with catalog.lease("busy") as runner:
        handle = await endless(runner)
        await catalog.close()
        with pytest.raises(Cancelled):
            async for _ in handle:
                pass
    assert pool.workers == []


async def test_requests_that_wait_for_a_draining_model_do_not_reload_it_while_the_server_closes(
    catalogs: Open, pool: WorkerPool
) -> None:
    catalog = catalogs(a={"tokens_per_second": 10.0})
    async with catalog.lease("a") as runner:
        handle = await endless(runner)
        unloading = asyncio.create_task(catalog.unload("a"))
        await becomes(lambda: catalog.status("a").state is State.DRAINING)
        waiting = asyncio.create_task(answer(catalog))
        await becomes(lambda: catalog.status("a").waiting == 1)
        await catalog.close()
        with pytest.raises(Cancelled):
            await handle.take_rest()
    await unloading
    with pytest.raises(ModelUnavailable, match="shutting down"):
        await waiting
    assert catalog.status("a").loads == 1
    assert pool.workers == []


async def test_a_defect_while_loading_is_a_failure_and_not_a_hang(pool: WorkerPool) -> None:
    def broken(*_: Any) -> ModelRunner:
        raise KeyError("oops")

    model = ModelConfig(name="a", lazy=True, driver=DriverConfig(type="dummy"))
    catalog = Catalog(Config(model=[model]), pool, factory=broken)
    with pytest.raises(LoadFailed, match="KeyError"):
        await answer(catalog)
    assert catalog.status("a").state is State.FAILED

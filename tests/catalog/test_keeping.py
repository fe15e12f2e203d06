"""How long an idle model stays: keep_alive and pin."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.keeping import Keeping
from inferloom.catalog.lifecycle import State, Transition
from inferloom.config.schema import Config, DriverConfig, ModelConfig, ServerConfig
from inferloom.types import ExecuteBatch
from inferloom.worker.pool import WorkerPool


def catalog_of(pool: WorkerPool, *, keep_alive: float | str = -1, **model: Any) -> Catalog:
    options = model.pop("options", {})
    config = ModelConfig(name="a", lazy=True, driver=DriverConfig(type="dummy", options=options), **model)
    return Catalog(Config(server=ServerConfig(keep_alive=keep_alive), model=[config]), pool)


async def answer(catalog: Catalog, **lease: Any) -> None:
    async with catalog.lease("a", **lease) as runner:
        handle = await runner.execute(ExecuteBatch(request_id="r", model="a", text="x"))
        assert [chunk async for chunk in handle]


def unloaded(catalog: Catalog) -> Callable[[], bool]:
    return lambda: catalog.status("a").state is State.UNLOADED


async def test_an_idle_model_goes_when_its_time_is_over(pool: WorkerPool) -> None:
    catalog = catalog_of(pool, keep_alive="50ms")
    seen: list[Transition] = []
    catalog.observe(seen.append)
    await answer(catalog)
    status = catalog.status("a")
    assert status.keep_alive == 0.05
    assert status.expires_at is not None and status.expires_at <= time.monotonic() + 0.05
    await becomes(unloaded(catalog))
    (going,) = [change for change in seen if change.new is State.DRAINING]
    assert going.cause == "expired"
    await answer(catalog)
    await catalog.close()


async def test_the_models_own_time_goes_before_the_servers_and_the_requests_before_both(
    pool: WorkerPool,
) -> None:
    catalog = catalog_of(pool, keep_alive=-1)
    assert catalog.status("a").keep_alive == math.inf
    await catalog.change("a", keep_alive=0)
    assert catalog.status("a").keep_alive == 0
    await answer(catalog, keep_alive=math.inf)
    assert catalog.status("a").expires_at is None
    assert catalog.status("a").state is State.READY
    await answer(catalog, keep_alive=60.0)
    expires = catalog.status("a").expires_at
    assert expires is not None and expires > time.monotonic() + 50
    await answer(catalog)
    await becomes(unloaded(catalog))
    await catalog.close()


async def test_zero_unloads_after_the_request_and_not_after_a_load(pool: WorkerPool) -> None:
    catalog = catalog_of(pool, keep_alive=0)
    await catalog.load("a")
    await asyncio.sleep(0.05)
    assert catalog.status("a").state is State.READY
    await answer(catalog)
    await becomes(unloaded(catalog))
    await catalog.close()


async def test_a_loaded_model_that_nobody_asks_goes_too(pool: WorkerPool) -> None:
    catalog = catalog_of(pool, keep_alive=0.05)
    await catalog.load("a")
    await becomes(unloaded(catalog))
    await catalog.close()


async def test_time_does_not_run_while_a_request_is_answered(pool: WorkerPool) -> None:
    catalog = catalog_of(pool, keep_alive=0.02)
    async with catalog.lease("a"):
        await asyncio.sleep(0.1)
        assert catalog.status("a").state is State.READY
        assert catalog.status("a").expires_at is None
    await becomes(unloaded(catalog))
    await catalog.close()


async def test_a_slow_load_is_not_cut_by_a_short_time(pool: WorkerPool) -> None:
    catalog = catalog_of(pool, keep_alive=0.01, options={"load_secs": 0.2})
    await asyncio.gather(*(answer(catalog) for _ in range(5)))
    await becomes(unloaded(catalog))
    assert catalog.status("a").loads == 1
    await catalog.close()


async def test_a_pinned_model_stays_until_it_is_unpinned(pool: WorkerPool) -> None:
    catalog = catalog_of(pool, keep_alive=0.02, pin=True)
    await answer(catalog)
    await asyncio.sleep(0.1)
    assert catalog.status("a").state is State.READY
    assert catalog.pin("a", False).pinned is False
    await becomes(unloaded(catalog))
    assert catalog.pin("a", True).pinned
    assert catalog.status("a").state is State.UNLOADED
    await catalog.close()


@pytest.mark.parametrize("rounds", [10])
async def test_requests_at_the_moment_of_expiry_are_all_answered(pool: WorkerPool, rounds: int) -> None:
    catalog = catalog_of(pool, keep_alive=0.001)
    for _ in range(rounds):
        await asyncio.gather(*(answer(catalog) for _ in range(3)))
        await asyncio.sleep(0.001)
    await catalog.close()


async def test_the_longest_of_the_names_times_counts() -> None:
    now, fired = [100.0], []
    keeping = Keeping(lambda: fired.append(1), clock=lambda: now[0])
    assert keeping.until is None
    keeping.used("short", keep=5.0)
    keeping.start()
    assert keeping.until == 105.0
    keeping.used("long", keep=60.0)
    keeping.start()
    assert keeping.until == 160.0
    keeping.used("long", keep=1.0)
    keeping.start()
    assert keeping.until == 105.0
    keeping.used("ever", keep=math.inf)
    keeping.start()
    assert keeping.until is None
    keeping.forget()
    assert not fired

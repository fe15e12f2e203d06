"""A loaded model is replaced while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from factories.checkpoints import make_checkpoint
from worker_driving import becomes, gone

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import ModelStatus, State, Transition
from inferloom.config.schema import Config, DriverConfig, ModelConfig, RuntimeConfig
from inferloom.errors import InferloomError, LoadFailed, ModelUnavailable
from inferloom.runners.base import ModelRunner
from inferloom.types import ExecuteBatch
from inferloom.worker.pool import WorkerPool


def driver(text: str, **options: object) -> DriverConfig:
    return DriverConfig(type="dummy", options={"text": text, **options})


@pytest.fixture
async def catalog(pool: WorkerPool) -> AsyncIterator[Catalog]:
    """One dummy `a` of 40 of 100 MiB that answers `old`."""
    model = ModelConfig(name="a", lazy=True, driver=driver("old", weights_mb=40))
    catalog = Catalog(Config(runtime=RuntimeConfig(memory_budget="100MiB"), model=[model]), pool)
    yield catalog
    await catalog.close()
    assert catalog.ledger.held() == []


async def said(runner: ModelRunner) -> str:
    handle = await runner.execute(ExecuteBatch(request_id="r", model="a", text="x"))
    return "".join([chunk.text async for chunk in handle])


async def answer(catalog: Catalog) -> str:
    async with catalog.lease("a") as runner:
        return await said(runner)


async def test_the_new_one_is_loaded_beside_the_old_and_takes_its_requests(
    catalog: Catalog, pool: WorkerPool
) -> None:
    await catalog.load("a")
    seen: list[Transition] = []
    catalog.observe(seen.append)
    async with catalog.lease("a") as before:
        change = asyncio.create_task(catalog.change("a", driver=driver("new", weights_mb=50)))
        await becomes(lambda: len(pool.workers) == 2)
        assert catalog.status("a").word == "loaded"
        await becomes(lambda: [one.cause for one in seen] == ["replaced"])
        assert await answer(catalog) == "new"
        assert await said(before) == "old"
        assert not change.done()
    status = await change
    assert (status.state, status.loads, status.replacing) == (State.READY, 2, False)
    assert len(pool.workers) == 1
    assert catalog.ledger.used("cpu") == 50 << 20
    assert [(one.old, one.new) for one in seen] == [(State.READY, State.READY)]


async def test_without_room_for_both_the_old_one_goes_first(catalog: Catalog, pool: WorkerPool) -> None:
    await catalog.load("a")
    most = 0

    def count(_: Transition) -> None:
        nonlocal most
        most = max(most, len(pool.workers))

    catalog.observe(count)
    status = await catalog.change("a", driver=driver("new", weights_mb=70))
    assert (status.state, most) == (State.READY, 1)
    assert await answer(catalog) == "new"


async def test_a_neighbour_does_not_go_for_a_change_that_fits_where_the_old_one_was(pool: WorkerPool) -> None:
    pages = {"kv_mb": 60, "kv_least_mb": 10}
    models = [
        ModelConfig(name="a", lazy=True, driver=driver("old", weights_mb=30, **pages)),
        ModelConfig(name="b", lazy=True, driver=driver("b", weights_mb=40)),
    ]
    catalog = Catalog(Config(runtime=RuntimeConfig(memory_budget="100MiB"), model=models), pool)
    await catalog.load("b")
    neighbour = catalog.status("b").pid
    catalog.pin("b", True)
    await catalog.load("a")
    catalog.pin("b", False)
    await catalog.change("a", driver=driver("new", weights_mb=35, **pages))
    assert await answer(catalog) == "new"
    assert catalog.status("b").pid == neighbour
    await catalog.close()


@pytest.mark.parametrize("size", [40, 70])
async def test_a_failing_successor_leaves_the_old_one(catalog: Catalog, pool: WorkerPool, size: int) -> None:
    await catalog.load("a")
    pid = catalog.status("a").pid
    with pytest.raises(LoadFailed, match="no luck"):
        await catalog.change("a", driver=driver("new", weights_mb=size, fail_load="no luck"))
    assert await answer(catalog) == "old"
    assert (catalog.status("a").pid == pid) == (size == 40)
    assert len(pool.workers) == 1
    assert catalog.ledger.used("cpu") == 40 << 20


async def test_an_unload_while_the_successor_loads_stops_it(catalog: Catalog, pool: WorkerPool) -> None:
    await catalog.load("a")
    change = asyncio.create_task(catalog.change("a", driver=driver("new", weights_mb=40, load_secs=30.0)))
    await becomes(lambda: len(pool.workers) == 2)
    assert catalog.status("a").replacing
    status = await catalog.unload("a")
    with pytest.raises(ModelUnavailable, match="stopped by an unload"):
        await change
    assert (status.state, pool.workers) == (State.UNLOADED, [])
    assert await answer(catalog) == "old"


async def test_a_cancelled_replacement_leaves_the_old_one(catalog: Catalog, pool: WorkerPool) -> None:
    await catalog.load("a")
    change = asyncio.create_task(catalog.change("a", driver=driver("new", weights_mb=40, load_secs=30.0)))
    await becomes(lambda: len(pool.workers) == 2)
    change.cancel()
    await asyncio.gather(change, return_exceptions=True)
    await becomes(lambda: len(pool.workers) == 1)
    assert await answer(catalog) == "old"
    assert catalog.ledger.used("cpu") == 40 << 20


async def test_requests_come_through_any_number_of_replacements(catalog: Catalog, pool: WorkerPool) -> None:
    words = {"old"}
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            assert await answer(catalog) in words

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    for number in range(6):
        words.add(f"new {number}")
        await catalog.change("a", driver=driver(f"new {number}", weights_mb=40 + 20 * (number % 2)))
        assert len(pool.workers) <= 1
    stop.set()
    await asyncio.gather(*asking)
    assert await answer(catalog) == "new 5"


async def test_two_changes_at_once_are_made_one_after_the_other(catalog: Catalog, pool: WorkerPool) -> None:
    await catalog.load("a")
    changes = (catalog.change("a", driver=driver(f"new {n}", weights_mb=40)) for n in range(3))
    await asyncio.gather(*changes)
    assert len(pool.workers) == 1
    assert (await answer(catalog)).startswith("new")


async def test_a_change_waits_for_one_that_is_still_loading_in_the_place_of_the_old(
    catalog: Catalog, pool: WorkerPool
) -> None:
    await catalog.load("a")
    options = {"weights_mb": 70, "load_secs": 0.2, "fail_load": "no luck"}
    first = asyncio.create_task(catalog.change("a", driver=driver("first", **options)))
    await becomes(lambda: catalog.status("a").state is State.LOADING)
    second = asyncio.create_task(catalog.change("a", driver=driver("second", weights_mb=50)))
    with pytest.raises(LoadFailed, match="no luck"):
        await first
    await second
    assert await answer(catalog) == "second"
    assert (len(pool.workers), catalog.ledger.used("cpu")) == (1, 50 << 20)
    assert len(catalog.residences()) == 1


async def changing_in_its_place(catalog: Catalog) -> asyncio.Task[ModelStatus]:
    """A change for which the old model has gone, and whose new one loads for long."""
    await catalog.load("a")
    change = asyncio.create_task(catalog.change("a", driver=driver("new", weights_mb=70, load_secs=30.0)))
    await becomes(lambda: catalog.ledger.used("cpu") == 70 << 20)
    return change


async def test_a_change_that_is_cancelled_after_the_old_one_went_brings_that_back(
    catalog: Catalog, pool: WorkerPool
) -> None:
    change = await changing_in_its_place(catalog)
    change.cancel()
    await asyncio.gather(change, return_exceptions=True)
    assert await answer(catalog) == "old"
    await becomes(lambda: len(pool.workers) == 1 and len(catalog.residences()) == 1)
    assert catalog.ledger.used("cpu") == 40 << 20


async def test_a_load_of_a_model_that_is_replaced_meanwhile_loads_what_took_its_place(
    catalog: Catalog, pool: WorkerPool
) -> None:
    async with catalog.lease("a"):
        change = asyncio.create_task(catalog.change("a", driver=driver("new", weights_mb=70)))
        await becomes(lambda: catalog.status("a").state is State.DRAINING)
        load = asyncio.create_task(catalog.load("a"))
        await asyncio.sleep(0)
    status, _ = await asyncio.gather(load, change)
    assert status.state is State.READY
    assert await answer(catalog) == "new"
    assert (len(pool.workers), catalog.ledger.used("cpu")) == (1, 70 << 20)
    assert len(catalog.residences()) == 1


async def test_a_reload_replaces_what_was_written_anew_and_nothing_else(
    pool: WorkerPool, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny", "llama")
    model = ModelConfig(name="a", lazy=True, source=checkpoint.folder, driver=driver("x"))
    catalog = Catalog(Config(model=[model]), pool)
    await catalog.load("a")
    first = catalog.status("a").pid
    await catalog.reload("a")
    assert catalog.status("a").pid == first
    config = Path(checkpoint.folder) / "config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    status = await catalog.reload("a")
    assert (status.state, status.loads) == (State.READY, 2)
    assert first is not None and status.pid != first and gone(first)
    Path(checkpoint.weights[0]).unlink()  # noqa: ASYNC240 - nothing else runs
    with pytest.raises(InferloomError):
        await catalog.reload("a")
    assert catalog.status("a").pid == status.pid
    assert await answer(catalog)
    await catalog.close()


async def test_an_unload_while_the_old_one_makes_room_is_not_undone_by_the_change(
    catalog: Catalog, pool: WorkerPool
) -> None:
    await catalog.load("a")
    async with catalog.lease("a"):
        change = asyncio.create_task(catalog.change("a", driver=driver("new", weights_mb=70)))
        await becomes(lambda: catalog.status("a").state is State.DRAINING)
        unload = asyncio.create_task(catalog.unload("a"))
        await asyncio.sleep(0)
    status = await unload
    with pytest.raises(ModelUnavailable, match="stopped by an unload"):
        await change
    assert (status.state, pool.workers, catalog.ledger.held()) == (State.UNLOADED, [], [])
    assert catalog.status("a").state is State.UNLOADED
    assert await answer(catalog) == "old"


async def test_an_unload_while_the_successor_loads_in_the_place_of_the_old_brings_neither_back(
    catalog: Catalog, pool: WorkerPool
) -> None:
    change = await changing_in_its_place(catalog)
    status = await catalog.unload("a")
    with pytest.raises(ModelUnavailable, match="stopped by an unload"):
        await change
    assert (status.state, pool.workers, catalog.ledger.held()) == (State.UNLOADED, [], [])
    await becomes(lambda: len(catalog.residences()) == 1)
    assert catalog.status("a").state is State.UNLOADED
    assert await answer(catalog) == "old"


async def test_an_unload_while_the_old_one_is_brought_back_leaves_it_unloaded(
    catalog: Catalog, pool: WorkerPool
) -> None:
    await catalog.change("a", driver=driver("old", weights_mb=40, load_secs=0.2))
    await catalog.load("a")
    change = asyncio.create_task(
        catalog.change("a", driver=driver("new", weights_mb=70, fail_load="no luck"))
    )
    old = catalog.residences()[0]
    await becomes(lambda: old.state is State.LOADING)
    status = await catalog.unload("a")
    with pytest.raises(LoadFailed, match="no luck"):
        await change
    assert (status.state, pool.workers) == (State.UNLOADED, [])


async def test_an_unload_of_what_was_just_replaced_waits_for_the_old_worker_too(
    catalog: Catalog, pool: WorkerPool
) -> None:
    await catalog.load("a")
    lease = catalog.lease("a")
    await lease.__aenter__()
    change = asyncio.create_task(catalog.change("a", driver=driver("new", weights_mb=50)))
    await becomes(lambda: catalog.ledger.used("cpu") == 90 << 20 and not catalog.status("a").replacing)
    status = await catalog.unload("a", force=True)
    assert (status.state, pool.workers, catalog.ledger.held()) == (State.UNLOADED, [], [])
    await change
    await lease.__aexit__(None, None, None)


async def test_an_unload_of_a_name_that_leaves_its_worker_to_others_is_not_undone_by_the_change(
    pool: WorkerPool, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "tiny", "llama").folder
    common = {"lazy": True, "source": source, "driver": driver("x", weights_mb=60)}
    twins = [ModelConfig(name="a", **common), ModelConfig(name="twin", **common)]
    catalog = Catalog(Config(runtime=RuntimeConfig(memory_budget="100MiB"), model=twins), pool)
    await catalog.load("a")
    slow = driver("new", weights_mb=60, load_secs=30.0)
    change = asyncio.create_task(catalog.change("a", driver=slow))
    await becomes(lambda: len(catalog.residences()) == 2 and catalog.residences()[1].state is State.LOADING)
    await becomes(lambda: catalog.residences()[1].reservation is not None)
    status = await catalog.unload("a")
    with pytest.raises(ModelUnavailable, match="stopped by an unload"):
        await change
    assert (status.state, pool.workers, catalog.ledger.held()) == (State.UNLOADED, [], [])
    assert (await catalog.load("a")).shares == ("twin",)
    await catalog.close()


async def test_a_change_as_a_load_begins_leaves_no_worker_that_answers_for_nobody(
    catalog: Catalog, pool: WorkerPool
) -> None:
    change = asyncio.create_task(catalog.change("a", driver=driver("new", weights_mb=50)))
    asking = asyncio.create_task(answer(catalog))
    await asyncio.gather(change, asking)
    await becomes(lambda: len(catalog.residences()) == 1)
    assert await answer(catalog) == "new"
    assert (len(pool.workers), catalog.ledger.used("cpu")) == (1, 50 << 20)


async def test_a_change_that_fails_does_not_make_an_idle_model_stay_for_ever(pool: WorkerPool) -> None:
    model = ModelConfig(name="a", lazy=True, keep_alive=0.05, driver=driver("old"))
    catalog = Catalog(Config(model=[model]), pool)
    assert await answer(catalog) == "old"
    with pytest.raises(LoadFailed, match="no luck"):
        await catalog.change("a", driver=driver("new", load_secs=0.2, fail_load="no luck"))
    await becomes(lambda: catalog.status("a").state is State.UNLOADED)
    await catalog.close()


async def test_requests_whose_load_is_stopped_for_a_change_do_not_load_the_old_one_again(
    catalog: Catalog, pool: WorkerPool
) -> None:
    await catalog.change("a", driver=driver("old", weights_mb=60, load_secs=30.0))
    waiting = [asyncio.create_task(answer(catalog)) for _ in range(3)]
    await becomes(lambda: catalog.ledger.used("cpu") == 60 << 20)
    await catalog.change("a", driver=driver("new", weights_mb=70))
    assert await asyncio.gather(*waiting) == ["new"] * 3
    assert (len(pool.workers), len(catalog.residences())) == (1, 1)
    assert catalog.ledger.used("cpu") == 70 << 20

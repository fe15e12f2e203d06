"""Models that take turns in memory which holds one of them: who yields, who waits, and that nobody is forgotten."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from catalog.swapping import Open, answer, loaded
from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import State
from inferloom.config.schema import ServerConfig
from inferloom.errors import ModelUnavailable, RateLimited

PATIENCE = 5.0  # seconds, the least of the latency policy
SLACK = 10.0  # for a machine that is busy


async def hold(catalog: Catalog, name: str, seconds: float) -> None:
    async with catalog.lease(name):
        await asyncio.sleep(seconds)


async def wanted_all_the_time(catalog: Catalog, name: str) -> None:
    """Several users, so that it is hardly ever idle."""

    async def user(number: int) -> None:
        await asyncio.sleep(0.02 * number)
        while True:
            await hold(catalog, name, 0.06)

    async with asyncio.TaskGroup() as users:
        for number in range(4):
            users.create_task(user(number))


async def test_a_model_is_served_within_its_patience_though_another_is_never_idle(catalogs: Open) -> None:
    catalog = catalogs(a=60, b=60)
    crowd = asyncio.create_task(wanted_all_the_time(catalog, "a"))
    await becomes(lambda: catalog.status("a").leases > 2)
    async with asyncio.timeout(PATIENCE + SLACK):
        assert await answer(catalog, "b") == "b"
        await becomes(lambda: catalog.status("a").loads == 2)  # and so are they, afterwards
    crowd.cancel()


async def test_two_models_that_are_both_never_idle_share_the_time(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 60, "load_secs": 0.05}, b={"weights_mb": 60, "load_secs": 0.05})
    crowds = [asyncio.create_task(wanted_all_the_time(catalog, name)) for name in "ab"]
    async with asyncio.timeout(4 * PATIENCE + SLACK):
        await becomes(lambda: all(catalog.status(name).loads >= 2 for name in "ab"), within=30.0)
    for crowd in crowds:
        crowd.cancel()


async def test_requests_that_alternate_are_answered_in_few_swaps(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 60, "load_secs": 0.15}, b={"weights_mb": 60, "load_secs": 0.15})
    asked = []
    for number in range(30):
        asked.append(asyncio.create_task(answer(catalog, "ab"[number % 2])))
        await asyncio.sleep(0.01)
    assert Counter(await asyncio.gather(*asked)) == {"a": 15, "b": 15}
    assert sum(catalog.status(name).loads for name in "ab") <= 8


async def test_all_who_wait_are_served_by_one_load(catalogs: Open) -> None:
    catalog = catalogs(a=60, b=60)
    await answer(catalog, "a")
    async with catalog.lease("a"):
        waiting = [asyncio.create_task(hold(catalog, "b", 0.05)) for _ in range(5)]
        await becomes(lambda: catalog.status("b").waiting == 5)
        waiting += [asyncio.create_task(hold(catalog, "a", 0.0))]
    await asyncio.gather(*waiting)
    assert catalog.status("b").loads == 1


async def test_who_yields_gives_no_leases_until_nobody_needs_its_room_any_more(catalogs: Open) -> None:
    catalog = catalogs(a=60, b=60)
    async with catalog.lease("a"):
        other = asyncio.create_task(answer(catalog, "b"))
        await becomes(lambda: catalog.status("a").yielding)
        late = asyncio.create_task(answer(catalog, "a"))
        await becomes(lambda: catalog.status("a").waiting == 1)
        assert (catalog.status("a").state, catalog.status("a").leases) == (State.READY, 1)
        other.cancel()
        assert await late == "a"
    assert catalog.status("a").loads == 1
    assert loaded(catalog) == ["a"]


async def test_an_idle_one_stays_while_its_room_alone_is_not_enough(catalogs: Open) -> None:
    catalog = catalogs(busy=40, idle=40, large=90)
    await answer(catalog, "idle")
    async with catalog.lease("busy"):
        waiting = asyncio.create_task(answer(catalog, "large"))
        await becomes(lambda: catalog.status("busy").yielding)
        assert await answer(catalog, "idle") == "idle"
    assert await waiting == "large"
    assert loaded(catalog) == ["large"]


async def test_the_policy_can_be_changed_while_requests_wait(catalogs: Open) -> None:
    """With `throughput` a model serves 16 times as long as it loaded before it yields, with `latency` 4 times."""
    catalog = catalogs(
        server={"swap_policy": "throughput"}, a={"weights_mb": 60, "load_secs": 0.5}, b={"weights_mb": 60}
    )
    async with catalog.lease("a"):
        waiting = asyncio.create_task(answer(catalog, "b"))
        await becomes(lambda: catalog.status("b").stage == "room")
        assert not catalog.status("a").yielding
        catalog.set_server(ServerConfig(swap_policy="latency"))
        await becomes(lambda: catalog.status("a").yielding)
    assert await waiting == "b"


# --- refusals and expectations ------------------------------------------------------------------------------------------


async def test_a_line_that_is_full_refuses_and_says_when_to_come_again(catalogs: Open) -> None:
    catalog = catalogs(server={"max_waiting": 2}, a=60, b=60)
    async with catalog.lease("a"):
        waiting = [asyncio.create_task(answer(catalog, "b")) for _ in range(2)]
        await becomes(lambda: catalog.status("b").waiting == 2)
        with pytest.raises(RateLimited, match=r"2 requests wait for the model b already") as refused:
            await answer(catalog, "b")
        assert refused.value.retry_after is not None and refused.value.retry_after >= 1.0
    assert await asyncio.gather(*waiting) == ["b", "b"]


async def test_a_deadline_that_no_load_can_meet_is_refused_at_once(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 10, "load_secs": 0.4})
    await answer(catalog, "a")
    await catalog.unload("a")
    with pytest.raises(ModelUnavailable, match="must be loaded first") as refused:
        async with catalog.lease("a", deadline=time.monotonic() + 0.1):
            pass
    assert refused.value.retry_after is not None
    assert catalog.status("a").state is State.UNLOADED  # nothing was begun for it
    async with catalog.lease("a", deadline=time.monotonic() + 30.0):
        assert loaded(catalog) == ["a"]


async def test_how_long_a_wait_may_last_is_told(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 60, "load_secs": 0.2}, b={"weights_mb": 60, "load_secs": 0.2})
    seen: list[str] = []
    catalog.observe_progress(
        lambda model, progress: seen.append(f"{model}: {progress.stage} {progress.detail}")
    )
    await answer(catalog, "b")
    async with catalog.lease("a"):
        waiting = asyncio.create_task(answer(catalog, "b"))
        await becomes(lambda: catalog.status("b").expected_secs is not None)
        expected = catalog.status("b").expected_secs
        assert expected is not None and 0.2 <= expected < 30.0
        assert catalog.status("b").detail.startswith("about ")
    assert await waiting == "b"
    assert any(line.startswith("b: room about ") for line in seen)
    assert catalog.status("b").expected_secs is None

"""Models that do not all fit: who goes, who waits, who is refused. Workers are real, most of their bytes are said only."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from catalog.swapping import Open, answer, loaded
from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import State, Transition
from inferloom.errors import ModelUnavailable, OutOfMemory, WorkerDied
from inferloom.types import ExecuteBatch

MIB = 1 << 20


class Busy:
    """A request in progress for as long as the block lasts."""

    def __init__(self, catalog: Catalog, name: str) -> None:
        self._lease = catalog.lease(name)

    async def __aenter__(self) -> None:
        await self._lease.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await self._lease.__aexit__(None, None, None)


async def test_models_that_fit_stay_and_the_sums_are_right(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 30, "kv_mb": 5, "workspace_mb": 5}, b=40)
    await answer(catalog, "a")
    await answer(catalog, "b")
    assert loaded(catalog) == ["a", "b"]
    assert catalog.ledger.used("cpu") == 80 * MIB
    held = catalog.status("a").bytes
    assert held is not None
    assert (held.weights, held.kv, held.workspace, held.estimate) == (30 * MIB, 5 * MIB, 5 * MIB, 40 * MIB)


async def test_the_idle_one_goes_for_what_is_asked_for(catalogs: Open) -> None:
    catalog = catalogs(a=60, b=60)
    seen: list[Transition] = []
    catalog.observe(seen.append)
    await answer(catalog, "a")
    assert await answer(catalog, "b") == "b"
    assert loaded(catalog) == ["b"]
    assert catalog.status("a").evictions == 1
    (going,) = [change for change in seen if change.new is State.DRAINING]
    assert (going.id, going.cause, going.reason) == ("a", "evicted", "to make room for b")
    assert await answer(catalog, "a") == "a"


async def test_no_more_go_than_are_needed(catalogs: Open) -> None:
    catalog = catalogs(a=20, b=50, c=20, d=50)
    for name in "abc":
        await answer(catalog, name)
    await answer(catalog, "d")
    assert loaded(catalog) == ["a", "c", "d"]


async def test_a_busy_one_goes_only_where_no_idle_one_is_enough_and_answers_first(catalogs: Open) -> None:
    catalog = catalogs(a=40, b=40, c=40, d=90)
    await answer(catalog, "a")
    async with Busy(catalog, "b"):
        await answer(catalog, "c")
        assert loaded(catalog) == ["b", "c"]
        whole = asyncio.create_task(answer(catalog, "d"))
        await becomes(lambda: catalog.status("b").yielding)
        assert catalog.status("d").stage == "room"
    assert await whole == "d"
    assert loaded(catalog) == ["d"]


async def test_a_busy_one_of_a_higher_priority_is_waited_for(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 60, "priority": 1}, b=60)
    async with Busy(catalog, "a"):
        other = asyncio.create_task(answer(catalog, "b"))
        await becomes(lambda: catalog.status("b").stage == "room")
        assert loaded(catalog) == ["a"]
    assert await other == "b"


async def test_who_needs_more_than_there_is_alone_is_told_what_helps(catalogs: Open) -> None:
    catalog = catalogs(a=160)
    with pytest.raises(OutOfMemory, match=r"100 MiB are free\.\nRaise \[runtime\] memory_budget"):
        await answer(catalog, "a")


async def test_what_is_pinned_never_goes(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 60, "pin": True}, b=60, c=40)
    await answer(catalog, "a")
    await answer(catalog, "c")
    with pytest.raises(OutOfMemory) as refused:
        await answer(catalog, "b")
    assert refused.value.status == 507
    assert refused.value.message.startswith("out of memory: b needs 60 MiB of cpu")
    assert ["a", "ready", "60", "0", "0", "yes", "0"] in [
        line.split() for line in refused.value.message.splitlines()
    ]
    assert loaded(catalog) == ["a", "c"]
    status = catalog.status("b")
    assert (status.state, status.retry_at) == (State.FAILED, None)
    catalog.pin("a", False)
    assert await answer(catalog, "b") == "b"


async def test_what_is_larger_than_the_budget_is_refused_and_nobody_goes(catalogs: Open) -> None:
    catalog = catalogs(a=60, b=101)
    await answer(catalog, "a")
    for _ in range(2):
        with pytest.raises(OutOfMemory, match="of the budget of 100 MiB"):
            await answer(catalog, "b")
    assert loaded(catalog) == ["a"]


async def test_two_that_exclude_each_other_answer_in_turn_and_nobody_starves(catalogs: Open) -> None:
    catalog = catalogs(a=60, b=60, c=60)
    answers = await asyncio.gather(*(answer(catalog, name) for name in "abcabcabcabc"))
    assert answers == list("abcabcabcabc")
    assert sum(catalog.status(name).loads for name in "abc") <= 12


async def test_loads_of_models_that_exclude_each_other_all_end(catalogs: Open) -> None:
    catalog = catalogs(a=60, b=60)
    await asyncio.wait_for(asyncio.gather(*(catalog.load(name) for name in "abababab")), 30)
    assert len(loaded(catalog)) == 1
    assert sum(catalog.status(name).loads for name in "ab") <= 8


async def test_a_failed_load_gives_its_room_back(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 60, "fail_load": "no luck"}, b=60)
    with pytest.raises(Exception, match="no luck"):
        await answer(catalog, "a")
    assert catalog.ledger.used("cpu") == 0


async def test_a_cancelled_load_gives_its_room_back(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 60, "load_secs": 30.0}, b=60)
    asking = asyncio.create_task(answer(catalog, "a"))
    await becomes(lambda: catalog.ledger.used("cpu") == 60 * MIB)
    asking.cancel()
    assert await answer(catalog, "b") == "b"
    assert catalog.ledger.used("cpu") == 60 * MIB


async def test_who_leaves_while_waiting_for_room_takes_none(catalogs: Open) -> None:
    catalog = catalogs(a={"weights_mb": 60, "priority": 1}, b=60)
    async with Busy(catalog, "a"):
        asking = asyncio.create_task(answer(catalog, "b"))
        await becomes(lambda: catalog.status("b").stage == "room")
        asking.cancel()
        await becomes(lambda: catalog.status("b").state is State.UNLOADED)
    assert loaded(catalog) == ["a"]
    assert catalog.ledger.used("cpu") == 60 * MIB


async def test_a_worker_that_dies_leaves_no_reservation(catalogs: Open) -> None:
    catalog = catalogs(a=60, b=60)
    async with Busy(catalog, "a"):
        pid = catalog.status("a").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await becomes(lambda: catalog.status("a").loads == 2)
    assert catalog.ledger.used("cpu") == 60 * MIB
    assert await answer(catalog, "b") == "b"


async def test_a_lower_budget_unloads_and_a_higher_one_lets_in(catalogs: Open) -> None:
    catalog = catalogs("200MiB", a=60, b=60, c=60)
    for name in "abc":
        await answer(catalog, name)
    catalog.set_budget({"cpu": 130 * MIB})
    await becomes(lambda: len(loaded(catalog)) == 2 and catalog.ledger.free("cpu") == 10 * MIB)
    async with Busy(catalog, loaded(catalog)[0]):
        catalog.set_budget({"cpu": 10 * MIB})
        await becomes(lambda: len(loaded(catalog)) == 0 and catalog.ledger.used("cpu") == 60 * MIB)
    await becomes(lambda: catalog.ledger.used("cpu") == 0)
    catalog.set_budget({"cpu": 200 * MIB})
    assert await answer(catalog, "b") == "b"


async def test_max_loaded_counts_models(catalogs: Open) -> None:
    catalog = catalogs(server={"max_loaded": 2}, a=1, b=1, c=1)
    for name in "abc":
        await answer(catalog, name)
    assert len(loaded(catalog)) == 2
    assert "c" in loaded(catalog)


async def test_members_of_a_group_exclude_each_other(catalogs: Open) -> None:
    catalog = catalogs(a={"group": "g"}, b={"group": "g"}, c={"group": "h"}, d=1)
    for name in "cda":
        await answer(catalog, name)
    await answer(catalog, "b")
    assert loaded(catalog) == ["b", "c", "d"]
    catalog.pin("b", True)
    with pytest.raises(ModelUnavailable, match="both are of the group g"):
        await answer(catalog, "a")


async def test_a_preload_takes_what_is_free_and_sends_nobody_away(catalogs: Open) -> None:
    catalog = catalogs(
        a={"weights_mb": 60, "lazy": False},
        b={"weights_mb": 60, "lazy": False, "priority": 1},
        c={"weights_mb": 30, "lazy": False},
    )
    await catalog.start()
    await becomes(lambda: len(loaded(catalog)) == 2 and catalog.status("a").state is State.UNLOADED)
    assert loaded(catalog) == ["b", "c"]
    assert await answer(catalog, "a") == "a"


async def test_measured_bytes_stand_beside_the_estimate(catalogs: Open) -> None:
    catalog = catalogs("1GiB", a={"workspace_mb": 96})
    await catalog.load("a")
    await becomes(lambda: (held := catalog.status("a").bytes) is not None and held.measured is not None)
    held = catalog.status("a").bytes
    assert held is not None and held.measured is not None and held.error is not None
    assert held.estimate <= held.measured <= 1.05 * held.estimate + 32 * MIB
    assert held.error == pytest.approx(held.measured / held.expected - 1)
    status = await catalog.unload("a")
    assert status.bytes is None
    assert status.freed_bytes is not None and status.freed_bytes >= 96 * MIB


async def test_a_plan_says_who_would_go_and_changes_nothing(catalogs: Open) -> None:
    catalog = catalogs(a=60, b=60, c=30, d=200)
    await answer(catalog, "a")
    fits = await catalog.plan("c")
    assert (fits.loaded, fits.fits, fits.evicts) == (False, True, ())
    assert fits.needs is not None and fits.needs.weights == 30 * MIB
    swaps = await catalog.plan("b")
    assert (swaps.fits, swaps.evicts, swaps.free) == (True, ("a",), 40 * MIB)
    assert swaps.seconds is not None and swaps.seconds > 0
    never = await catalog.plan("d")
    assert (never.fits, never.evicts) == (False, ())
    assert never.reason is not None and "out of memory" in never.reason
    assert (await catalog.plan("a")).loaded
    assert loaded(catalog) == ["a"]
    assert catalog.status("b").state is State.DECLARED


async def test_a_plan_says_whose_pin_is_in_the_way(catalogs: Open) -> None:
    catalog = catalogs(a={"group": "g"}, b={"group": "g"})
    await answer(catalog, "a")
    plan = await catalog.plan("b")
    assert (plan.fits, plan.evicts) == (True, ("a",))
    catalog.pin("a", True)
    plan = await catalog.plan("b")
    assert (plan.fits, plan.evicts, plan.waits) == (False, (), False)
    assert plan.reason is not None and "both are of the group g" in plan.reason


async def test_a_stream_on_a_worker_that_was_killed_ends_while_another_waits_for_its_room(
    catalogs: Open,
) -> None:
    catalog = catalogs(a={"weights_mb": 60, "tokens_per_second": 10.0}, b=60)
    with pytest.raises(WorkerDied):
        async with catalog.lease("a") as runner:
            handle = await runner.execute(
                ExecuteBatch(request_id="r", model="a", text="x", ignore_eos=True, max_tokens=30_000)
            )
            await handle.take()
            waiting = asyncio.create_task(answer(catalog, "b"))
            await becomes(lambda: catalog.status("a").yielding)
            pid = catalog.status("a").pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await handle.take_rest()
    assert await waiting == "b"

"""When it is looked again who may have room, and when that would find what the last look left."""

from __future__ import annotations

import asyncio

import pytest
from catalog.swapping import Open, answer
from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import ModelStatus, State

LARGE = {"weights_mb": 20, "kv_mb": 200, "kv_least_mb": 1}
SMALL = {"weights_mb": 20, "kv_mb": 8, "kv_least_mb": 1}


def counted(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of a device whenever it is looked at for who may have room there."""
    arbiter = catalog.entries()[0].residence.arbiter
    looks: list[str] = []
    look = arbiter.device
    monkeypatch.setattr(arbiter, "device", lambda name: looks.append(name) or look(name))
    return looks


async def settled(catalog: Catalog) -> None:
    """All memory is given away, and every worker has said that it has its part."""
    arbiter = catalog.entries()[0].residence.arbiter
    await becomes(lambda: catalog.ledger.free("cpu") == 0 and not arbiter.pools.moving("cpu"))
    await asyncio.sleep(0)  # the look that follows the last of them


def known(catalog: Catalog) -> list[tuple[object, ...]]:
    """What a look could change."""

    def of(status: ModelStatus) -> tuple[object, ...]:
        return status.state, status.yielding, status.bytes and status.bytes.kv, status.evictions

    return [of(catalog.status(entry.id)) for entry in catalog.entries()]


async def test_leases_that_come_and_go_with_nobody_waiting_for_room_make_nobody_look(
    catalogs: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = catalogs(large=LARGE, small=SMALL)
    for name in ("large", "small"):
        await answer(catalog, name)
    await settled(catalog)
    looks = counted(catalog, monkeypatch)
    for _ in range(3):
        await asyncio.gather(*(answer(catalog, name) for name in ("large", "small") for _ in range(4)))
    await asyncio.sleep(0)
    assert looks == []


async def test_a_look_with_nobody_waiting_finds_what_the_last_one_left(catalogs: Open) -> None:
    catalog = catalogs(large=LARGE, small=SMALL)
    for name in ("large", "small"):
        await answer(catalog, name)
    await settled(catalog)
    arbiter = catalog.entries()[0].residence.arbiter
    before = known(catalog)
    async with catalog.lease("large"):
        arbiter.changed()
        await asyncio.sleep(0.01)
        assert known(catalog) == before
        async with catalog.lease("small"), catalog.lease("large"):
            arbiter.changed()
            await asyncio.sleep(0.01)
            assert known(catalog) == before
    arbiter.changed()
    await asyncio.sleep(0.01)
    assert known(catalog) == before


async def test_leases_are_looked_at_as_soon_as_somebody_waits_for_room(
    catalogs: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = catalogs(a=60, b=60)
    await answer(catalog, "a")
    looks = counted(catalog, monkeypatch)
    async with catalog.lease("a"):
        waiting = asyncio.create_task(answer(catalog, "b"))
        await becomes(lambda: catalog.status("b").stage == "room")
        seen = len(looks)
    assert await waiting == "b"
    assert len(looks) > seen
    assert catalog.status("a").state is State.UNLOADED

"""KV pages are as many as there is room for: neighbours give some back before anybody has to go, and get them again."""

from __future__ import annotations

import asyncio

from catalog.swapping import Open, answer, loaded
from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.types import ExecuteBatch

MIB = 1 << 20
LARGE = {"weights_mb": 20, "kv_mb": 200, "kv_least_mb": 1}  # not squeezed below 50
SMALL = {"weights_mb": 20, "kv_mb": 8, "kv_least_mb": 1}  # nor this one below 2


def kv(catalog: Catalog, name: str) -> int:
    """MiB of pages, by the ledger."""
    status = catalog.status(name)
    assert status.bytes is not None
    return status.bytes.kv // MIB


async def settled(catalog: Catalog, **pages: int) -> None:
    """By the ledger and by what the workers say, which is told a moment later."""

    def holds(name: str, count: int) -> bool:
        card = catalog.status(name).card
        assert card is not None and card.kv_bytes == card.kv_pages * MIB
        return kv(catalog, name) == card.kv_pages == count

    await becomes(lambda: all(holds(name, count) for name, count in pages.items()))
    assert catalog.ledger.free("cpu") >= 0


async def test_a_model_alone_has_what_is_left_of_the_budget(catalogs: Open) -> None:
    catalog = catalogs(large=LARGE, small=SMALL)
    await answer(catalog, "large")
    await settled(catalog, large=80)
    await catalog.unload("large")
    await answer(catalog, "small")
    await settled(catalog, small=8)  # it wants no more
    assert catalog.ledger.free("cpu") == 72 * MIB


async def test_neighbours_give_pages_back_before_anybody_goes_and_get_them_again(catalogs: Open) -> None:
    catalog = catalogs(large=LARGE, small=SMALL)
    await answer(catalog, "large")
    await settled(catalog, large=80)
    async with catalog.lease("large"):  # even while it is used
        await answer(catalog, "small")
    assert loaded(catalog) == ["large", "small"]
    await settled(catalog, large=58, small=2)
    await catalog.unload("small")
    await settled(catalog, large=80)
    await answer(catalog, "small")
    await catalog.unload("large")
    await settled(catalog, small=8)


async def test_nobody_is_squeezed_below_a_part_of_what_it_wants(catalogs: Open) -> None:
    catalog = catalogs(large=LARGE, small=SMALL, third=20)
    await answer(catalog, "large")
    await answer(catalog, "small")
    assert await answer(catalog, "third") == "third"
    assert loaded(catalog) != ["large", "small", "third"]
    assert all(kv(catalog, name) >= 2 for name in loaded(catalog) if name != "third")


async def test_a_pinned_model_gives_pages_as_well(catalogs: Open) -> None:
    catalog = catalogs(large={**LARGE, "pin": True}, small=SMALL)
    await answer(catalog, "large")
    assert await answer(catalog, "small") == "small"
    assert loaded(catalog) == ["large", "small"]


async def test_what_the_worker_still_uses_is_counted_until_it_is_given_back(catalogs: Open) -> None:
    catalog = catalogs(large={**LARGE, "kv_used_mb": 70, "tokens_per_second": 100.0}, small=SMALL)
    async with catalog.lease("large") as runner:
        handle = await runner.execute(
            ExecuteBatch(request_id="r", model="large", text="x", ignore_eos=True, max_tokens=30_000)
        )
        await handle.take()
        waiting = asyncio.create_task(answer(catalog, "small"))
        await settled(catalog, large=70)
        assert loaded(catalog) == ["large"]
        handle.cancel()
        assert await waiting == "small"
    assert loaded(catalog) == ["large", "small"]
    await settled(catalog, large=58, small=2)


async def test_a_lower_budget_takes_pages_before_models_and_a_higher_one_gives_them(catalogs: Open) -> None:
    catalog = catalogs(large=LARGE)
    await answer(catalog, "large")
    await settled(catalog, large=80)
    catalog.set_budget({"cpu": 75 * MIB})
    await settled(catalog, large=55)
    catalog.set_budget({"cpu": 300 * MIB})
    await settled(catalog, large=200)
    catalog.set_budget({"cpu": 60 * MIB})  # the fewest it is squeezed to do not fit
    await becomes(lambda: loaded(catalog) == [] and catalog.ledger.used("cpu") == 0)


async def test_models_that_load_together_leave_each_other_room(catalogs: Open) -> None:
    catalog = catalogs("200MiB", a={**LARGE, "load_secs": 0.1}, b={**LARGE, "load_secs": 0.1})
    assert await asyncio.gather(answer(catalog, "a"), answer(catalog, "b")) == ["a", "b"]
    assert loaded(catalog) == ["a", "b"]
    await becomes(lambda: catalog.ledger.free("cpu") == 0)


async def test_preloading_squeezes_and_sends_nobody_away(catalogs: Open) -> None:
    catalog = catalogs(large={**LARGE, "lazy": False}, small={**SMALL, "lazy": False})
    await catalog.start()
    await becomes(lambda: loaded(catalog) == ["large", "small"])
    assert catalog.status("large").loads == 1

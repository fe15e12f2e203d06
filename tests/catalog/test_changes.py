"""Models are added, changed and removed while others serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from factories.checkpoints import make_checkpoint
from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.changes import ModelChanges, apply, model_changes
from inferloom.catalog.lifecycle import State, Transition
from inferloom.config.schema import Config, DriverConfig, ModelConfig, ServerConfig
from inferloom.errors import ConfigError, Conflict, LoadFailed, ModelNotFound
from inferloom.worker.pool import WorkerPool


def model(name: str, source: Path | None = None, *, options: dict[str, object] | None = None, **keys: object):
    driver = DriverConfig(type="dummy", options=options or {})
    weights = None if source is None else str(source)
    return ModelConfig(name=name, source=weights, driver=driver, **{"lazy": True, **keys})


@pytest.fixture
async def catalog(pool: WorkerPool, tmp_path: Path) -> AsyncIterator[Catalog]:
    """`a` and `b` are one checkpoint, `c` has none."""
    source = tmp_path / "tiny"
    make_checkpoint(source, "llama")
    catalog = Catalog(Config(model=[model("a", source), model("b", source), model("c")]), pool)
    yield catalog
    await catalog.close()
    assert catalog.ledger.held() == []


async def use(catalog: Catalog, name: str, **options: float) -> None:
    async with catalog.lease(name, **options):
        pass


async def test_a_name_that_is_gone_does_not_keep_the_worker_of_others(catalog: Catalog) -> None:
    catalog.set_default("c")
    await use(catalog, "a")
    await use(catalog, "b", keep_alive=0.02)
    assert catalog.status("b").expires_at is None
    await catalog.remove("a")
    await becomes(lambda: catalog.status("b").state is State.UNLOADED)


async def test_a_name_that_moves_to_other_weights_does_not_keep_the_old_ones(catalog: Catalog) -> None:
    await use(catalog, "a")
    await use(catalog, "b", keep_alive=0.02)
    await catalog.change("a", max_model_len=64)
    assert catalog.status("a").state is State.READY
    await becomes(lambda: catalog.status("b").state is State.UNLOADED)


async def test_whoever_shares_a_worker_is_told_when_its_name_comes_and_goes(catalog: Catalog) -> None:
    await catalog.load("a")
    seen: list[Transition] = []
    catalog.observe(seen.append)
    catalog.add(msgspec.structs.replace(catalog.resolve("a").config, name="d"))
    await catalog.remove("d")
    assert [(one.id, one.new, one.cause) for one in seen] == [
        ("d", State.READY, "shared"),
        ("d", State.UNLOADED, "removed"),
    ]
    assert catalog.status("a").state is State.READY


async def test_a_change_of_a_model_that_is_being_removed_finds_none(catalog: Catalog) -> None:
    await catalog.load("c")
    async with catalog.lease("c"):
        removal = asyncio.create_task(catalog.remove("c"))
        change = asyncio.create_task(catalog.change("c", priority=1))
        await becomes(lambda: len(catalog.entries()) == 2)
    await removal
    with pytest.raises(ModelNotFound):
        await change


async def test_changes_and_removals_at_once_end_in_one_of_the_two(catalog: Catalog) -> None:
    await catalog.load("c")
    found = await asyncio.gather(
        catalog.change("c", max_model_len=64),
        catalog.remove("c"),
        catalog.remove("c"),
        return_exceptions=True,
    )
    assert isinstance(found[2], ModelNotFound)
    assert [entry.id for entry in catalog.entries()] == ["a", "b"]
    await becomes(lambda: catalog.ledger.held() == [])


async def test_a_model_that_others_draft_with_stays(catalog: Catalog) -> None:
    catalog.add(model("d", draft="c"))
    with pytest.raises(Conflict, match="drafts for 'd'"):
        await catalog.remove("c")
    assert len(catalog.entries()) == 4


async def test_another_time_to_live_of_the_server_counts_from_now(catalog: Catalog) -> None:
    await use(catalog, "c")
    assert catalog.status("c").expires_at is None
    catalog.set_server(ServerConfig(keep_alive=0.02))
    await becomes(lambda: catalog.status("c").state is State.UNLOADED)


async def test_another_time_to_live_of_a_model_counts_from_now(catalog: Catalog) -> None:
    await use(catalog, "c")
    await catalog.change("c", keep_alive=0.02)
    await becomes(lambda: catalog.status("c").state is State.UNLOADED)


async def test_the_configuration_as_it_is_now(catalog: Catalog) -> None:
    catalog.add(model("d"))
    await catalog.change("c", priority=2)
    catalog.set_default("b")
    await catalog.remove("a")
    assert [one.name for one in catalog.config.model] == ["b", "c", "d"]
    assert catalog.config.model[1].priority == 2
    assert catalog.config.server.default_model == "b"


async def test_a_load_that_waits_for_the_end_of_a_removed_model_does_not_load_it_again(
    catalog: Catalog, pool: WorkerPool
) -> None:
    await catalog.load("c")
    async with catalog.lease("c"):
        unload = asyncio.create_task(catalog.unload("c"))
        await becomes(lambda: catalog.status("c").state is State.DRAINING)
        load = asyncio.create_task(catalog.load("c"))
        await asyncio.sleep(0)
        removal = asyncio.create_task(catalog.remove("c"))
        await becomes(lambda: len(catalog.entries()) == 2)
    await asyncio.gather(unload, removal, return_exceptions=True)
    with pytest.raises(ModelNotFound):
        await load
    assert (pool.workers, len(catalog.residences())) == ([], 1)


# --- from one configuration to another ------------------------------------------------------------------------------


def test_what_differs_between_two_configurations():
    before = Config(model=[model("a"), model("b"), model("c")])
    after = Config(model=[model("b", priority=1), model("c"), model("d")])
    changes = model_changes(before, after)
    assert [one.name for one in changes.added] == ["d"]
    assert [(one.name, keys) for one, keys in changes.changed] == [("b", {"priority": 1})]
    assert (changes.removed, changes.default) == (("a",), "b")
    assert model_changes(before, before) == ModelChanges()


async def test_what_fails_is_told_and_the_rest_is_done(catalog: Catalog) -> None:
    await catalog.load("c")
    changes = ModelChanges(
        added=(model("d"), model("e", aliases=["a"])),
        changed=((model("c"), {"driver": DriverConfig(type="dummy", options={"fail_load": "it broke"})}),),
        removed=("b",),
    )
    failed = await apply(catalog, changes, fallback=None)
    assert {name: type(error) for name, error in failed.items()} == {"c": LoadFailed, "e": ConfigError}
    assert [entry.id for entry in catalog.entries()] == ["a", "c", "d"]
    assert catalog.status("c").state is State.READY


async def test_what_changed_meanwhile_becomes_what_the_configuration_says(catalog: Catalog) -> None:
    before = catalog.config
    catalog.add(model("d", priority=5))
    await catalog.remove("c")
    after = msgspec.structs.replace(
        before, model=[*before.model[:2], model("c", priority=1), model("d", priority=2)]
    )
    assert await apply(catalog, model_changes(before, after), fallback=None) == {}
    assert {entry.id: entry.config.priority for entry in catalog.entries()} == {
        "a": 0,
        "b": 0,
        "d": 2,
        "c": 1,
    }

"""Several names of one checkpoint: one worker, and what belongs to a name stays with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from factories.checkpoints import make_checkpoint

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.entry import residence_key
from inferloom.catalog.lifecycle import State, Transition
from inferloom.config.schema import Config, DriverConfig, ModelConfig
from inferloom.runners.presented import Presented
from inferloom.types import ChatMessage, ExecuteBatch
from inferloom.worker.pool import WorkerPool


def model(name: str, source: Path | None, **keys: Any) -> ModelConfig:
    options = keys.pop("options", {})
    driver = DriverConfig(type="dummy", options=options)
    return ModelConfig(
        name=name, lazy=True, source=None if source is None else str(source), driver=driver, **keys
    )


@pytest.fixture
async def catalog(pool: WorkerPool, tmp_path: Path) -> AsyncIterator[Catalog]:
    """`a` and `b` are one checkpoint, `c` is the same with other options, `d` has no checkpoint."""
    source = tmp_path / "tiny"
    make_checkpoint(source, "llama")
    models = [
        model("a", source),
        model("b", source, system_prompt="You are b.", keep_alive=0, priority=2),
        model("c", source, options={"text": "other"}),
        model("d", None),
    ]
    catalog = Catalog(Config(model=models), pool)
    yield catalog
    await catalog.close()


async def prompt_tokens(catalog: Catalog, name: str) -> int:
    async with catalog.lease(name) as runner:
        batch = ExecuteBatch(request_id="r", model=name, messages=(ChatMessage(role="user", content="x"),))
        handle = await runner.execute(batch)
        chunks = [chunk async for chunk in handle]
        usage = chunks[-1].usage
        assert usage is not None
        return usage.prompt_tokens


async def test_two_names_of_one_checkpoint_have_one_worker(catalog: Catalog, pool: WorkerPool) -> None:
    seen: list[Transition] = []
    catalog.observe(seen.append)
    await catalog.load("a")
    assert catalog.status("b").state is State.READY
    assert catalog.status("a").pid == catalog.status("b").pid
    assert (catalog.status("a").shares, catalog.status("b").shares) == (("b",), ("a",))
    await catalog.load("b")
    assert len(pool.workers) == 1
    assert [change.id for change in seen if change.new is State.READY] == ["a", "b"]
    await catalog.load("c")
    assert len(pool.workers) == 2
    assert catalog.status("c").shares == ()


async def test_each_name_has_its_own_system_prompt(catalog: Catalog) -> None:
    plain, prompted = await prompt_tokens(catalog, "a"), await prompt_tokens(catalog, "b")
    assert prompted > plain
    async with catalog.lease("b") as runner:
        assert isinstance(runner, Presented)
        assert runner.card() == catalog.status("b").card
        assert await runner.detokenize(await runner.tokenize("hello")) == "hello"


async def test_a_names_own_keep_alive_does_not_end_what_another_name_keeps(catalog: Catalog) -> None:
    await prompt_tokens(catalog, "a")
    await prompt_tokens(catalog, "b")
    assert catalog.status("a").expires_at is None
    assert catalog.status("b").keep_alive == 0
    assert catalog.status("b").state is State.READY


async def test_leases_are_counted_for_each_name_and_unloading_waits_for_all(catalog: Catalog) -> None:
    async with catalog.lease("a"), catalog.lease("b"):
        assert (catalog.status("a").leases, catalog.status("b").leases) == (1, 1)
    await catalog.unload("b")
    assert catalog.status("a").state is State.UNLOADED


async def test_a_name_that_gets_options_of_its_own_gets_a_worker_of_its_own(
    catalog: Catalog, pool: WorkerPool
) -> None:
    await catalog.load("a")
    driver = DriverConfig(type="dummy", options={"text": "changed"})
    status = await catalog.change("b", driver=driver)
    assert (status.state, status.shares) == (State.READY, ())
    assert catalog.status("a").state is State.READY
    assert catalog.status("a").pid != status.pid
    assert len(pool.workers) == 2
    back = await catalog.change("b", driver=DriverConfig(type="dummy"))
    assert back.pid == catalog.status("a").pid
    assert back.shares == ("a",)
    assert len(pool.workers) == 1


async def test_what_belongs_to_a_name_changes_without_a_load(catalog: Catalog) -> None:
    await catalog.load("a")
    before = await prompt_tokens(catalog, "b")
    await catalog.change("b", system_prompt="You are b, and you are very much longer than before.")
    assert await prompt_tokens(catalog, "b") > before
    await catalog.change("b", aliases=["bee"])
    assert catalog.resolve("bee").id == "b"
    assert catalog.status("a").loads == 1


def test_what_makes_models_one(tmp_path: Path) -> None:
    one = model("a", tmp_path)
    assert residence_key(one) == residence_key(model("b", tmp_path, pin=True, group="g", aliases=["x"]))
    by_repo = ModelConfig(name="z", hf_repo=str(tmp_path), driver=DriverConfig(type="dummy"))
    assert residence_key(one) == residence_key(by_repo)
    assert residence_key(one) != residence_key(model("a", tmp_path, max_model_len=8))
    assert residence_key(model("a", None)) != residence_key(model("b", None))

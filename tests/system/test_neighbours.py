"""Real models in memory that holds both only if they share their KV pages: nobody is unloaded, and answers stay the same."""

from __future__ import annotations

from pathlib import Path

from factories.checkpoints import make_checkpoint
from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import ModelBytes, State
from inferloom.config.schema import Config, DriverConfig, ModelConfig
from inferloom.types import ExecuteBatch, Sampling
from inferloom.worker.pool import WorkerPool

PROMPT = [5, 9, 21, 33] * 20


def model(name: str, folder: Path) -> ModelConfig:
    checkpoint = make_checkpoint(folder / name, "llama")
    driver = DriverConfig(type="native", activation_dtype="float32", options={"threads": 1})
    return ModelConfig(name=name, lazy=True, source=checkpoint.folder, driver=driver)


async def answer(catalog: Catalog, name: str) -> list[int]:
    async with catalog.lease(name) as runner:
        handle = await runner.execute(
            ExecuteBatch(
                request_id="r",
                model=name,
                token_ids=PROMPT,
                sampling=Sampling(temperature=0.0),
                max_tokens=8,
                ignore_eos=True,
            )
        )
        return [token async for chunk in handle for token in chunk.token_ids]


def held(catalog: Catalog, name: str) -> ModelBytes:
    status = catalog.status(name)
    assert status.bytes is not None
    return status.bytes


async def test_neighbours_share_pages_and_answer_as_before(tmp_path: Path) -> None:
    pool = WorkerPool()
    await pool.start()
    catalog = Catalog(Config(model=[model("a", tmp_path), model("b", tmp_path)]), pool)
    try:
        expected = await answer(catalog, "a")
        alone = held(catalog, "a")
        card = catalog.status("a").card
        assert card is not None and card.kv_bytes == alone.kv > 0

        def agreed(name: str) -> bool:
            card = catalog.status(name).card
            return card is not None and card.kv_bytes == held(catalog, name).kv

        # room for the other one's weights and workspace, and for all but half of the pages that one alone wants
        budget = 2 * (alone.weights + alone.workspace) + alone.kv // 2
        catalog.set_budget({"cpu": budget})
        await becomes(lambda: held(catalog, "a").kv < alone.kv or catalog.ledger.free("cpu") >= 0)
        await answer(catalog, "b")
        assert [catalog.status(name).state for name in "ab"] == [State.READY, State.READY]
        await becomes(lambda: agreed("a") and agreed("b"))
        assert alone.kv // 4 <= held(catalog, "a").kv < alone.kv
        assert held(catalog, "b").kv >= alone.kv // 4 - (1 << 20)
        assert catalog.ledger.free("cpu") >= 0
        assert await answer(catalog, "a") == expected
        await catalog.unload("b")
        page = card.kv_bytes // card.kv_pages
        left = (budget - alone.weights - alone.workspace) // page * page
        await becomes(lambda: agreed("a") and held(catalog, "a").kv == left)
        assert await answer(catalog, "a") == expected
        assert catalog.status("a").loads == 1
    finally:
        await catalog.close()
        await pool.stop()
    assert catalog.ledger.held() == []

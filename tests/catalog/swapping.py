"""Catalogs of lazy dummies whose bytes are said only, for memory that does not hold all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import State
from inferloom.config.schema import Config, DriverConfig, ModelConfig, RuntimeConfig, ServerConfig
from inferloom.types import ExecuteBatch
from inferloom.worker.pool import WorkerPool

Open = Callable[..., Catalog]
NAMES = ("pin", "priority", "group", "keep_alive", "lazy")


@asynccontextmanager
async def opening(pool: WorkerPool) -> AsyncIterator[Open]:
    """Makes catalogs: `catalogs("100MiB", a=60, b={"weights_mb": 60, "pin": True})`."""
    made: list[Catalog] = []

    def make(
        budget: str = "100MiB", *, server: dict[str, Any] | None = None, **models: int | dict[str, Any]
    ) -> Catalog:
        config = Config(
            server=ServerConfig(**(server or {})),
            runtime=RuntimeConfig(memory_budget=budget),
            model=[_model(name, given) for name, given in models.items()],
        )
        made.append(Catalog(config, pool))
        return made[-1]

    yield make
    for catalog in made:
        await catalog.close()
        assert catalog.ledger.held() == []


def _model(name: str, given: int | dict[str, Any]) -> ModelConfig:
    options = {"weights_mb": given} if isinstance(given, int) else dict(given)
    own = {key: options.pop(key) for key in NAMES if key in options}
    driver = DriverConfig(type="dummy", options={"text": name, **options})
    return ModelConfig(name=name, driver=driver, **{"lazy": True, **own})


def loaded(catalog: Catalog) -> list[str]:
    return [entry.id for entry in catalog.entries() if entry.state is State.READY]


async def answer(catalog: Catalog, name: str, **lease: Any) -> str:
    async with catalog.lease(name, **lease) as runner:
        handle = await runner.execute(ExecuteBatch(request_id="r", model=name, text="x"))
        return "".join([chunk.text async for chunk in handle])

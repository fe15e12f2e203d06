from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from inferloom.config.schema import DriverConfig, ModelConfig
from inferloom.runners.base import WeightSource
from inferloom.runners.local import LocalRunner
from inferloom.worker.pool import LIGHT, WorkerPool

Start = Callable[..., Awaitable[LocalRunner]]


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(preload=LIGHT)
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
async def start(pool: WorkerPool) -> AsyncIterator[Start]:
    """Makes ready runners over dummies: `await start(text=…, model={"system_prompt": …})`."""
    runners: list[LocalRunner] = []

    async def make(*, model: dict[str, Any] | None = None, **options: Any) -> LocalRunner:
        config = ModelConfig(name="m", driver=DriverConfig(type="dummy", options=options), **(model or {}))
        runner = LocalRunner(config, pool)
        runners.append(runner)
        await runner.load_weights(None, WeightSource(source=""))
        return runner

    yield make
    for runner in runners:
        await runner.close()

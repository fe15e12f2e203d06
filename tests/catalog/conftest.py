from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from catalog.swapping import Open, opening

from inferloom.worker.pool import LIGHT, WorkerPool


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(preload=LIGHT)
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
async def catalogs(pool: WorkerPool) -> AsyncIterator[Open]:
    """Makes catalogs of models that do not all fit; see `swapping.opening`."""
    async with opening(pool) as opened:
        yield opened

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from inferloom.worker.pool import LIGHT, WorkerPool


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(preload=LIGHT)
    await pool.start()
    yield pool
    await pool.stop()

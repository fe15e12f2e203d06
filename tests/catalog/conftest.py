from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from inferloom.worker.pool import LIGHT, WorkerPool

settings.register_profile("soak", max_examples=300)


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(preload=LIGHT)
    await pool.start()
    yield pool
    await pool.stop()

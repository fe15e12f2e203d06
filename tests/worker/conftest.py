from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from worker_driving import Driven

from inferloom.worker.pool import LIGHT, WorkerPool


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    """A pool whose forkserver imports nothing heavy."""
    pool = WorkerPool(preload=LIGHT)
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
async def worker(pool: WorkerPool) -> Driven:
    """A dummy worker that is ready."""
    return await Driven.spawn(pool)

"""A worker dies at the most awkward moment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import State, Transition
from inferloom.config.schema import Config, DriverConfig, ModelConfig
from inferloom.errors import InferloomError
from inferloom.runners.base import ModelRunner
from inferloom.runners.factory import make_runner
from inferloom.types import ExecuteBatch, LoadReport
from inferloom.worker.pool import WorkerPool


async def test_a_worker_that_dies_as_its_load_ends_is_loaded_again_once(pool: WorkerPool) -> None:
    runners: list[ModelRunner] = []

    def make(
        model: ModelConfig, config: Config, pool: WorkerPool, died: Callable[[InferloomError], None]
    ) -> ModelRunner:
        runner = make_runner(model, config, pool, on_death=died)
        load = runner.load_weights

        async def load_and_die(*given: object) -> LoadReport | None:
            report = await load(*given)
            process = runner._process
            os.kill(process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it was killed
            # what the loop would do next, before anybody hears that the load has ended
            asyncio.get_running_loop().call_soon(process._reap)
            return report

        if not runners:
            runner.load_weights = load_and_die
        runners.append(runner)
        return runner

    model = ModelConfig(name="a", lazy=True, driver=DriverConfig(type="dummy", options={"text": "hello"}))
    seen: list[Transition] = []
    catalog = Catalog(Config(model=[model]), pool, observer=seen.append, factory=make)
    await catalog.load("a")
    async with catalog.lease("a") as runner:
        handle = await runner.execute(ExecuteBatch(request_id="r", model="a", text="x"))
        assert "".join([chunk.text async for chunk in handle]) == "hello"
    assert [one.new for one in seen].count(State.FAILED) == 1
    assert (len(runners), len(pool.workers), catalog.status("a").loads) == (2, 1, 2)
    await catalog.unload("a")
    await becomes(lambda: catalog.residences()[0].at_rest)
    assert (pool.workers, catalog.ledger.held()) == ([], [])
    await catalog.close()

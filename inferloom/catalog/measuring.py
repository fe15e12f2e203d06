"""What a loaded model takes of the memory, as the kernel counts it."""

from __future__ import annotations

import asyncio

from inferloom.runners.base import ModelRunner
from inferloom.worker.memory import pss, resident

# Until a loaded model is measured: its first request wants the processors, and touches the weights that are to be counted.
LATER_SECS = 0.5


class Measured:
    """Of the runner that was loaded last: `bytes`, its proportional set size; None until it was measured."""

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._resident = 0  # bytes, when it was measured
        self._task: asyncio.Task[None] | None = None

    def begin(self, runner: ModelRunner) -> None:
        """Forget what was, and measure it when it has had the time to answer somebody."""
        self.stop()
        self.bytes = None
        self._task = asyncio.create_task(self._later(runner), name="measure")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def take(self, runner: ModelRunner) -> None:
        """Measure it now. A process that is gone has no bytes."""
        pid = getattr(runner, "pid", None)
        if pid is not None:
            self._resident = resident(pid)
        found = None if pid is None else await asyncio.to_thread(pss, pid)
        self.bytes = None if found is None else found.bytes

    async def bring_up_to_date(self, runner: ModelRunner) -> None:
        """Its bytes now: those measured, and what its resident set has grown by since. The kernel knows that one at once, and
        walks through all pages for the other (some 12 ms where gigabytes are mapped)."""
        if self.bytes is None:
            await self.take(runner)
            return
        pid = getattr(runner, "pid", None)
        now = 0 if pid is None else resident(pid)
        if now:
            self.bytes, self._resident = self.bytes + now - self._resident, now

    async def _later(self, runner: ModelRunner) -> None:
        await asyncio.sleep(LATER_SECS)
        await self.take(runner)

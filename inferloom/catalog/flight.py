"""One piece of work that many wait for: it is cancelled when the last of them leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine


class Flight:
    """A load in progress. Whoever joins shares its end; `kept` work goes on with nobody waiting."""

    def __init__(
        self,
        work: Coroutine[None, None, None],
        *,
        name: str,
        landed: Callable[[Flight], None],
        kept: bool = False,
    ) -> None:
        self._waiters = 1 if kept else 0
        self._called_off = False
        self.stopped = False  # by an unload, and not because nobody wanted it any more
        self._landed = landed
        self.task = asyncio.create_task(work, name=name)
        self.task.add_done_callback(self._land)  # before anybody who waits hears of it

    def _land(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # it is in the status, whoever waits raises it, and perhaps nobody does
        self._landed(self)

    async def joined(self) -> bool:
        """Wait for the end, and raise what the work raises. False: it was given up, the caller was not."""
        self._waiters += 1
        try:
            await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if not self.task.cancelled() or _being_cancelled():
                raise
            # awaiting a task that has ended yields nothing: who asks again and again would keep the loop from landing it
            await asyncio.sleep(0)
            return False
        finally:
            self._waiters -= 1
            if not self._waiters and not self.task.done():
                self.call_off()
        return True

    def call_off(self) -> None:
        """Once: a second cancellation would interrupt the work's own clearing up."""
        if not self._called_off:
            self._called_off = True
            self.task.cancel()

    async def stop(self) -> None:
        """Cancel it for good; returns when it has ended."""
        self.stopped = True
        self.call_off()
        await asyncio.wait({self.task})


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

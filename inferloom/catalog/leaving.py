"""An unload in progress: requests that run may end first, for as long as whoever asks for the unload gives them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine


class Departure:
    """Shared by all who ask for it; each can only shorten the time that requests have. Without any limit they have all the
    time that they have by themselves."""

    def __init__(self, leave: Callable[[Departure], Coroutine[None, None, None]], *, name: str) -> None:
        self._force = asyncio.Event()
        self._limits: list[asyncio.TimerHandle] = []
        self.task = asyncio.create_task(leave(self), name=name)
        self.task.add_done_callback(self._end)

    def hurry(self, *, force: bool, drain_secs: float | None) -> None:
        if force:
            self._force.set()
        elif drain_secs is not None:
            self._limits.append(asyncio.get_running_loop().call_later(drain_secs, self._force.set))

    async def drained(self, idle: asyncio.Event) -> None:
        """Returns when it is idle, or has to go all the same."""
        waits = [asyncio.create_task(idle.wait()), asyncio.create_task(self._force.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _end(self, task: asyncio.Task[None]) -> None:
        for limit in self._limits:
            limit.cancel()

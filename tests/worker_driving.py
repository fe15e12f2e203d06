"""Workers driven by tests: what they said is kept, and can be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import FromWorker, Ready, SequenceStep, Step
from inferloom.worker.pool import WorkerPool
from inferloom.worker.process import Exit, WorkerProcess

PATIENCE = 20.0
T = TypeVar("T")


class Driven:
    """A worker and everything it has said so far."""

    def __init__(self) -> None:
        self.said: list[FromWorker] = []
        self.exits: list[Exit] = []
        self.process: WorkerProcess
        self._news = asyncio.Event()

    @classmethod
    async def spawn(cls, pool: WorkerPool, job: WorkerJob | None = None, **options: Any) -> Driven:
        """A worker for `job` (default: a dummy with `options`) that has said Ready."""
        driven = await cls.begin(pool, job, **options)
        await driven.hear(Ready)
        return driven

    @classmethod
    async def begin(cls, pool: WorkerPool, job: WorkerJob | None = None, **options: Any) -> Driven:
        """As `spawn`, without waiting for Ready."""
        driven = cls()
        driven.process = await pool.spawn(
            job or WorkerJob(model="m", driver="dummy", options=options),
            on_message=driven._note,
            on_exit=lambda _, how: driven.exits.append(how),
        )
        return driven

    def _note(self, message: FromWorker) -> None:
        self.said.append(message)
        self._news.set()

    async def until(self, found: Callable[[], T | None]) -> T:
        """What `found` gives, as soon as it gives something."""
        async with asyncio.timeout(PATIENCE):
            while (it := found()) is None:
                self._news.clear()
                await self._news.wait()
            return it

    async def hear(self, kind: type[T]) -> T:
        """The next message of that kind; it and all before it are forgotten."""

        def found() -> T | None:
            for place, message in enumerate(self.said):
                if isinstance(message, kind):
                    del self.said[: place + 1]
                    return message
            return None

        return await self.until(found)

    def steps(self, number: int) -> list[SequenceStep]:
        """Everything that was said about a request."""
        steps = [message for message in self.said if isinstance(message, Step)]
        return [one for step in steps for one in step.sequences if one.id == number]

    async def finish(self, number: int) -> list[SequenceStep]:
        """The steps of a request of one choice, once it has finished."""

        def found() -> list[SequenceStep] | None:
            steps = self.steps(number)
            return steps if steps and steps[-1].finish is not None else None

        return await self.until(found)


def gone(pid: int) -> bool:
    """Whether no process has that number, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def becomes(condition: Callable[[], bool], *, within: float = PATIENCE) -> None:
    """Returns when the condition holds; fails after a while."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is waited for happens outside of the loop
            await asyncio.sleep(0.005)

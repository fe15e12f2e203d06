"""Questions to a worker that have one answer each: embeddings, statistics, what becomes of its pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from inferloom.errors import InferloomError, RequestTimeout
from inferloom.worker.messages.requests import Cancel, ToWorker
from inferloom.worker.process import WorkerProcess


class Questions:
    """Those that wait for their answers. It also numbers whatever else is asked, so that no number is used twice."""

    def __init__(self) -> None:
        self._numbers = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    def number(self) -> int:
        """One that nothing else has."""
        self._numbers += 1
        return self._numbers

    async def ask(
        self,
        process: WorkerProcess,
        question: Callable[[int], ToWorker],
        *,
        deadline: float | None = None,
    ) -> Any:
        """Send a question and wait for its answer. Raises `RequestTimeout`, and what `fail` is given."""
        number = self.number()
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        process.send(question(number))
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                return await answer
        except TimeoutError:
            raise RequestTimeout("the request's time limit was reached before it was answered") from None
        finally:
            if not answer.done() or answer.cancelled():
                process.send(Cancel(number))
            self._waiting.pop(number, None)

    def answer(self, number: int, message: Any) -> None:
        """What the worker said; nobody may be waiting any more."""
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def fail(self, error: InferloomError, *numbers: int) -> None:
        """Answer those, or all where none is named, with an error."""
        for number in numbers or list(self._waiting):
            waiting = self._waiting.get(number)
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)

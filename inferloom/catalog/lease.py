"""The one way in: a loaded model's runner for the length of an `async with`."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from inferloom.runners.base import ModelRunner

if TYPE_CHECKING:
    from inferloom.catalog.entry import Entry
    from inferloom.catalog.residence import Residence


class Lease(AbstractAsyncContextManager[ModelRunner]):
    """Holds a loaded model for one request. An `async with` block that ends without an exception has served."""

    __slots__ = ("_deadline", "_entry", "_held", "_keep_alive")

    def __init__(self, entry: Entry, *, deadline: float | None, keep_alive: float | None) -> None:
        self._entry = entry
        self._deadline = deadline
        self._keep_alive = keep_alive
        self._held: tuple[Residence, ModelRunner] | None = None

    async def __aenter__(self) -> ModelRunner:
        self._held = await self._entry.acquire(deadline=self._deadline)
        return self._entry.presented(self._held[1])

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._held is not None:
            residence, runner = self._held
            self._held = None
            self._entry.release(residence, runner, served=error is None, keep_alive=self._keep_alive)

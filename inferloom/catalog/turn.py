"""Whether a loaded model gives leases, and who has waited for one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferloom.catalog.entry import Entry


class Turn:
    """Of one residence, whose `entries` have a line each. While it yields, others need its room: it gives no leases, and
    goes on when that is over."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self.yielding = False
        self._loaded = False
        self._open = asyncio.Event()  # set too while it is not loaded, when there are others to wait for

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(entry.line) for entry in self._entries)

    @property
    def oldest_secs(self) -> float:
        """How long the first of them has waited."""
        return max((entry.line.oldest_secs for entry in self._entries), default=0.0)

    @property
    def let_in(self) -> bool:
        """Whether some are just about to take their leases: then it must not go."""
        return any(entry.line.admitted for entry in self._entries)

    def begin(self) -> None:
        """It was loaded, for all who wait now."""
        self._loaded = True
        self._let_in()

    def end(self) -> None:
        self._loaded = False
        for entry in self._entries:
            entry.line.turn_back()
        self._open.set()

    def hold(self, yielding: bool) -> None:
        """Give no more leases, or give them again: then to all who have waited meanwhile."""
        if yielding is self.yielding:
            return
        self.yielding = yielding
        if self._loaded and yielding:
            self._open.clear()
        elif self._loaded:
            self._let_in()

    def _let_in(self) -> None:
        for entry in self._entries:
            entry.line.admit()
        if self.yielding:
            self._open.clear()
        else:
            self._open.set()

    async def comes(self) -> None:
        """Returns when it yields no more, or is not loaded any more."""
        await self._open.wait()

"""How many requests are worked on at once, and how many may wait in line."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from inferloom.errors import RateLimited, RequestTimeout

DEFAULT_LIMIT = 4096


class Admission:
    """`limit` places, and a line as long as there are places. Whoever finds the line full is turned away (429).

    Used as `await enter()` … `leave()`; the places go to those in line in the order of their coming.
    """

    def __init__(self, limit: int | None, *, patience: float) -> None:
        self.limit = limit if limit is not None else DEFAULT_LIMIT
        self.patience = patience
        self.running = 0
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def enter(self, *, deadline: float | None = None) -> None:
        """Take a place, waiting at most `patience` seconds for one, and until `deadline` (time.monotonic()).

        Raises `RateLimited`, `RequestTimeout`.
        """
        if self.running < self.limit:
            self.running += 1
            return
        if len(self._line) >= self.limit:
            raise RateLimited(
                f"The server is working on {self.limit} requests and as many are waiting; try again in a moment.",
                retry_after=1,
            )
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        began = time.monotonic()
        end, limit = began + (self.patience or math.inf), "queue_timeout_secs"
        if deadline is not None and deadline < end:
            end, limit = deadline, "timeout_secs"
        try:
            async with asyncio.timeout(end - began if math.isfinite(end) else None):
                await place
        except TimeoutError:
            self._give_up(place)
            raise RequestTimeout(
                f"The request waited {end - began:.3g} s in line ({limit}); try again later.", retry_after=1.0
            ) from None
        except asyncio.CancelledError:
            self._give_up(place)
            raise

    def leave(self) -> None:
        """Give the place back: to the first in line that still waits."""
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1

    def _give_up(self, place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled():
            self.leave()  # it was handed over in the same moment
        elif place in self._line:
            self._line.remove(place)

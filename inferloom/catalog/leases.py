"""How many requests hold a model, and what is known of them: how often they come and how long they stay."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from inferloom.catalog.eviction import Demand


class Leases:
    """Counted, not listed. The seconds that leases last are told from the area below their number over time, so that no
    lease has to know when it began."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.count = 0
        self.ended = 0
        self.used_at = clock()
        self.idle = asyncio.Event()  # set while there are none
        self.idle.set()
        self._area = 0.0
        self._at = clock()
        self._demand = Demand()

    def asked(self) -> None:
        """A request has come, whether or not it must wait."""
        self._demand.note(self._clock())

    @property
    def rate(self) -> float:
        """Requests a second, lately."""
        return self._demand.rate(self._clock())

    @property
    def idle_secs(self) -> float:
        return 0.0 if self.count else max(0.0, self._clock() - self.used_at)

    @property
    def seconds(self) -> float:
        """Of all leases together, those that are out included."""
        return self._area + self.count * (self._clock() - self._at)

    def take(self) -> None:
        self._advance()
        self.count += 1
        self.idle.clear()

    def give_back(self) -> None:
        self._advance()
        self.count -= 1
        self.ended += 1
        self.used_at = self._at
        if not self.count:
            self.idle.set()

    def begin(self) -> None:
        """It was loaded: it has been idle for no time."""
        self.used_at = self._clock()

    def _advance(self) -> None:
        now = self._clock()
        self._area += self.count * (now - self._at)
        self._at = now


def mean_secs(all_: list[Leases]) -> float:
    """What a lease lasts typically; infinite where none has ended."""
    ended = sum(leases.ended for leases in all_)
    return sum(leases.seconds for leases in all_) / ended if ended else math.inf

"""A timer of the event loop that is set far more often than it rings."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Alarm:
    """Rings no later than at every time it was set to. A time that moves on is not followed: whoever is rung too early sets
    it again. So a thousand requests a second that each have a minute cost one timer a minute."""

    def __init__(self, ring: Callable[[float], None], *, clock: Callable[[], float]) -> None:
        """`ring` is called with the time it was set to, in seconds of `clock`; all earlier ones have come as well."""
        self._ring = ring
        self._clock = clock
        self._when = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def by(self, when: float) -> None:
        """Ring at `when` at the latest; at infinity it need not."""
        if when < self._when:
            self.off()
            self._when = when
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, when - self._clock()), self._fire)

    def off(self) -> None:
        """Ring no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._when = None, math.inf

    def _fire(self) -> None:
        when, self._when = self._when, math.inf
        self._timer = None
        self._ring(when)

"""How long a model that nobody uses stays: for every name it goes by, until when."""

from __future__ import annotations

import math
from collections.abc import Callable

from inferloom.config.quantities import FOREVER
from inferloom.runners.alarm import Alarm


class Keeping:
    """A timer over the names of one model. The time of a name counts from the end of its last lease, and of the load; a
    model goes when the time of every name that was used is over. `expired` is called then, unless the timer was stopped:
    it is while the model loads, while it is leased and while anybody waits for it.

    Requests stop and start it all the time, so they leave its alarm alone: when that rings too early it is set again.
    """

    def __init__(self, expired: Callable[[], None], *, clock: Callable[[], float]) -> None:
        self._expired = expired
        self._clock = clock
        self._until: dict[str, float] = {}
        self._runs = False
        self._alarm = Alarm(self._rung, clock=clock)

    @property
    def until(self) -> float | None:
        """When it ends, on the clock; None while the timer is stopped or there is no end."""
        end = self._end
        return end if self._runs and math.isfinite(end) else None

    @property
    def _end(self) -> float:
        return max(self._until.values(), default=FOREVER)

    def used(self, name: str, *, keep: float) -> None:
        """A lease by that name has ended: it counts for `keep` seconds from now."""
        self._until[name] = self._clock() + keep

    def loaded(self, name: str, *, keep: float) -> None:
        """Nothing was asked of it yet. A model that goes when it is idle would go at once: it stays for its first
        request."""
        self._until.setdefault(name, self._clock() + (keep or FOREVER))

    def kept(self, name: str, *, keep: float) -> None:
        """Somebody asked for it to stay that long from now, who then may want it: 0 means for one request."""
        self._until[name] = self._clock() + (keep or FOREVER)

    def changed(self, name: str, *, keep: float) -> None:
        """What is configured for that name is `keep` seconds now; they count from now where it is in use."""
        if name in self._until:
            self._until[name] = self._clock() + keep

    def drop(self, name: str) -> None:
        """It goes by that name no longer."""
        self._until.pop(name, None)

    def forget(self) -> None:
        """It was unloaded."""
        self.stop()
        self._alarm.off()
        self._until.clear()

    def start(self) -> None:
        """Nobody uses it now."""
        self._runs = True
        self._alarm.by(self._end)

    def stop(self) -> None:
        """Somebody uses it."""
        self._runs = False

    def _rung(self, when: float) -> None:
        if not self._runs:
            return
        if self._end > when:
            self._alarm.by(self._end)
        else:
            self._runs = False
            self._expired()

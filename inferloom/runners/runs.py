"""A runner's requests in progress, by their numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from inferloom.errors import InferloomError, RequestTimeout
from inferloom.runners.alarm import Alarm
from inferloom.runners.run import Run
from inferloom.worker.messages.replies import Step


class Runs:
    """`expired` is called with the number of a request whose time is over."""

    def __init__(self, expired: Callable[[int], None]) -> None:
        self._expired = expired
        self._runs: dict[int, Run] = {}
        self._alarm = Alarm(self._expire, clock=time.monotonic)

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, number: int) -> Run | None:
        return self._runs.get(number)

    def add(self, run: Run, *, deadline: float | None) -> None:
        """`deadline`: time.monotonic() at which it ends with an error."""
        self._runs[run.id] = run
        if deadline is not None:
            run.deadline = deadline
            self._alarm.by(deadline)

    def forget(self, run: Run) -> bool:
        """Whether it was in progress."""
        return self._runs.pop(run.id, None) is not None

    def advance(self, step: Step) -> None:
        runs = self._runs
        for one in step.sequences:
            run = runs.get(one.id)
            if run is not None and run.advance(one):
                self.forget(run)

    def fail_all(self, error: InferloomError) -> None:
        runs, self._runs = self._runs, {}
        self._alarm.off()
        for run in runs.values():
            run.handle.fail(error)

    def _expire(self, when: float) -> None:
        for run in [run for run in self._runs.values() if run.deadline <= when]:
            self.forget(run)
            self._expired(run.id)
            run.handle.fail(
                RequestTimeout("the request's time limit was reached before its answer was complete")
            )
        self._alarm.by(min((run.deadline for run in self._runs.values()), default=math.inf))

"""The contenders of a run. Several rows share one that takes long to start, and none disturbs another's measurement."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from peers.contender import Contender


@dataclass(frozen=True)
class Start:
    """How to make a contender: equal ones are the same contender."""

    make: Callable[[str], Contender]
    which: str  # the model or the weights


class Pool:
    """Use as a context: what still runs at its end is stopped. One contender per `Start`."""

    def __init__(self) -> None:
        self._running: dict[Start, Contender] = {}
        self._spinning: set[str] = set()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep_only(())

    def started(self, start: Start) -> Contender | None:
        """A contender that answers; None, with the reason on stderr, if it cannot."""
        if start in self._running:
            return self._running[start]
        try:
            contender = start.make(start.which)
            note(f"starting {contender.name}")
            with self.quiet(), ExitStack() as stack:
                stack.enter_context(contender)
                contender.complete([[1000] * 16], 4)
                if contender.spins():
                    self._spinning.add(contender.name)
                    note(f"{contender.name} spins while nothing is asked: stopped while others are timed")
                stack.pop_all()  # it goes on running
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            note(f"not compared: {error}")
            return None
        note(f"{contender.name} answers after {contender.load_seconds:.1f} s")
        self._running[start] = contender
        return contender

    def keep_only(self, wanted: Collection[Start]) -> None:
        """Stop all others."""
        for start in [start for start in self._running if start not in wanted]:
            self._running.pop(start).__exit__()

    @contextmanager
    def quiet(self, *, but: Contender | None = None) -> Iterator[None]:
        """Those that spin, except `but`, are stopped until the context is left."""
        paused = [
            contender
            for contender in self._running.values()
            if contender is not but and contender.name in self._spinning
        ]
        for contender in paused:
            contender.pause()
        try:
            yield
        finally:
            for contender in paused:
                contender.resume()


def note(text: str) -> None:
    """Say on stderr how far the run is."""
    print(text, file=sys.stderr, flush=True)

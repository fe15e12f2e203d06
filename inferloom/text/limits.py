"""Limits on running foreign code in this process: an interval timer, and a ceiling on memory.

In the main thread (where the event loop runs, and renders take microseconds) `SIGALRM` interrupts Python code
after the time, and `RLIMIT_AS` turns a grab for memory into a `MemoryError`. Python delivers signals to the main
thread only, so in any other thread a watchdog thread raises the exception there (`PyThreadState_SetAsyncExc`);
memory then has no ceiling but the sandbox's own, because the limit is the process's and not the thread's.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


class OutOfTime(BaseException):
    """Raised inside the limited code; a BaseException, so that the code's own handlers let it pass."""


def run_limited(work: Callable[[], T], *, seconds: float, memory: int) -> T:
    """Call `work` and give its result.

    Raises `OutOfTime` after `seconds` (checked between bytecodes), `MemoryError` where it would add more than
    about `memory` bytes of address space (main thread only), and whatever `work` raises.
    """
    if threading.current_thread() is threading.main_thread():
        return _run_with_timer(work, seconds=seconds, memory=memory)
    return _WATCHDOG.run(work, seconds=seconds)


def _run_with_timer(work: Callable[[], T], *, seconds: float, memory: int) -> T:
    started = time.monotonic()
    armed = True

    def ring(_signal: int, _frame: FrameType | None) -> None:
        if armed:
            raise OutOfTime

    previous = signal.signal(signal.SIGALRM, ring)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    remaining = interval = 0.0
    try:
        remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
        _limit_memory(memory, soft=soft, hard=hard)
        return work()
    finally:
        armed = False
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if remaining:  # somebody else's timer goes on where it was
            left = max(1e-6, remaining - (time.monotonic() - started))
        else:
            left = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)
        if left:
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _limit_memory(memory: int, *, soft: int, hard: int) -> None:
    ceiling = int(_STATM.read_bytes().split()[0]) * _PAGE + memory
    if soft != resource.RLIM_INFINITY:
        ceiling = min(ceiling, soft)
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))


class _Watchdog:
    """One daemon thread, started when first needed, that interrupts other threads at their deadlines."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._deadlines: dict[int, float] = {}  # by thread id
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], T], *, seconds: float) -> T:
        thread = threading.get_ident()
        with self._lock:
            self._deadlines[thread] = time.monotonic() + seconds
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="render-watchdog", daemon=True)
                self._thread.start()
            self._lock.notify()
        try:
            return work()
        finally:
            with self._lock:
                # under the lock the watchdog cannot strike any more; what it sent and did not arrive is withdrawn
                if self._deadlines.pop(thread, None) is None:
                    _interrupt(thread, None)

    def _watch(self) -> None:
        with self._lock:
            while True:
                now = time.monotonic()
                for thread, deadline in list(self._deadlines.items()):
                    if deadline <= now:
                        del self._deadlines[thread]
                        _interrupt(thread, OutOfTime)
                nearest = min(self._deadlines.values(), default=None)
                self._lock.wait(None if nearest is None else max(0.0, nearest - now))


def _interrupt(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )


_WATCHDOG = _Watchdog()

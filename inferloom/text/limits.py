"""Limits on running foreign code in this process: an interval timer, and a ceiling on memory.

In the main thread (where the event loop runs, and renders take microseconds) `SIGALRM` interrupts Python code
after the time, and `RLIMIT_AS` turns a grab for memory into a `MemoryError`. Python delivers signals to the main
thread only, and a limit is the process's and not the thread's; so in any other thread a watchdog thread looks at the
clock and at the address space a hundred times a second and raises the exception there
(`PyThreadState_SetAsyncExc`).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_PAGE = os.sysconf("SC_PAGE_SIZE")
# the C function beneath `signal.signal`: the wrapper's conversions to enumerations would be half of a short render
_set_handler: Callable[[int, Any], Any] = getattr(sys.modules["_signal"], "signal", signal.signal)
_ALARM = int(signal.SIGALRM)


class OutOfTime(BaseException):
    """Raised inside the limited code; a BaseException, so that the code's own handlers let it pass."""


def run_limited(work: Callable[[], T], *, seconds: float, memory: int) -> T:
    """Call `work` and give its result.

    Raises `OutOfTime` after `seconds` (checked between bytecodes), `MemoryError` where it would add more than
    about `memory` bytes of address space (main thread; elsewhere up to twice that), and whatever `work` raises.
    """
    if threading.get_ident() == threading.main_thread().ident:
        return _run_with_timer(work, seconds=seconds, memory=memory)
    return _WATCHDOG.run(work, seconds=seconds, memory=memory)


def _run_with_timer(work: Callable[[], T], *, seconds: float, memory: int) -> T:
    started = time.monotonic()
    armed = True

    def ring(_signal: int, _frame: FrameType | None) -> None:
        if armed:
            raise OutOfTime

    previous = _set_handler(_ALARM, ring)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    remaining = interval = 0.0
    try:
        remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
        _limit_memory(memory, soft=soft, hard=hard)
        try:
            return work()
        finally:
            armed = False  # should it ring right here, the outer block still tidies up
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if remaining:  # somebody else's timer goes on where it was
            left = max(1e-6, remaining - (time.monotonic() - started))
        else:
            left = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        _set_handler(_ALARM, int(signal.SIG_DFL) if previous is None else previous)
        if left:
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _limit_memory(memory: int, *, soft: int, hard: int) -> None:
    ceiling = _ADDRESS_SPACE.size() + memory
    if soft != resource.RLIM_INFINITY:
        ceiling = min(ceiling, soft)
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))


class _AddressSpace:
    """Reads the size of this process's address space; the file is kept open, one per process (forks have another)."""

    def __init__(self) -> None:
        self._pid = 0
        self._descriptor = -1

    def size(self) -> int:
        """Bytes."""
        if self._pid != os.getpid():
            self._descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
            self._pid = os.getpid()
        return int(os.pread(self._descriptor, 64, 0).split()[0]) * _PAGE


_ADDRESS_SPACE = _AddressSpace()


class _Watch(msgspec.Struct, frozen=True):
    deadline: float  # time.monotonic()
    ceiling: int  # bytes of address space


class _Watchdog:
    """One daemon thread, started when first needed, that interrupts other threads at their limits."""

    _TICK = 0.01

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: dict[int, _Watch] = {}  # by thread id
        self._struck: dict[int, type[BaseException]] = {}
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], T], *, seconds: float, memory: int) -> T:
        thread = threading.get_ident()
        watch = _Watch(time.monotonic() + seconds, _ADDRESS_SPACE.size() + memory)
        with self._changed:
            self._watches[thread] = watch
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="render-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            return work()
        finally:
            with self._changed:
                # under the lock the watchdog cannot strike any more; what it sent and did not arrive is withdrawn
                self._watches.pop(thread, None)
                if self._struck.pop(thread, None) is not None:
                    _interrupt(thread, None)

    def _watch(self) -> None:
        with self._changed:
            while True:
                for thread, watch in list(self._watches.items()):
                    if time.monotonic() >= watch.deadline:
                        self._strike(thread, OutOfTime)
                    elif _ADDRESS_SPACE.size() > watch.ceiling:
                        self._strike(thread, MemoryError)
                self._changed.wait(self._TICK if self._watches else None)

    def _strike(self, thread: int, error: type[BaseException]) -> None:
        del self._watches[thread]
        self._struck[thread] = error
        _interrupt(thread, error)


def _interrupt(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )


_WATCHDOG = _Watchdog()

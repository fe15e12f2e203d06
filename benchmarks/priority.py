"""Linux shares processor time between sessions first (sched_autogroup), so `nice` alone protects no measurement from a
compiler in another window: the session itself needs the priority, see sched(7)."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GROUP = Path("/proc/self/autogroup")
HIGHEST = "-20"


def own_session() -> None:
    """Go on in a session of our own, which every contender then shares; where that takes a second process, the first
    one waits for it and passes signals on. SIGTERM then ends us as a failure does, so that contenders are stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    with suppress(PermissionError):
        os.setsid()
        return
    child = os.fork()
    if child == 0:
        os.setsid()
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def raise_priority() -> str:
    """Give our session the highest priority; what came of it, in words. Contenders inherit it, see `share`."""
    if not GROUP.exists():
        return "no autogroups here: the usual priority for everybody"
    with suppress(OSError):
        GROUP.write_text(HIGHEST)
    told = GROUP.read_text().split()[-1]
    if told != HIGHEST:
        print("without the right to raise priorities: let nothing else run", file=sys.stderr)
    return f"autogroup nice {told} for everybody"


def share(pids: Iterable[int]) -> None:
    """Give processes that began sessions of their own (the workers of a server) what our session has."""
    with suppress(OSError):
        nice = GROUP.read_text().split()[-1]
        for pid in pids:
            with suppress(OSError):
                Path(f"/proc/{pid}/autogroup").write_text(nice)


@contextmanager
def shared_with_children(pids: Collection[int]) -> Iterator[None]:
    """Until the context is left, `share` with every child that one of `pids` starts, within a few milliseconds."""
    done = threading.Event()

    def follow() -> None:
        known: set[int] = set()
        while not done.wait(0.005):
            new = {child for pid in pids for child in _children(pid)} - known
            share(new)
            known |= new

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []

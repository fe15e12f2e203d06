"""Who is whose child: the kernel's own means to leave no process behind (Linux).

The gateway is a child subreaper: whatever its descendants orphan becomes its child, so it can reap it. A child asks
to be killed when its parent goes (PDEATHSIG) and then checks that the parent had not gone already.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_ORPHANED = 113  # exit status of a child whose parent was gone before it could ask to be told

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Adopt orphaned descendants of the calling process. Idempotent."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int, *, middle: int = 0, how: int = signal.SIGKILL) -> None:
    """Have the kernel send `how` to the calling process when `parent` goes.

    `middle` is a parent that is about to exit and hand this process over to `parent`: its end is waited for, because
    PDEATHSIG is about the parent a process has when it asks.
    """
    while os.getppid() == middle:
        time.sleep(0.0002)
    _prctl(_PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:
        os._exit(_ORPHANED)


def name_process(name: str) -> None:
    """What `ps` and `top` show: at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _libc.prctl(_PR_SET_NAME, buffer, 0, 0, 0)


def threads() -> int:
    """Threads of the calling process, C libraries' included."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def children(process: int | None = None) -> list[int]:
    """Process ids of a process's children, zombies included; by default of the calling process. None where it is gone."""
    found: list[int] = []
    for task in Path(f"/proc/{process or 'self'}/task").glob("*"):
        try:
            text = (task / "children").read_text()
        except OSError:  # a thread that has just ended
            continue
        found.extend(int(pid) for pid in text.split())
    return found


def session_of(pid: int) -> int | None:
    """The session a process belongs to; None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[3])


def end_strays(session: int, *, known: set[int]) -> int:
    """Kill and reap the calling process's children of a session that are not `known`; how many there were."""
    ended = 0
    for pid in children():
        if pid in known or session_of(pid) != session:
            continue
        ended += 1
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):  # reaped meanwhile
            continue
    return ended


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")

"""Watches the files a model is mapped from.

A file that is cut short kills whoever maps it; one that is overwritten in place silently changes the answers. So the
worker holds a descriptor of each, and a read lease where the kernel grants one (its owner or root, on most local file
systems): a writer then waits, up to 45 s, and the worker is told first. Size and modification time are compared
besides, for file systems without leases and for changes that need no opening.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Sequence
from types import FrameType

from inferloom.errors import LoadFailed, SourceNotFound

CHANGED = "weights file changed under the worker"


class WeightsWatch:
    """To be made before the files are mapped and checked after, and now and then. From the main thread.

    Raises `SourceNotFound`. `wake` is a descriptor that becomes readable when a lease is broken, to end a wait.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._broken = False
        self.wake, self._waking = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self._waking, False)
        signal.signal(signal.SIGIO, self._lease_broken)
        signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)
        self._files: list[tuple[str, int, tuple[int, int]]] = []
        self.leases = 0
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise SourceNotFound(f"the weights file {path} cannot be opened: {error.strerror}") from error
            self._files.append((path, descriptor, _stamp(descriptor)))
            try:
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError:  # not the owner, being written, or a file system without leases
                continue
            self.leases += 1

    def check(self) -> None:
        """Raises `LoadFailed` once a file is not what it was. Cheap while no file system call is needed."""
        if self._broken:
            raise LoadFailed(f"{CHANGED}: somebody opened one of its files for writing")

    def compare(self) -> None:
        """As `check`, and compares sizes and modification times. A file renamed or unlinked is fine: the worker
        keeps the old one."""
        self.check()
        for path, descriptor, stamp in self._files:
            if _stamp(descriptor) != stamp:
                raise LoadFailed(f"{CHANGED}: {path}")

    def _lease_broken(self, number: int, frame: FrameType | None) -> None:
        self._broken = True


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns

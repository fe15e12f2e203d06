"""A worker that is forked before it is asked for, so that a load need not wait for it.

It is forked twice, and the process between lives until the worker gets its descriptors: then it exits, and the kernel hands the worker to
the gateway. Until then neither of them is a child of the gateway's, and both leave when the forkserver does.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from inferloom.worker.lineage import die_with

DESCRIPTORS = 2  # of one request: socket, stderr


class Spare:
    """Seen from the forkserver."""

    def __init__(
        self,
        work: Callable[[Sequence[int]], NoReturn],
        *,
        gateway: int,
        closing: socket.socket,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """`work` gets the descriptors of a request in the worker; `prepare` is run there while it has none. `closing` is not for it.
        Raises `OSError` where the machine has no room for another process."""
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()  # the number of the worker's process
        held, self._holding = os.pipe()  # the process between lives until this end is closed
        try:
            self._middle = os.fork()
        except OSError:
            self._ours.close()
            theirs.close()
            for descriptor in (reading, writing, held, self._holding):
                os.close(descriptor)
            raise
        if self._middle == 0:
            try:
                closing.close()
                self._ours.close()
                for descriptor in (reading, self._holding):
                    os.close(descriptor)
                me = os.getpid()
                pid = os.fork()
                if pid == 0:
                    for descriptor in (writing, held):
                        os.close(descriptor)
                    _wait(theirs, work, gateway=gateway, middle=me, prepare=prepare)
                theirs.close()
                os.write(writing, pid.to_bytes(4, "little"))
                os.close(writing)
                os.read(held, 1)
                os.waitpid(pid, os.WNOHANG)  # one that has ended unemployed is not the gateway's to reap
            finally:
                os._exit(0)
        theirs.close()
        for descriptor in (writing, held):
            os.close(descriptor)
        answer = os.read(reading, 4)
        os.close(reading)
        if len(answer) != 4:
            self.close()
            raise OSError("fork failed: the machine has no room for another process")
        self.pid = int.from_bytes(answer, "little")

    def employ(self, descriptors: Sequence[int]) -> int:
        """Give the worker a request and the gateway the worker: its process id. Raises `OSError` where it is gone."""
        try:
            socket.send_fds(self._ours, [b"work"], list(descriptors))
        finally:
            self.close()
        return self.pid

    def close(self) -> None:
        """Let it go, unemployed unless it has got its descriptors."""
        self._ours.close()
        os.close(self._holding)
        os.waitpid(self._middle, 0)


def _wait(
    theirs: socket.socket,
    work: Callable[[Sequence[int]], NoReturn],
    *,
    gateway: int,
    middle: int,
    prepare: Callable[[], None] | None,
) -> NoReturn:
    try:
        if prepare is not None:
            prepare()
        message, descriptors, _, _ = socket.recv_fds(theirs, 16, DESCRIPTORS)
        if message:
            theirs.close()
            die_with(gateway, middle=middle)
            work(descriptors)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)

"""One worker as the gateway sees it: its socket, its stderr, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import msgspec

from inferloom.worker.frames import FrameSplitter, frame
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import FromWorker
from inferloom.worker.messages.requests import Stop, ToWorker

STDERR_LINES = 20  # of a worker's last words
STDERR_LINE_CHARS = 2000
READ_BYTES = 1 << 18

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FromWorker).decode


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: by a signal, or with a status."""

    pid: int
    status: int = 0
    signal: str | None = None  # "SIGKILL" …

    @classmethod
    def of(cls, result: os.waitid_result) -> Exit:
        if result.si_code == os.CLD_EXITED:
            return cls(pid=result.si_pid, status=result.si_status)
        try:
            name = signal.Signals(result.si_status).name
        except ValueError:  # a real-time signal
            name = f"signal {result.si_status}"
        return cls(pid=result.si_pid, signal=name)

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit status {self.status}"
        hints = {
            "SIGKILL": " (perhaps the kernel's, for want of memory)",
            "SIGBUS": " (a mapped weights file was cut short)",
        }
        return f"{self.signal}{hints.get(self.signal, '')}"


class WorkerProcess(asyncio.Protocol):
    """A running worker. `exit` is done once it was reaped and everything it had said was delivered.

    `on_message` is called from the loop's thread for every message, in order; it must not raise.
    """

    def __init__(
        self,
        pid: int,
        *,
        on_exit: Callable[[WorkerProcess, Exit], None] | None = None,
        on_stderr: Callable[[str], None] | None = None,
    ) -> None:
        self.pid = pid
        self.on_message: Callable[[FromWorker], None] = _ignore
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.last_words: deque[str] = deque(maxlen=STDERR_LINES)
        self._on_exit = on_exit
        self._on_stderr = on_stderr
        self._splitter = FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self._connected = False
        self._exit: Exit | None = None
        self._pidfd = -1
        self._stderr = -1
        self._line = b""

    async def open(self, sock: socket.socket, *, stderr: int) -> None:
        """Start to watch: the process's end, its stderr, its socket. Takes over both descriptors."""
        loop = asyncio.get_running_loop()
        self._stderr = stderr
        try:
            # no reuse of the number: we are the parent and have not reaped it
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:  # no descriptor is left: a process that cannot be watched must not live
            sock.close()
            os.kill(self.pid, signal.SIGKILL)
            result = os.waitid(os.P_PID, self.pid, os.WEXITED)  # noqa: ASYNC222 - it was killed: at once
            assert result is not None
            self._exit = Exit.of(result)
            self._conclude()
            raise
        os.set_blocking(stderr, False)
        loop.add_reader(stderr, self._read_stderr)
        loop.add_reader(self._pidfd, self._reap)
        try:
            await loop.create_unix_connection(lambda: self, sock=sock)
        except BaseException:
            # uvloop closes a connection that nobody waits for any more without telling its protocol
            self._transport, self._connected = None, False
            raise

    # what the gateway does
    def send(self, message: ToWorker) -> None:
        """Queue a message. To a worker that is gone it is dropped; `exit` tells of that."""
        if self._transport is not None:
            self._transport.write(frame(_encode(message)))

    def send_job(self, job: WorkerJob) -> None:
        """What the worker is to host: its first frame."""
        if self._transport is not None:
            self._transport.write(frame(_encode(job)))

    @property
    def alive(self) -> bool:
        return self._exit is None

    def kill(self) -> None:
        """SIGKILL, now. `exit` tells when it is gone."""
        if self._exit is None and self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def stop(self, *, grace: float = 2.0) -> Exit:
        """Ask the process to end, kill it after `grace` seconds, and wait until it is gone.

        A cancellation takes the grace away and is raised once the process is gone: nobody may believe that its memory
        is free while it is not.
        """
        self.send(Stop())
        try:
            await asyncio.wait({self.exit}, timeout=grace)
        finally:
            await self.end()
        return self.exit.result()

    async def end(self) -> None:
        """Kill the process and wait until it is gone, however often the wait is cancelled."""
        self.kill()
        cancelled: asyncio.CancelledError | None = None
        while not self.exit.done():
            try:
                await asyncio.wait({self.exit})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    # what the loop calls
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no common class
        self._connected = True

    def data_received(self, data: bytes) -> None:
        deliver = self.on_message
        for body in self._splitter.split(data):
            deliver(_decode(body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connected = False
        self._conclude()

    def _reap(self) -> None:
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._exit = Exit.of(result)
        self._drain()
        self._conclude()

    def _drain(self) -> None:
        """What it said before its end is in the socket, and is delivered before anybody hears of that: nobody may think that
        it lives meanwhile. A grandchild may hold the socket open; the worker is gone all the same."""
        transport = self._transport
        while transport is not None and not transport.is_closing():
            try:
                data = os.read(transport.get_extra_info("socket").fileno(), READ_BYTES)
            except OSError:
                break
            if not data:
                break
            self.data_received(data)
        self._disconnect()
        self._connected = False

    def _disconnect(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _conclude(self) -> None:
        if self._exit is None or self._connected or self.exit.done():
            return
        self._read_stderr()
        self._close_stderr()
        self.exit.set_result(self._exit)
        if self._on_exit is not None:
            self._on_exit(self, self._exit)

    def _read_stderr(self) -> None:
        while self._stderr >= 0:
            try:
                data = os.read(self._stderr, 65536)
            except BlockingIOError:
                return
            if not data:
                self._close_stderr()
                return
            *lines, self._line = (self._line + data).split(b"\n")
            self._line = self._line[-STDERR_LINE_CHARS:]
            for line in lines:
                self._say(line)

    def _close_stderr(self) -> None:
        if self._stderr >= 0:
            asyncio.get_running_loop().remove_reader(self._stderr)  # nothing where it was not added
            os.close(self._stderr)
            self._stderr = -1
            if self._line:
                self._say(self._line)
                self._line = b""

    def _say(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()[:STDERR_LINE_CHARS]
        self.last_words.append(text)
        if self._on_stderr is not None:
            self._on_stderr(text)


def _ignore(message: FromWorker) -> None:
    """Until a runner listens, nothing is waited for."""

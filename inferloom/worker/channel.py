"""The worker's end of the socket pair: plain blocking calls, because the engine's loop is the only user."""

from __future__ import annotations

import select
import socket

import msgspec

from inferloom.worker.frames import FrameSplitter, frame
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import FromWorker
from inferloom.worker.messages.requests import ToWorker

CHUNK = 1 << 18

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToWorker).decode
_decode_job = msgspec.msgpack.Decoder(WorkerJob).decode


class Channel:
    """Messages to and from the gateway. Raises `EOFError` when the gateway is gone."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._splitter = FrameSplitter()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._early: list[memoryview] = []  # frames that came with the job

    def wake_on(self, descriptor: int) -> None:
        """A wait in `receive` ends early when `descriptor` becomes readable."""
        self._poll.register(descriptor, select.POLLIN)

    def receive_job(self) -> WorkerJob:
        """The first frame: what to host."""
        while not self._early:
            self._early = self._splitter.split(self._read(0))
        return _decode_job(self._early.pop(0))

    def receive(self, *, wait: float | None = 0.0) -> list[ToWorker]:
        """Everything that has arrived; with nothing there, wait at most `wait` seconds (None: without end)."""
        bodies, self._early = self._early, []
        if not bodies:
            milliseconds = None if wait is None else wait * 1000
            for descriptor, _ in self._poll.poll(milliseconds):
                if descriptor == self._sock.fileno():
                    bodies = self._splitter.split(self._read(socket.MSG_DONTWAIT))
        return [_decode(body) for body in bodies]

    def send(self, message: FromWorker) -> None:
        """Write one message. Blocks while the gateway has no room: that is what slows the engine down."""
        try:
            self._sock.sendall(frame(_encode(message)))
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None

    def _read(self, flags: int) -> bytes:
        try:
            data = self._sock.recv(CHUNK, flags)
        except BlockingIOError:
            raise AssertionError("poll said that there is something to read") from None
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        return data

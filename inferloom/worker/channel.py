"""The worker's end of the socket pair: plain blocking calls, because the engine's loop is the only user.

What a step brings can be posted instead: a thread writes it while the next step computes. The kernel likes to run the
reader of a message on the processor of its writer, at once: the loop would stand still while the gateway works.
"""

from __future__ import annotations

import select
import socket
import threading
from queue import SimpleQueue

import msgspec

from inferloom.worker.frames import FrameSplitter, frame
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import FromWorker
from inferloom.worker.messages.requests import ToWorker

CHUNK = 1 << 18
POSTED = 64  # messages that may wait to be written

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
        self._posts: SimpleQueue[bytes] | None = None
        self._room = threading.Semaphore(POSTED)
        self._gone = False

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
        """Write one message, after those that were posted. Blocks while the gateway has no room."""
        self._drain()
        try:
            self._sock.sendall(frame(_encode(message)))
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None

    def post(self, message: FromWorker) -> None:
        """Have a message written, in order. Blocks while many wait: that is what slows the engine down."""
        if self._posts is None:
            self.send(message)
            return
        self._room.acquire()
        if self._gone:
            self._room.release()
            raise EOFError
        self._posts.put(frame(_encode(message)))

    def start_posting(self) -> None:
        """From now on a thread writes what is posted; before, and without it, `post` is `send`."""
        self._posts = SimpleQueue()
        threading.Thread(target=self._write_posts, args=(self._posts,), daemon=True).start()

    def _write_posts(self, posts: SimpleQueue[bytes]) -> None:
        while True:
            data = posts.get()
            try:
                if not self._gone:
                    self._sock.sendall(data)
            except OSError:
                self._gone = True
            self._room.release()

    def _drain(self) -> None:
        """Wait until everything that was posted is written."""
        if self._posts is not None:
            for _ in range(POSTED):
                self._room.acquire()
            self._room.release(POSTED)

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

"""The process that workers are forked from: it has imported what they need and never runs any of it.

Single-threaded and synchronous. After one parallel region in this process every child would hang in its first, so it
runs no operator and refuses to fork unless it has exactly one thread. A request is `{"id"}` with two descriptors (the
worker's end of the socket pair, the pipe for its stderr); the answer is `{"id", "pid"}` or `{"id", "error"}`.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from inferloom.worker.huge_pages import collapse_heap
from inferloom.worker.lineage import die_with, threads

REQUEST_BYTES = 4096
DESCRIPTORS = 2  # of one request: socket, stderr


def main(argv: Sequence[str]) -> NoReturn:
    """`argv`: control socket's descriptor, process id of the gateway, modules to import."""
    descriptor, gateway, modules = int(argv[0]), int(argv[1]), argv[2:]
    die_with(gateway)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the gateway's to handle
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    try:
        warnings = preload(modules)
        collapse_heap()  # before the first fork: a worker that shares the small pages would keep them, a second heap
    except BaseException:
        _answer(control, error=traceback.format_exc())
        os._exit(1)
    _answer(control, ready=True, warnings=warnings)
    serve(control, gateway=gateway)


class Heard(logging.Handler):
    """What our modules warn of while they are imported, for the log of the gateway."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def preload(modules: Sequence[str]) -> list[str]:
    """Import `modules` and make the heap ready to be shared; what they warned of. Raises `RuntimeError` if an import left
    a thread."""
    heard, logger = Heard(), logging.getLogger("inferloom")
    logger.addHandler(heard)
    for module in modules:
        importlib.import_module(module)
    logger.removeHandler(heard)
    check_single_threaded()
    import gc

    gc.collect()
    gc.freeze()  # a child's collector then leaves these pages alone: 2 MB private instead of 41
    return heard.messages


def check_single_threaded() -> None:
    """Raises `RuntimeError` where forking would not be safe."""
    count = threads()
    if count != 1:
        raise RuntimeError(
            f"the forkserver has {count} threads; a worker forked from it would hang in its first parallel region"
        )


def serve(control: socket.socket, *, gateway: int) -> NoReturn:
    """Fork a worker for every request until the gateway closes the control socket."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, REQUEST_BYTES, DESCRIPTORS)
        if not message:
            os._exit(0)
        number = json.loads(message)["id"]
        try:
            check_single_threaded()
            pid = _fork_worker(control, descriptors, gateway=gateway)
        except (RuntimeError, OSError) as error:
            _answer(control, id=number, error=str(error))
        else:
            _answer(control, id=number, pid=pid)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _fork_worker(control: socket.socket, descriptors: Sequence[int], *, gateway: int) -> int:
    """Fork twice, so that the worker's parent is gone at once and the kernel hands it to the gateway. Its pid."""
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        _middle(control, descriptors, writing, gateway=gateway)
    os.close(writing)
    answer = os.read(reading, 4)
    os.close(reading)
    os.waitpid(middle, 0)
    if len(answer) != 4:
        raise RuntimeError("fork failed: the machine has no room for another process")
    return int.from_bytes(answer, "little")


def _middle(control: socket.socket, descriptors: Sequence[int], writing: int, *, gateway: int) -> NoReturn:
    """The process between: it must never return into the forkserver's code."""
    me = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            control.close()
            _worker(descriptors, gateway=gateway, middle=me)
        os.write(writing, pid.to_bytes(4, "little"))
    finally:
        os._exit(0)


def _worker(descriptors: Sequence[int], *, gateway: int, middle: int) -> NoReturn:
    status = 1
    try:
        die_with(gateway, middle=middle)
        sock, stderr = descriptors
        os.dup2(stderr, 1)  # a stray print must not reach the terminal's stdout
        os.dup2(stderr, 2)
        os.close(stderr)
        from inferloom.worker.main import main as work

        status = work(socket.socket(fileno=sock))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _answer(control: socket.socket, **message: Any) -> None:
    control.send(json.dumps(message).encode())

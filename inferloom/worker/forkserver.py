"""The process that workers are forked from: it has imported what they need and never runs any of it.

Single-threaded and synchronous. After one parallel region in this process every child would hang in its first, so it
runs no operator and refuses to fork unless it has exactly one thread. A request is `{"id"}` with two descriptors (the
worker's end of the socket pair, the pipe for its stderr); the answer is `{"id", "pid"}` or `{"id", "error"}`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from inferloom.worker.huge_pages import collapse_heap
from inferloom.worker.lineage import die_with, name_process, threads
from inferloom.worker.spare import DESCRIPTORS, Spare

REQUEST_BYTES = 4096
PAUSE_SECS = 1.0  # without a request, before a worker is forked ahead of the next


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
    """A worker for every request until the gateway closes the control socket. In a pause one is forked ahead of the next."""
    spare: Spare | None = None
    while True:
        if spare is None and not _arrives(control, within=PAUSE_SECS):
            spare = _spare(control, gateway=gateway)
        message, descriptors, _, _ = socket.recv_fds(control, REQUEST_BYTES, DESCRIPTORS)
        if not message:
            os._exit(0)
        number = json.loads(message)["id"]
        try:
            pid = _employ(spare, control, descriptors, gateway=gateway)
        except (RuntimeError, OSError) as error:
            _answer(control, id=number, error=str(error))
        else:
            _answer(control, id=number, pid=pid)
        finally:
            spare = None
            for descriptor in descriptors:
                os.close(descriptor)


def _arrives(control: socket.socket, *, within: float) -> bool:
    return bool(select.select([control], [], [], within)[0])


def _employ(spare: Spare | None, control: socket.socket, descriptors: Sequence[int], *, gateway: int) -> int:
    """The spare worker or, where there is none or it is gone, another one. Its pid."""
    if spare is not None:
        with contextlib.suppress(OSError):
            return spare.employ(descriptors)
    return _forked(control, gateway=gateway).employ(descriptors)


def _forked(control: socket.socket, *, gateway: int, prepare: Callable[[], None] | None = None) -> Spare:
    """Raises `RuntimeError` where forking would not be safe, `OSError` where there is no room."""
    check_single_threaded()
    return Spare(_work, gateway=gateway, closing=control, prepare=prepare)


def _spare(control: socket.socket, *, gateway: int) -> Spare | None:
    """A worker ahead of a request; None where none can be forked, which the request will be told."""
    try:
        return _forked(control, gateway=gateway, prepare=_prepare)
    except (RuntimeError, OSError):
        return None


def _prepare() -> None:
    """What a load would do first, in a worker that waits for one."""
    name_process("loom:spare")
    if "inferloom.worker.native" in sys.modules:
        from inferloom.worker.rehearsal import rehearse

        rehearse()


def _work(descriptors: Sequence[int]) -> NoReturn:
    status = 1
    try:
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

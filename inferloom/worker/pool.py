"""The gateway's supervision of its workers: a forkserver that makes them, the kernel that hands them over.

A worker is the gateway's own child (see `lineage`), so its end and signal are learnt from a pidfd. The forkserver is
only a mould: when it dies, workers serve on, pending spawns fail, and the next spawn starts another.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import inferloom
from inferloom.config.schema import Config
from inferloom.errors import LoadFailed, ModelUnavailable
from inferloom.worker.lineage import become_subreaper, end_strays
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import FromWorker
from inferloom.worker.pacing import retry_delay
from inferloom.worker.process import Exit, WorkerProcess

log = logging.getLogger("inferloom.worker")

LIGHT = ("inferloom.worker.main",)  # what every worker needs
NATIVE = ("torch", *LIGHT, "inferloom.worker.native")  # torch first: its OpenMP is the one that stays
SPAWN_SECS = 60.0  # from asking for a worker to its pid, the forkserver's imports included
SWEEPS = 20  # passes without a stray before a dead forkserver's session counts as clean
SWEEP_SECS = 0.002
GRACE_SECS = 0.5  # for workers to leave on their own when the pool stops

_ROOT = str(Path(inferloom.__file__).resolve().parent.parent)
# -P: the working directory's files must not shadow modules. The root is for a checkout that is not installed.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from inferloom.worker.forkserver import main; main(sys.argv[2:])"


def forkserver_environment(own: Mapping[str, str]) -> dict[str, str]:
    """The gateway's environment with what the libraries in workers read from it while they are loaded.

    OpenBLAS must not start threads, which would forbid forking. OpenMP's threads must not spin long at the end of a
    parallel region: where two workers, or a worker and anything else, share the processors, a spinning thread keeps
    the one it waits for from running, and two models at once come to a standstill. 1000 turns is what libgomp itself
    takes where it sees more threads than processors; it cannot see other processes. What the operator set stays.

    glibc (2.35 and later) takes its heap in huge pages: importing faults half as often and takes a sixth less time, and
    `collapse_heap` finds most of its work done.
    """
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **own, "OPENBLAS_NUM_THREADS": "1"}
    if "OMP_WAIT_POLICY" not in own:
        environment.setdefault("GOMP_SPINCOUNT", "1000")
    return environment


class WorkerPool:
    """Starts workers and sees them end. To be used from one event loop, in a thread that outlives the pool
    (PDEATHSIG is about the thread that forked)."""

    def __init__(self, *, preload: Sequence[str] = NATIVE) -> None:
        self._preload = tuple(preload)
        self._forkserver: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready: asyncio.Future[None] | None = None
        self._pending: dict[int, asyncio.Future[int]] = {}  # asked and not answered, whoever still waits
        self._spawns = 0
        self._failures = 0
        self._retry_at = 0.0
        self._workers: dict[int, WorkerProcess] = {}
        self._known: set[int] = set()  # pids that the forkserver told of and that were not reaped
        self._sweepers: set[asyncio.Task[None]] = set()
        self._warned: set[str] = set()  # what forkservers said, the next one says again
        self._stopped = False

    @classmethod
    def for_config(cls, config: Config) -> WorkerPool:
        """A pool whose forkserver imports what the configuration's drivers need: nothing for `dummy` alone."""
        native = any(model.driver.type != "dummy" for model in config.model)
        return cls(preload=NATIVE if native else LIGHT)

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers that live."""
        return list(self._workers.values())

    @property
    def forkserver_pid(self) -> int | None:
        return self._forkserver.pid if self._forkserver is not None and self._control is not None else None

    def launch(self) -> None:
        """Start the forkserver, before there is an event loop: it imports for longer than a gateway that does so beside it.
        `start` then listens to it. From the thread that will run the loop."""
        become_subreaper()
        if self._control is None:
            self._launch_forkserver()

    def abandon(self) -> None:
        """End what was launched, where the pool was never started; else nothing."""
        if self._forkserver is not None and self._control is not None and self._ready is None:
            self._forkserver.kill()
            self._forkserver.wait()
            self._control.close()
            self._control = None

    async def start(self) -> None:
        """Start the forkserver, if it was not launched; its imports go on in the background and the first spawn waits for
        them."""
        self.launch()
        if self._ready is None:
            self._listen()

    async def spawn(
        self,
        job: WorkerJob,
        *,
        on_message: Callable[[FromWorker], None],
        on_exit: Callable[[WorkerProcess, Exit], None] | None = None,
    ) -> WorkerProcess:
        """Start a worker for `job`. Returns as soon as the process exists; what it says goes to `on_message`.

        Raises `LoadFailed` if no worker could be started, `ModelUnavailable` while a failing forkserver is left alone.
        """
        gateway_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        reading, writing = os.pipe()
        try:
            gateway_end.setblocking(False)
            pid = await self._fork((worker_end.fileno(), writing))
        except BaseException:
            gateway_end.close()
            os.close(reading)
            raise
        finally:
            worker_end.close()
            os.close(writing)

        def ended(worker: WorkerProcess, how: Exit) -> None:
            self._workers.pop(pid, None)
            self._known.discard(pid)
            if on_exit is not None:
                on_exit(worker, how)

        worker = WorkerProcess(
            pid, on_exit=ended, on_stderr=lambda line: log.info("worker %s: %s", job.model, line)
        )
        self._workers[pid] = worker
        worker.on_message = on_message
        try:
            await worker.open(gateway_end, stderr=reading)
        except BaseException:
            await worker.end()
            raise
        worker.send_job(job)
        return worker

    async def stop(self) -> None:
        """End every worker and the forkserver; returns when all of them are gone."""
        self._stopped = True
        server, running = self._forkserver, self._control is not None
        self._let_forkserver_go()
        self._fail(ModelUnavailable("the server is shutting down"))
        await asyncio.gather(*(worker.stop(grace=GRACE_SECS) for worker in self.workers))
        if server is not None and running:
            server.kill()  # it may be in the middle of its imports
            server.wait()
            await self._sweep(server.pid)
        await asyncio.gather(*self._sweepers)

    # the forkserver
    def _launch_forkserver(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        arguments = [_ROOT, str(theirs.fileno()), str(os.getpid()), *self._preload]
        self._forkserver = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, *arguments],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=2,
            env=forkserver_environment(os.environ),
        )
        theirs.close()
        self._control, self._ready = ours, None

    def _listen(self) -> None:
        """To the forkserver that was launched."""
        assert self._control is not None
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(self._control.fileno(), self._read_control)

    async def _fork(self, descriptors: tuple[int, int]) -> int:
        if self._stopped:
            raise ModelUnavailable("the server is shutting down; no worker is started any more")
        if self._control is None:
            wait = self._retry_at - time.monotonic()
            if wait > 0:
                raise ModelUnavailable(
                    f"workers cannot be started: the forkserver failed {self._failures} times in a row; "
                    f"the next try is in {wait:.0f} s",
                    retry_after=wait,
                )
            self._launch_forkserver()
        if self._ready is None:
            self._listen()
        control, ready = self._control, self._ready
        assert control is not None and ready is not None
        self._spawns += 1
        number = self._spawns
        try:
            async with asyncio.timeout(SPAWN_SECS):
                await asyncio.shield(ready)
                socket.send_fds(control, [json.dumps({"id": number}).encode()], list(descriptors))
                pid = self._pending[number] = asyncio.get_running_loop().create_future()
                return await self._answer_to(pid)
        except TimeoutError:
            self._kill_forkserver()  # it hangs; what it may still fork is swept
            raise LoadFailed(f"no worker was started within {SPAWN_SECS:.0f} s") from None
        except OSError as error:
            raise LoadFailed(f"the forkserver could not be asked for a worker: {error}") from error

    async def _answer_to(self, pid: asyncio.Future[int]) -> int:
        try:
            return await pid
        except asyncio.CancelledError:
            if not pid.cancelled() and pid.exception() is None:  # answered in the same moment
                self._own(self._end_abandoned(pid.result()))
            raise

    def _read_control(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._forkserver_died()
            return
        message = json.loads(data)
        if "id" in message:
            self._forked(message["id"], pid=message.get("pid"), error=message.get("error", ""))
        elif "error" in message:
            self._fail(LoadFailed(f"the worker's modules cannot be imported:\n{message['error'].rstrip()}"))
        elif self._ready is not None and not self._ready.done():
            self._failures = 0
            self._warn(message["warnings"])
            self._ready.set_result(None)

    def _warn(self, messages: Sequence[str]) -> None:
        for message in messages:
            if message not in self._warned:
                self._warned.add(message)
                log.warning("%s", message)

    def _forked(self, number: int, *, pid: int | None, error: str) -> None:
        waiting = self._pending.pop(number, None)
        if pid is not None:
            self._known.add(pid)
        if waiting is None or waiting.done():
            if pid is not None:  # its socket is closed already, so it leaves on its own; we reap it
                self._own(self._end_abandoned(pid))
        elif pid is None:
            waiting.set_exception(LoadFailed(f"no worker could be started: {error}"))
        else:
            waiting.set_result(pid)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._sweepers.add(task)
        task.add_done_callback(self._sweepers.discard)

    async def _end_abandoned(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, pid, 0)
        self._known.discard(pid)

    def _forkserver_died(self) -> None:
        """End of file on the control socket. Everything it had answered was read before."""
        server = self._forkserver
        assert server is not None
        self._let_forkserver_go()
        self._failures += 1
        self._retry_at = time.monotonic() + retry_delay(self._failures)
        status = server.wait()
        self._fail(LoadFailed(f"the forkserver ended with exit status {status}"))
        log.warning("the forkserver ended with exit status %d", status)
        self._own(self._sweep(server.pid))

    def _fail(self, error: ModelUnavailable) -> None:
        """Nothing that waits for the forkserver gets a worker."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # mark as seen: with no spawn waiting nobody else would look
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()
        self._pending.clear()

    def _let_forkserver_go(self) -> None:
        """Close the control socket: the forkserver leaves by itself."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    def _kill_forkserver(self) -> None:
        if self._forkserver is not None and self._control is not None:
            self._forkserver.kill()

    async def _sweep(self, session: int) -> None:
        """A forkserver that died inside a spawn leaves children nobody knows: they are ours now, end them."""
        quiet = 0
        while quiet < SWEEPS:
            quiet = 0 if end_strays(session, known=self._known) else quiet + 1
            await asyncio.sleep(SWEEP_SECS)

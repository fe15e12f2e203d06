"""What runs in a worker: load what the job names, then serve it until told to stop."""

from __future__ import annotations

import faulthandler
import socket
import sys
import time
import traceback

from inferloom.errors import InferloomError
from inferloom.worker import loop
from inferloom.worker.channel import Channel
from inferloom.worker.failures import code_of, message_of
from inferloom.worker.hosts import Host
from inferloom.worker.lineage import name_process
from inferloom.worker.memory import give_back_large_blocks
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import Failed, Progress, Ready
from inferloom.worker.watch import WeightsWatch

COMPARE_SECS = 2.0  # between two looks at the weights files


def main(sock: socket.socket) -> int:
    """The process's whole life; its exit status. 0: stopped or left alone, 1: said `Failed`."""
    faulthandler.enable()
    channel = Channel(sock)
    try:
        job = channel.receive_job()
    except EOFError:
        return 0
    name_process(f"loom:{job.model}")
    give_back_large_blocks()
    try:
        work(channel, job, sock)
    except (EOFError, loop.Stopped):
        return 0
    except BaseException as error:
        if not isinstance(error, InferloomError):
            traceback.print_exc()
        try:
            channel.send(Failed(kind=code_of(error), message=message_of(error)))
        except EOFError:
            pass  # nobody is left to tell
        sys.stderr.flush()
        return 1
    return 0


def work(channel: Channel, job: WorkerJob, sock: socket.socket) -> None:
    """Load, say `Ready`, serve. Ends by an exception only."""
    watch = WeightsWatch(job.checkpoint.weights if job.checkpoint is not None else ())
    host = load(job, channel)
    watch.compare()
    channel.send(Ready(card=host.card, stages=host.stages))
    channel.wake_on(watch.wake)
    if job.driver != "dummy":  # a script has no step to compute meanwhile
        channel.start_posting()
    compared = time.monotonic()

    def check() -> None:
        nonlocal compared
        watch.check()
        now = time.monotonic()
        if now - compared >= COMPARE_SECS:
            compared = now
            watch.compare()

    try:
        loop.run(channel, host, check=check, check_secs=COMPARE_SECS)
    finally:
        host.end()


def load(job: WorkerJob, channel: Channel) -> Host:
    """The host the job's driver names, ready to work."""

    def report(stage: str, fraction: float | None) -> None:
        channel.send(Progress(stage=stage, fraction=fraction))

    if job.driver == "dummy":
        from inferloom.worker.dummy import DummyHost

        return DummyHost(job, report=report)
    from inferloom.worker.native import load_native

    return load_native(job, report=report)

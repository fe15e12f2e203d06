"""Supervision: every process is known, every death is noticed, nothing is left behind."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker_driving import Driven, becomes, descriptors, gone

from inferloom.errors import LoadFailed, ModelUnavailable
from inferloom.worker.lineage import children
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import Failed, Stats
from inferloom.worker.messages.requests import Generate, GetStats, SamplingSpec
from inferloom.worker.pool import LIGHT, WorkerPool, forkserver_environment
from inferloom.worker.process import WorkerProcess

ENDLESS = Generate(id=1, prompt=[1], max_tokens=1_000_000_000, sampling=SamplingSpec())


async def test_a_worker_belongs_to_the_gateway_and_not_to_the_forkserver(worker: Driven) -> None:
    assert worker.process.pid in children()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGBUS"])
async def test_a_workers_death_is_told_with_its_signal(worker: Driven, name: str) -> None:
    os.kill(worker.process.pid, signal.Signals[name])
    how = await asyncio.wait_for(worker.process.exit, 5)
    assert how.signal == name
    assert worker.exits == [how]
    assert gone(worker.process.pid)


async def test_who_sees_that_a_worker_is_dead_has_heard_what_it_said_and_how_it_ended(worker: Driven) -> None:
    worker.process.send(ENDLESS)
    await worker.until(lambda: worker.steps(1) or None)
    worker.process.kill()
    while worker.process.alive:
        assert worker.exits == []
        await asyncio.sleep(0)
    assert [how.signal for how in worker.exits] == ["SIGKILL"]
    said = len(worker.said)
    await asyncio.sleep(0.01)
    assert len(worker.said) == said


async def test_the_last_words_of_a_crash_are_kept(worker: Driven) -> None:
    os.kill(worker.process.pid, signal.SIGSEGV)
    await asyncio.wait_for(worker.process.exit, 5)
    assert any("Segmentation fault" in line for line in worker.process.last_words)


async def test_a_worker_that_is_asked_to_stop_exits_with_0(worker: Driven) -> None:
    how = await worker.process.stop()
    assert (how.status, how.signal) == (0, None)


async def test_a_worker_whose_socket_is_closed_leaves_by_itself(worker: Driven) -> None:
    worker.process._disconnect()
    how = await asyncio.wait_for(worker.process.exit, 5)
    assert how.status == 0


async def test_a_busy_worker_stops_within_a_step(worker: Driven) -> None:
    worker.process.send(ENDLESS)
    await worker.until(lambda: worker.steps(1) or None)
    how = await worker.process.stop(grace=5)
    assert how.status == 0


async def test_a_stop_that_is_cancelled_returns_when_the_process_is_gone(pool: WorkerPool) -> None:
    loading = await Driven.begin(pool, load_secs=60.0)  # it hears nothing while it loads
    stop = asyncio.create_task(loading.process.stop(grace=60))
    for _ in range(2):  # the second meets the wait for the end
        await asyncio.sleep(0)
        stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert gone(loading.process.pid)
    assert pool.workers == []


async def test_a_worker_that_cannot_be_watched_is_ended_at_once(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(pid: int, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    await Driven.spawn(pool)
    before, family = descriptors(), set(children())
    monkeypatch.setattr(os, "pidfd_open", full)
    with pytest.raises(OSError, match="Too many open files"):
        await Driven.begin(pool)
    assert set(children()) == family
    assert (len(pool.workers), descriptors()) == (1, before)


async def test_a_failing_load_says_why_and_exits(pool: WorkerPool) -> None:
    worker = await Driven.begin(pool, fail_load="no such weights")
    failed = await worker.hear(Failed)
    assert (failed.kind, failed.message) == ("model_load_failed", "no such weights")
    assert (await asyncio.wait_for(worker.process.exit, 5)).status == 1


async def test_killing_the_forkserver_harms_no_worker_and_the_next_spawn_starts_another(
    pool: WorkerPool, worker: Driven
) -> None:
    first = pool.forkserver_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await becomes(lambda: pool.forkserver_pid is None)
    worker.process.send(GetStats(7))
    assert (await worker.hear(Stats)).id == 7
    second = await Driven.spawn(pool)
    assert pool.forkserver_pid not in (None, first)
    os.kill(worker.process.pid, signal.SIGKILL)
    assert (await asyncio.wait_for(worker.process.exit, 5)).signal == "SIGKILL"
    assert second.process.alive


async def test_a_forkserver_killed_in_the_middle_of_spawns_leaves_no_unknown_child(pool: WorkerPool) -> None:
    await Driven.spawn(pool)
    for _ in range(5):
        spawns = [asyncio.create_task(Driven.begin(pool)) for _ in range(4)]
        await asyncio.sleep(0)
        if pool.forkserver_pid is not None:
            os.kill(pool.forkserver_pid, signal.SIGKILL)
        results = await asyncio.gather(*spawns, return_exceptions=True)
        assert all(isinstance(one, Driven | LoadFailed | ModelUnavailable) for one in results)
        await becomes(lambda: pool.forkserver_pid is None)
        pool._retry_at = 0.0
    await asyncio.gather(*pool._sweepers)
    known = {worker.pid for worker in pool.workers}
    assert {pid for pid in children() if not _is_older(pid)} <= known | {pool.forkserver_pid}


def _is_older(pid: int) -> bool:
    """A child of this test process that has nothing to do with pools."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"inferloom.worker.forkserver" not in command


async def test_what_an_import_warns_of_is_logged_once_however_many_forkservers_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "warning_module.py").write_text(
        'import logging\nlogging.getLogger("inferloom.worker").warning("something is missing")\n'
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = WorkerPool(preload=("warning_module", *LIGHT))
    await pool.start()
    try:
        await Driven.spawn(pool)
        assert pool.forkserver_pid is not None
        os.kill(pool.forkserver_pid, signal.SIGKILL)
        await becomes(lambda: pool.forkserver_pid is None)
        await Driven.spawn(pool)
    finally:
        await pool.stop()
    assert [line for line in caplog.messages if "missing" in line] == ["something is missing"]


async def test_an_import_that_fails_is_reported_with_its_traceback(tmp_path: Path) -> None:
    pool = WorkerPool(preload=("inferloom.no_such_module",))
    await pool.start()
    try:
        with pytest.raises(LoadFailed, match=r"(?s)Traceback.*No module named 'inferloom\.no_such_module'"):
            await Driven.begin(pool)
    finally:
        await pool.stop()


async def test_an_import_that_leaves_a_thread_behind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaves_a_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = WorkerPool(preload=("leaves_a_thread",))
    await pool.start()
    try:
        with pytest.raises(LoadFailed, match="2 threads"):
            await Driven.begin(pool)
    finally:
        await pool.stop()


async def test_an_import_that_crashes_is_told_and_paced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashes.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = WorkerPool(preload=("crashes",))
    await pool.start()
    try:
        for _ in range(2):  # the first try, and the one at once
            with pytest.raises(LoadFailed, match="exit status -11"):
                await Driven.begin(pool)
        with pytest.raises(ModelUnavailable) as refused:
            await Driven.begin(pool)
        assert refused.value.retry_after is not None
        assert 0 < refused.value.retry_after <= 1
    finally:
        await pool.stop()


async def test_a_spawn_nobody_waits_for_any_more_leaves_no_process(pool: WorkerPool) -> None:
    await Driven.spawn(pool)
    before = {worker.pid for worker in pool.workers} | {pool.forkserver_pid}
    spawn = asyncio.create_task(Driven.begin(pool))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    spawn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawn
    await becomes(lambda: not pool._pending and not pool._sweepers)
    assert {pid for pid in children() if not _is_older(pid)} == before


@pytest.mark.parametrize("first", ["answer", "cancellation"])
async def test_a_spawn_that_is_given_up_as_it_is_answered_leaves_no_process(
    pool: WorkerPool, first: str
) -> None:
    await Driven.spawn(pool)
    before = {worker.pid for worker in pool.workers} | {pool.forkserver_pid}
    spawn = asyncio.create_task(Driven.begin(pool))
    await asyncio.sleep(0)  # it has asked
    assert pool._control is not None
    select.select([pool._control], [], [])  # and is answered; the loop has not looked yet
    if first == "answer":
        pool._read_control()
    spawn.cancel()
    if first == "cancellation":
        pool._read_control()
    with pytest.raises(asyncio.CancelledError):
        await spawn
    await becomes(lambda: not pool._pending and not pool._sweepers)
    assert {pid for pid in children() if not _is_older(pid)} == before


async def test_a_spawn_that_is_given_up_as_it_is_connected_ends(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Driven.spawn(pool)
    before = {worker.pid for worker in pool.workers} | {pool.forkserver_pid}
    connection_made = WorkerProcess.connection_made

    def cancelling(self: WorkerProcess, transport: asyncio.BaseTransport) -> None:
        connection_made(self, transport)
        spawn.cancel()

    monkeypatch.setattr(WorkerProcess, "connection_made", cancelling)
    spawn = asyncio.create_task(Driven.begin(pool))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(spawn), 10)
    assert {pid for pid in children() if not _is_older(pid)} == before


async def test_twenty_cycles_leak_no_process_and_no_descriptor(pool: WorkerPool) -> None:
    await (await Driven.spawn(pool)).process.stop()
    before, alive = descriptors(), sorted(children())
    for number in range(20):
        worker = await Driven.spawn(pool)
        if number % 2:
            worker.process.kill()
            await worker.process.exit
        else:
            await worker.process.stop()
    await becomes(lambda: descriptors() == before)
    assert sorted(children()) == alive


async def test_stopping_ends_everything(pool: WorkerPool) -> None:
    workers = [await Driven.spawn(pool) for _ in range(3)]
    workers[0].process.send(ENDLESS)
    forkserver = pool.forkserver_pid
    assert forkserver is not None
    await pool.stop()
    assert all(gone(worker.process.pid) for worker in workers)
    assert gone(forkserver)
    with pytest.raises(ModelUnavailable, match="shutting down"):
        await Driven.begin(pool)


GATEWAY = """
import asyncio
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.requests import Generate, SamplingSpec
from inferloom.worker.pool import LIGHT, WorkerPool

async def main():
    pool = WorkerPool(preload=LIGHT)
    await pool.start()
    busy = asyncio.Event()
    pids = []
    for _ in range(2):
        worker = await pool.spawn(WorkerJob(model="m", driver="dummy"), on_message=lambda message: busy.set())
        pids.append(worker.pid)
    worker.send(Generate(id=1, prompt=[1], max_tokens=1_000_000_000, sampling=SamplingSpec()))
    await busy.wait()
    print(pool.forkserver_pid, *pids, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def _ended(pid: int) -> bool:
    """Whether it runs no more. With its parent gone, this process (a subreaper by now) may have to reap it."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return gone(pid)


def test_killing_the_gateway_leaves_no_process_within_a_second() -> None:
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY], stdout=subprocess.PIPE, text=True)
    assert gateway.stdout is not None
    pids = [int(pid) for pid in gateway.stdout.readline().split()]
    assert len(pids) == 3
    gateway.kill()
    gateway.wait()
    gateway.stdout.close()
    deadline = time.monotonic() + 1.0
    while not all(_ended(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [pid for pid in pids if not _ended(pid)] == []


def test_the_forkserver_of_dummies_alone_imports_no_torch() -> None:
    code = f"import sys, importlib\nfor m in {LIGHT!r}: importlib.import_module(m)\nprint('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_the_gateways_side_imports_no_torch() -> None:
    code = (
        "import sys, inferloom.worker.pool, inferloom.catalog.catalog, inferloom.runners.factory\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


async def test_the_forkserver_has_a_session_of_its_own(pool: WorkerPool) -> None:
    await Driven.spawn(pool)
    assert pool.forkserver_pid is not None
    assert os.getsid(pool.forkserver_pid) == pool.forkserver_pid != os.getsid(0)


def test_worker_threads_spin_shortly_unless_the_operator_says_otherwise() -> None:
    assert forkserver_environment({"A": "b"}) == {
        "A": "b",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "OPENBLAS_NUM_THREADS": "1",
        "GOMP_SPINCOUNT": "1000",
    }
    assert forkserver_environment({"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    assert "GOMP_SPINCOUNT" not in forkserver_environment({"OMP_WAIT_POLICY": "active"})


async def test_a_forkserver_that_was_launched_early_is_the_one_that_serves() -> None:
    pool = WorkerPool(preload=LIGHT)
    pool.launch()
    launched = pool.forkserver_pid
    await pool.start()
    assert pool.forkserver_pid == launched is not None
    worker = await pool.spawn(WorkerJob(model="m", driver="dummy"), on_message=lambda message: None)
    assert worker.alive
    await pool.stop()
    assert pool.forkserver_pid is None


def test_a_forkserver_that_is_not_needed_after_all_is_ended() -> None:
    pool = WorkerPool(preload=LIGHT)
    pool.launch()
    pid = pool.forkserver_pid
    assert pid is not None
    pool.abandon()
    assert pool.forkserver_pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

"""A worker forked ahead of the next load: it is the one that the load gets, and nobody's leftover."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from worker_driving import Driven, becomes, gone

from inferloom.worker.lineage import children
from inferloom.worker.messages.replies import Stats
from inferloom.worker.messages.requests import GetStats
from inferloom.worker.pool import WorkerPool
from inferloom.worker.rehearsal import rehearse


async def _spare_of(pool: WorkerPool) -> int:
    """The worker that the forkserver has forked ahead of the next request, once there is one that waits."""
    found: list[int] = []

    def waits() -> bool:
        middle = children(pool.forkserver_pid or -1)
        found[:] = [pid for pid in middle for pid in children(pid) if _name(pid) == "loom:spare"]
        return bool(found)

    await becomes(waits)
    return found[0]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


async def test_in_a_pause_a_worker_is_forked_ahead_and_the_next_load_gets_it(pool: WorkerPool) -> None:
    first = await Driven.spawn(pool)
    spare = await _spare_of(pool)
    assert spare not in children()
    second = await Driven.spawn(pool)
    assert second.process.pid == spare
    assert {first.process.pid, spare} <= set(children())
    assert children(pool.forkserver_pid or -1) == []
    second.process.send(GetStats(7))
    assert (await second.hear(Stats)).id == 7
    assert str(await second.process.stop()) == "exit status 0"
    assert await _spare_of(pool) != spare


async def test_a_spare_worker_that_was_killed_is_not_missed(pool: WorkerPool) -> None:
    spare = await _spare_of(pool)
    before = set(children())
    os.kill(spare, signal.SIGKILL)
    await becomes(lambda: _state(spare) == "Z")
    worker = await Driven.spawn(pool)
    assert worker.process.pid != spare
    await worker.process.stop()
    await becomes(lambda: gone(spare))
    assert set(children()) == before


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_spare_worker_leaves_with_its_forkserver(how: str, pool: WorkerPool) -> None:
    spare = await _spare_of(pool)
    before = [pid for pid in children() if pid != pool.forkserver_pid]
    if how == "killed":
        os.kill(pool.forkserver_pid or 0, signal.SIGKILL)
    else:
        await pool.stop()
    await becomes(lambda: gone(spare))
    await becomes(lambda: children() == before)


def test_the_rehearsal_computes() -> None:
    rehearse()

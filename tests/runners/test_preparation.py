from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import uvloop
from worker_driving import becomes

from inferloom.errors import SourceError
from inferloom.runners import preparation
from inferloom.runners.base import WeightSource
from inferloom.types import LoadProgress
from inferloom.worker.lineage import children


async def test_the_reason_of_a_failure_keeps_its_class(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        await preparation.prepare(WeightSource(source=str(tmp_path / "nothing")), progress=None)


def test_it_works_in_the_servers_event_loop_too(tmp_path: Path) -> None:
    with pytest.raises(SourceError), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(preparation.prepare(WeightSource(source=str(tmp_path / "nothing")), progress=None))


async def test_progress_is_relayed_and_a_process_without_a_result_is_a_failed_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = 'print(\'{"stage": "download", "fraction": 0.5}\'); print("noise"); raise SystemExit("broken pipe to the index")'
    monkeypatch.setattr(preparation.attached, "command", lambda *_: [sys.executable, "-c", code])
    seen: list[LoadProgress] = []
    with pytest.raises(preparation.LoadFailed, match="broken pipe to the index"):
        await preparation.prepare(WeightSource(source="x"), progress=seen.append)
    assert seen == [LoadProgress("download", 0.5)]


async def test_cancelling_ends_the_process_and_everything_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    monkeypatch.setattr(preparation.attached, "command", lambda *_: [sys.executable, "-c", code])
    before = set(children())
    work = asyncio.create_task(preparation.prepare(WeightSource(source="x"), progress=None))
    await becomes(lambda: started.exists() and bool(started.read_text()))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    grandchild = int(started.read_text())
    await becomes(lambda: not Path(f"/proc/{grandchild}").exists() or _is_zombie(grandchild))
    assert set(children()) - {grandchild} <= before


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

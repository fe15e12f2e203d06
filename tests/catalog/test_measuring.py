"""What a loaded model is measured to take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inferloom.catalog.measuring import Measured
from inferloom.worker.memory import pss, resident

MIB = 1 << 20
GROWS = "import sys\nkept = []\nprint(flush=True)\nfor line in sys.stdin:\n kept.append(bytearray(int(line)))\n print(flush=True)\n"


class Process:
    """Grows when it is told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", GROWS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self._done()

    def grow(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self._done()

    def end(self) -> None:
        self._process.communicate()

    def _done(self) -> None:
        assert self._process.stdout is not None and self._process.stdout.readline() == "\n"


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.end()


async def test_what_grew_since_it_was_measured_is_counted_without_measuring_again(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = cast(Any, SimpleNamespace(pid=process.pid))
    measured = Measured()
    await measured.take(runner)
    before = measured.bytes
    assert before is not None
    process.grow(64 * MIB)
    monkeypatch.setattr("inferloom.catalog.measuring.pss", None)  # nobody walks through all pages
    for _ in range(2):
        await measured.bring_up_to_date(runner)
    monkeypatch.undo()
    now = pss(process.pid)
    assert measured.bytes is not None and now is not None
    assert measured.bytes - before == pytest.approx(64 * MIB, abs=MIB)
    assert measured.bytes == pytest.approx(now.bytes, abs=2 * MIB)


async def test_what_was_never_measured_is_measured_when_it_goes(process: Process) -> None:
    measured = Measured()
    await measured.bring_up_to_date(cast(Any, SimpleNamespace(pid=process.pid)))
    found = pss(process.pid)
    assert found is not None and measured.bytes == pytest.approx(found.bytes, abs=2 * MIB)


async def test_a_process_that_is_gone_has_what_it_was_measured_to_have(process: Process) -> None:
    measured = Measured()
    await measured.take(cast(Any, SimpleNamespace(pid=process.pid)))
    before = measured.bytes
    process.end()
    assert resident(process.pid) == 0
    await measured.bring_up_to_date(cast(Any, SimpleNamespace(pid=process.pid)))
    assert measured.bytes == before

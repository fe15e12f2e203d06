from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from inferloom.worker import forkserver
from inferloom.worker.huge_pages import collapse_heap

# In a process of its own: the memory of one that runs tests is nobody's business.
TIDIED = """
import mmap
from inferloom.worker.huge_pages import collapse_heap
block = mmap.mmap(-1, 16 << 20)
block.write(bytes(range(256)) * (16 << 12))
before = bytes(block)
assert sum(1 for _ in collapse_heap()) <= 4096
assert block[:] == before
"""


def test_memory_reads_as_before_once_it_lies_in_huge_pages() -> None:
    done = subprocess.run([sys.executable, "-c", TIDIED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_kernel_without_huge_pages_leaves_all_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferloom.worker.huge_pages._MADV_COLLAPSE", 0x7FFF)  # which no kernel knows
    assert list(collapse_heap()) == []


def test_the_forkserver_tidies_until_a_request_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "QUIET_SECS", 0.0)
    ours, theirs = socket.socketpair()

    def tidying() -> Iterator[int]:
        yield 1
        yield 2
        ours.send(b"a request")
        yield 3
        raise AssertionError("it went on while a request waited")

    with ours, theirs:
        forkserver._wait(theirs, tidying())


def test_a_request_that_waits_already_is_not_held_up() -> None:
    ours, theirs = socket.socketpair()

    def tidying() -> Iterator[int]:
        raise AssertionError("it tidied while a request waited")
        yield 0

    with ours, theirs:
        ours.send(b"a request")
        forkserver._wait(theirs, tidying())

"""The processes of a server, seen through /proc."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from factories.server import Served


@dataclass(frozen=True)
class Process:
    """A process that may have ended: then there is nothing to read of it."""

    pid: int

    @property
    def folder(self) -> Path:
        return Path(f"/proc/{self.pid}")

    @property
    def stat(self) -> list[str]:
        """The fields of /proc/PID/stat from the state on; empty where there is no such process."""
        try:
            return (self.folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return []

    @property
    def runs(self) -> bool:
        """Whether it has not ended; what waits to be reaped has."""
        return bool(self.stat) and self.stat[0] not in "ZX"

    @property
    def parent(self) -> int:
        stat = self.stat
        return int(stat[1]) if stat else 0

    @property
    def ticks(self) -> int:
        """Processor time used, in ticks of the clock."""
        stat = self.stat
        return int(stat[11]) + int(stat[12]) if stat else 0

    def rests(self, *, seconds: float = 0.3) -> bool:
        """Whether it uses hardly any processor time for a while."""
        before = self.ticks
        time.sleep(seconds)
        return self.ticks - before <= 2

    @property
    def descriptors(self) -> int:
        return sum(1 for _ in (self.folder / "fd").iterdir())

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        return int((self.folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def children(self) -> list[Process]:
        """Those that have ended and were not reaped too."""
        everyone = [Process(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [process for process in everyone if process.parent == self.pid]

    @property
    def descendants(self) -> list[Process]:
        return [one for child in self.children for one in (child, *child.descendants)]

    def maps(self, file: Path) -> bool:
        """Whether a file at this path, or below it, is mapped."""
        try:
            return str(file) in (self.folder / "maps").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False

    def mapping(self, file: str) -> dict[str, int]:
        """The sums of /proc/PID/smaps over the mappings of a file: kB by key, such as Rss and Private_Dirty."""
        sums: dict[str, int] = {}
        ours = False
        for line in (self.folder / "smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                ours = line.endswith(file)
            elif ours and (entry := re.match(r"(\w+):\s+(\d+) kB", line)):
                sums[entry[1]] = sums.get(entry[1], 0) + int(entry[2])
        return sums


def gateway_of(served: Served) -> Process:
    return Process(served.process.pid)


def worker_of(served: Served, weights: Path) -> Process:
    """The worker that maps weights at or below this path. (One that computes in another type than that of its
    weights has a copy of them, and does not map them.)"""
    found = [child for child in gateway_of(served).children if child.maps(weights)]
    assert len(found) == 1, f"{len(found)} workers map {weights}"
    return found[0]


def wait_until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)

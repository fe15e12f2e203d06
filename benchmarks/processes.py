"""Servers that a benchmark starts, and what the kernel says of their processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

INFERLOOM = [sys.executable, "-m", "inferloom"]


class Server:
    """A server process: its port, and the seconds from its start until it listened."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, seconds: float) -> None:
        self.process = process
        self.port = port
        self.seconds_to_listen = seconds

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str | Path],
    *,
    port: int,
    health: str,
    environment: Mapping[str, str] | None = None,
    limit: float = 180.0,
    log: Path | None = None,
) -> Iterator[Server]:
    """Run `command` until the context ends; entered when `health` (a path) is answered with 200."""
    output = log.open("wb") if log is not None else subprocess.DEVNULL
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
    )
    try:
        while not _answers(f"http://127.0.0.1:{port}{health}"):
            if process.poll() is not None or time.perf_counter() - began > limit:
                raise SystemExit(f"{command[0]} did not come up" + (f"; see {log}" if log else ""))
            time.sleep(0.005)
        yield Server(process, port, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, parents first."""
    found: list[int] = []
    for parent in [pid]:
        children = [child for child, its_parent in _parents().items() if its_parent == parent]
        for child in children:
            found += [child, *descendants(child)]
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, IndexError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
    return parents


def pin(pid: int, cores: set[int]) -> None:
    """Keep every thread of a process on `cores`."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> dict[str, int]:
    """Memory of a process in bytes by kind: `rss`, `pss`, `anonymous`, `file` (mapped files) and, of these,
    `weights` (safetensors) with its `private_dirty` part; from /proc/PID/smaps."""
    totals = dict.fromkeys(("rss", "pss", "anonymous", "file", "weights", "weights_private_dirty"), 0)
    mapped = weights = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)", line)
        if head is not None:
            mapped = head[1].startswith("/")
            weights = ".safetensors" in head[1]
            continue
        name, _, rest = line.partition(":")
        if not rest.endswith("kB"):
            continue
        size = int(rest.split()[0]) * 1024
        if name == "Rss":
            totals["rss"] += size
            totals["file"] += size if mapped else 0
            totals["weights"] += size if weights else 0
        elif name == "Pss":
            totals["pss"] += size
        elif name == "Anonymous":
            totals["anonymous"] += size
        elif name == "Private_Dirty" and weights:
            totals["weights_private_dirty"] += size
    return totals

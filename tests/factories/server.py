"""A real server in a process of its own, started by the command as a user would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

STARTERS = ("-m", "smollm2", "-m", "minilm")
DUMMY = ("-m", ",name=dummy,driver=dummy")


class Served:
    """`printed` is what the server has written to stdout so far, `output` that and its log, in the order of arrival."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self._lines: list[str] = []
        self._printed: list[str] = []
        self._readers = [
            threading.Thread(
                target=self._read, args=(process.stdout, [self._lines, self._printed]), daemon=True
            ),
            threading.Thread(target=self._read, args=(process.stderr, [self._lines]), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return "".join(self._lines)

    @property
    def printed(self) -> str:
        return "".join(self._printed)

    @staticmethod
    def _read(stream: IO[str], into: list[list[str]]) -> None:
        for line in stream:
            for lines in into:
                lines.append(line)

    def wait_for(self, text: str, *, seconds: float = 60.0) -> None:
        """Wait until `text` was printed; AssertionError with everything printed if it never is."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < deadline and self.process.poll() is None, (
                f"{text!r} not in:\n{self.output}"
            )
            time.sleep(0.01)

    def stop(self, *, with_signal: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(with_signal)
        status = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        return status


@contextmanager
def serving(
    *flags: str, environment: Mapping[str, str] | None = None, ready: bool = True, seconds: float = 180.0
) -> Iterator[Served]:
    """`inferloom serve FLAGS` on a free port; entered when every model is ready, or, without `ready`, when the
    process runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "inferloom", "serve", *flags, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )
    served = Served(process, port)
    try:
        deadline = time.monotonic() + seconds
        while ready and not _is_ready(served.url):
            assert process.poll() is None, f"the server ended:\n{served.output}"
            assert time.monotonic() < deadline, f"the server did not become ready:\n{served.output}"
            time.sleep(0.02)
        yield served
    finally:
        if process.poll() is None:
            try:
                served.stop()
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False

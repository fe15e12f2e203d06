"""What a row compares: an engine with its weights loaded, in processes of its own, behind one question.

How many seconds does it take to complete these prompts (token ids) with so many tokens each?
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import priority
from processes import cpu_seconds, descendants, memory

from peers import streams
from peers.environments import PEERS

Prompts = list[list[int]]
LOGS = PEERS / "logs"
THREADS = 2
# For everybody; a peer's own variables come on top.
ENVIRONMENT = {
    "OMP_NUM_THREADS": str(THREADS),
    "MKL_NUM_THREADS": str(THREADS),
    "RAYON_NUM_THREADS": str(THREADS),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
START_LIMIT = 400.0  # seconds; vLLM compiles for 100
SPINNING = 0.03  # cores used while nothing is asked
Command = Sequence[str | Path]


class Contender(ABC):
    """Use as a context: entered when it answers. All its processes are gone when it is left."""

    def __init__(self, name: str, command: Command, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._command = [str(part) for part in command]
        self._environment = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._stopped: list[int] = []
        self.load_seconds = 0.0

    @abstractmethod
    def complete(self, prompts: Prompts, tokens: int) -> float:
        """Seconds until every prompt is completed with exactly `tokens` tokens, greedily, end tokens ignored."""

    @abstractmethod
    def _wait_until_ready(self) -> None: ...

    def __enter__(self) -> Contender:
        LOGS.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if isinstance(self, PipeContender) else log,
                stderr=log,
                text=True,
                env=self._environment,
                cwd=LOGS,
                process_group=0,  # the session stays ours, and with it the scheduler's group (priority.py)
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        self.load_seconds = time.perf_counter() - began
        self.share_priority()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self.resume()
        births = {pid: _birth(pid) for pid in self.pids()}
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        for pid, birth in births.items():
            if birth and _birth(pid) == birth:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name.replace(' ', '-')}.log"

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    def pids(self) -> list[int]:
        """Its processes, the first one first."""
        return [self.process.pid, *descendants(self.process.pid)]

    def share_priority(self) -> None:
        """Our priority for those of its processes that began sessions of their own since the last time."""
        priority.share(self.pids())

    def memory(self) -> dict[str, int]:
        """Bytes over all its processes by kind, as `processes.memory` names them. Of these `pss` adds up."""
        totals: dict[str, int] = {}
        for pid in self.pids():
            with suppress(OSError):
                for kind, size in memory(pid).items():
                    totals[kind] = totals.get(kind, 0) + size
        return totals

    def spins(self) -> bool:
        """Whether it uses the processor though nothing is asked: then it must be stopped while others are timed."""
        before = self._cpu_seconds()
        time.sleep(1)
        return self._cpu_seconds() - before > SPINNING

    def pause(self) -> None:
        """Stop all its processes where they are."""
        self._stopped = self.pids()
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self._stopped = []

    def failed(self, what: str) -> RuntimeError:
        return RuntimeError(f"{self.name} {what}; its log: {self.log}\n{_tail(self.log)}")

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _cpu_seconds(self) -> float:
        total = 0.0
        for pid in self.pids():
            with suppress(OSError):
                total += cpu_seconds(pid)
        return total


class HttpContender(Contender):
    """A server with OpenAI's completions, asked with streaming."""

    def __init__(
        self,
        name: str,
        command: Command,
        *,
        port: int,
        health: str = "/health",
        environment: Mapping[str, str] | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, command, environment)
        self.port = port
        self._health = health
        self._extras = dict(extras or {})

    def complete(self, prompts: Prompts, tokens: int) -> float:
        answers = streams.complete(self.port, "/v1/completions", prompts, tokens, self._extras)
        return max(answer.end for answer in answers)

    def first_token(self, prompt: list[int]) -> float:
        """Seconds until the first frame of a one-token answer."""
        return streams.complete(self.port, "/v1/completions", [prompt], 1, self._extras)[0].first

    def timed_reload(self, prompt: list[int]) -> float:
        """Seconds of unload, reload and the first token, one after the other (our endpoints)."""
        with priority.shared_with_children(self.pids()):
            began = time.perf_counter()
            self.post("/v1/models/unload", {"model_id": "bench"})
            self.post("/v1/models/reload", {"model_id": "bench"})
            reloaded = time.perf_counter() - began
        return reloaded + self.first_token(prompt)  # looking for children would take its processors

    def post(self, path: str, payload: object) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, json.dumps(payload), {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"{self.name}: {path} was answered with {response.status}: {text.decode()}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _wait_until_ready(self) -> None:
        began = time.perf_counter()
        while not self._healthy():
            if self.process.poll() is not None or time.perf_counter() - began > START_LIMIT:
                raise self.failed("did not come up")
            time.sleep(0.02)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self._health)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


class PipeContender(Contender):
    """An engine in process: a script of `inside/`, which reads a question a line and answers each (inside/loop.py)."""

    def complete(self, prompts: Prompts, tokens: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def _wait_until_ready(self) -> None:
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self.failed("ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _birth(pid: int) -> str:
    """When a process began, in ticks since boot: with its number this names it for good. Empty: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    except OSError:
        return ""


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])

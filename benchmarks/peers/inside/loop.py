"""The answering side of a pipe: one task a line, as JSON, one answer each. Runs in a peer's own environment, with the
standard library alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

Complete = Callable[[list[list[int]], int], None]


def protocol() -> TextIO:
    """Stdout, kept for the protocol: whatever a library prints goes to stderr from now on, C libraries' too."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(complete: Complete, answers: TextIO) -> None:
    """As `PipeContender` asks: `{"prompts": [[…], …], "tokens": n}`, answered with `{"seconds": s}`."""

    def timed(task: dict[str, Any]) -> dict[str, object]:
        complete(task["prompts"], task["tokens"])
        return {}

    answer_tasks(timed, answers)


def answer_tasks(do: Callable[[dict[str, Any]], dict[str, object]], answers: TextIO) -> None:
    """Say that all is loaded, then time `do` for each task until the input ends; what it returns is told beside the
    seconds."""

    def say(answer: dict[str, object]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say({"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        began = time.perf_counter()
        found = do(task)
        say({"seconds": time.perf_counter() - began, **found})

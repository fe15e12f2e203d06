"""The answering side of `PipeContender`. Runs in a peer's own environment: the standard library alone.

Reads `{"prompts": [[…], …], "tokens": n}` lines, answers each with `{"seconds": s}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

Complete = Callable[[list[list[int]], int], None]


def protocol() -> TextIO:
    """Stdout, kept for the protocol: whatever a library prints goes to stderr from now on, C libraries' too."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(complete: Complete, answers: TextIO) -> None:
    """Say that `complete` is loaded, then time it until the input ends."""

    def say(answer: dict[str, object]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say({"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        began = time.perf_counter()
        complete(task["prompts"], task["tokens"])
        say({"seconds": time.perf_counter() - began})

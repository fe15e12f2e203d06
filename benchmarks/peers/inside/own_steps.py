"""Seconds per decode step of our executor: `own_steps.py SOURCE SCHEME`, points `[[batch, context], …]` on stdin.

All points are taken in turn, round after round, so that a spell of slow memory falls on all of them.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time

from loop import protocol
from own_engine import load_executor

from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch

ROUNDS = 9
SECONDS_PER_POINT = 0.2  # of a round
LEAST_STEPS = 3


def main() -> None:
    answers = protocol()
    executor = load_executor(*sys.argv[1:])
    points = [tuple(point) for point in json.load(sys.stdin)]
    pages = max(batch * -(-context // PAGE_SIZE) for batch, context in points)
    executor.allocate_kv(pages)
    fill(executor, pages)
    found: dict[str, list[float]] = {f"{batch},{context}": [] for batch, context in points}
    for _ in range(ROUNDS):
        for batch, context in points:
            found[f"{batch},{context}"].append(seconds(executor, batch, context))
    answers.write(json.dumps(found) + "\n")
    answers.flush()


def fill(executor: Executor, pages: int) -> None:
    """Write every page once, as a sequence of its own, so that long contexts need no long prefill."""
    draw = random.Random(0)
    for first in range(0, pages, 32):
        some = range(first, min(pages, first + 32))
        executor.forward(
            RaggedBatch(
                token_ids=[draw.randrange(300, 49000) for _ in some for _ in range(PAGE_SIZE)],
                positions=list(range(PAGE_SIZE)) * len(some),
                starts=[PAGE_SIZE * i for i in range(len(some) + 1)],
                context_lens=[PAGE_SIZE] * len(some),
                page_tables=[[page] for page in some],
                logit_rows=[0],
            )
        )


def seconds(executor: Executor, batch: int, context: int) -> float:
    """The median of several steps of `batch` sequences, each `context` tokens long after the step."""
    each = -(-context // PAGE_SIZE)
    step = RaggedBatch(
        token_ids=list(range(300, 300 + batch)),
        positions=[context - 1] * batch,
        starts=list(range(batch + 1)),
        context_lens=[context] * batch,
        page_tables=[list(range(i * each, (i + 1) * each)) for i in range(batch)],
        logit_rows=list(range(batch)),
    )
    executor.forward(step)
    times: list[float] = []
    while len(times) < LEAST_STEPS or sum(times) < SECONDS_PER_POINT:
        began = time.perf_counter()
        executor.forward(step)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()

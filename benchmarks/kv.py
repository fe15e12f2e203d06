"""Plain and int8 keys and values beside each other: bytes of a token of context, and the time of a decode step over it.

    python benchmarks/kv.py [SOURCE] [--users 1] [--contexts 1024 4096]

SOURCE is a model whose weights are shared by both (default: the chat starter). Steps are interleaved; medians of 40.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in a worker: idle threads give their core away soon

import torch
from figures import machine, table

from inferloom.formats.prepare import prepare
from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch
from inferloom.models.loader import load

STEPS = 40
CHUNK = 512  # tokens of a prefill step


class Users:
    """Sequences of `context` tokens each."""

    def __init__(self, executor: Executor, users: int, context: int) -> None:
        pages = -(-(context + 1) // PAGE_SIZE)
        executor.allocate_kv(users * pages)
        self._executor, self._context = executor, context
        self._tables = [list(range(user * pages, (user + 1) * pages)) for user in range(users)]
        for table_ in self._tables:
            for begin in range(0, context, CHUNK):
                end = min(begin + CHUNK, context)
                rows = end - begin
                positions = list(range(begin, end))
                executor.forward(RaggedBatch([5] * rows, positions, [0, rows], [end], [table_], []))

    def step(self) -> float:
        """Seconds of one token for each."""
        users, context = len(self._tables), self._context
        rows = list(range(users))
        batch = RaggedBatch(
            [7] * users, [context] * users, [*rows, users], [context + 1] * users, self._tables, rows
        )
        began = time.perf_counter()
        self._executor.forward(batch)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", default="smollm2")
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    checkpoint = prepare(given.source)
    executors = {dtype: load(checkpoint, kv_dtype=dtype) for dtype in ("auto", "int8")}
    assert all(isinstance(executor, Executor) for executor in executors.values())
    rows = []
    for context in given.contexts:
        users = {dtype: Users(executor, given.users, context) for dtype, executor in executors.items()}
        times: dict[str, list[float]] = {dtype: [] for dtype in users}
        for _ in range(STEPS):
            for dtype, of in users.items():
                times[dtype].append(of.step())
        plain, int8 = (statistics.median(times[dtype]) * 1e3 for dtype in ("auto", "int8"))
        rows.append([f"{context:,}", f"{plain:.2f}", f"{int8:.2f}", f"{plain / int8:.2f}"])
    print(machine())
    sizes = [executor.kv_bytes_per_page // PAGE_SIZE for executor in executors.values()]
    print(
        f"{checkpoint.name}, {given.users} users; bytes of a token: {sizes[0]:,} plain, {sizes[1]:,} int8\n"
    )
    print(table(["context", "plain, ms a step", "int8, ms a step", "ratio"], rows))


if __name__ == "__main__":
    main()

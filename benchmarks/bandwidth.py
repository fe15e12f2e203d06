"""What the memory of this machine gives to two reading threads: the limit of a decode step, by the probe of `inferloom doctor`.

    python benchmarks/bandwidth.py      # GB/s, best and median of several reads of half a GiB

It changes from second to second on a shared machine, so `cpu.py` asks beside each measurement that is a share of it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

THREADS = 2
BYTES = 1 << 29
READS = 9


@dataclass(frozen=True)
class Bandwidth:
    best: float  # GB/s
    median: float

    def __str__(self) -> str:
        return f"{self.median:.1f} GB/s (best {self.best:.1f})"


class Probe:
    """Use as a context. A process of its own, which holds the block that is read."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
        )

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def measure(self) -> Bandwidth:
        """About 0.2 s."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Bandwidth(**json.loads(self._process.stdout.readline()))


def main() -> None:
    from inferloom.kernels.native import library

    native = library.load()

    def read() -> Bandwidth:
        rates = [rate / 1e9 for rate in native.memory_bandwidth(BYTES, THREADS, READS)]
        return Bandwidth(max(rates), statistics.median(rates))

    if "--answer" not in sys.argv:
        print(read())
        return
    for _ in sys.stdin:
        print(json.dumps(vars(read())), flush=True)


if __name__ == "__main__":
    main()

"""What the memory of this machine gives to two reading threads: the limit of a decode step.

    python benchmarks/bandwidth.py      # GB/s, best and median of several reads of 1 GiB

With the built extension its own probe is used, the one that `inferloom doctor` shows; otherwise torch's sum, which reads
about as fast.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

THREADS = 2
BYTES = 1 << 30
READS = 7


@dataclass(frozen=True)
class Bandwidth:
    best: float  # GB/s
    median: float
    probe: str

    def __str__(self) -> str:
        return f"{self.best:.1f} GB/s at best, {self.median:.1f} in the median ({self.probe})"


def measure() -> Bandwidth:
    """In a process of its own, so that no buffer stays here."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        [sys.executable, Path(__file__), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return Bandwidth(**json.loads(done.stdout))


def _probe() -> Bandwidth:
    import torch

    torch.set_num_threads(THREADS)
    block = torch.ones(BYTES // 4, dtype=torch.int32).view(torch.float32)
    rates = []
    for _ in range(READS):
        began = time.perf_counter()
        block.sum()
        rates.append(BYTES / (time.perf_counter() - began) / 1e9)
    return Bandwidth(max(rates), statistics.median(rates), "torch's sum over 1 GiB")


if __name__ == "__main__":
    found = _probe()
    print(json.dumps(vars(found)) if "--json" in sys.argv else found)

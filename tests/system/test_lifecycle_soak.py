"""The short form of `make soak`: four models of which two fit, swapped at random under load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parent.parent.parent / "benchmarks" / "soak.py"


def test_20_random_swaps_lose_nothing_and_leave_nothing() -> None:
    done = subprocess.run(
        [sys.executable, SOAK, "--swaps", "20"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| requests lost " in done.stdout

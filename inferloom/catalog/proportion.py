"""The memory of a process by the kernel's account: its proportional set size."""

from __future__ import annotations

from pathlib import Path


def pss_bytes(pid: int) -> int | None:
    """PSS of a process: its own pages, and of shared ones its part. None where it is gone. Walks the page tables, which
    takes milliseconds for gigabytes: to be called in a thread."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return None

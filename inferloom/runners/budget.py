"""How many bytes of KV cache a model may have, until a ledger of all memory decides."""

from __future__ import annotations

import os
from pathlib import Path

MOST_KV_BYTES = 2 << 30

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def kv_budget(*, utilization: float, ram: int, models: int) -> int:
    """The smaller of 2 GiB and a model's equal part of the share of memory that may be used, in bytes."""
    return min(MOST_KV_BYTES, int(utilization * ram / max(1, models)))


def ram_bytes() -> int:
    """Memory of this machine, or of the container where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical

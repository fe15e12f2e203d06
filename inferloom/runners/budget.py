"""The most bytes of KV cache that a model may have, and the memory that there is."""

from __future__ import annotations

import os
from pathlib import Path

# What is beyond it serves hardly anybody on one machine, and a worker's tables of pages grow with it.
MOST_KV_BYTES = 8 << 30

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def most_kv_bytes(*, utilization: float, ram: int) -> int:
    """What a model's KV pages may take where nobody else needs the memory; the catalog's ledger says what is left."""
    return min(MOST_KV_BYTES, int(utilization * ram))


def ram_bytes() -> int:
    """Memory of this machine, or of the container where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical

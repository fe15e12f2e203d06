"""Memory for KV pages."""

from __future__ import annotations

import math
import mmap

import torch

from inferloom.errors import OutOfMemory


def zeroed(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros; on a CPU it takes memory page by page, as it is used. Raises OSError, RuntimeError or
    OverflowError where there is no room: see `no_room`."""
    if device.type == "cpu":
        # Anonymous pages of the kernel: zero without being written, resident only once used.
        block = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
        return torch.frombuffer(block, dtype=dtype).view(shape)
    return torch.zeros(shape, dtype=dtype, device=device)


def no_room(pages: int, page_bytes: int, device: torch.device) -> OutOfMemory:
    """The error that says how large the pool was to be."""
    return OutOfMemory(
        f"{pages} KV pages of {page_bytes:,} bytes ({pages * page_bytes / 2**30:.2f} GiB) could not be allocated "
        f"on {device}; lower max_model_len, max_batch_size or gpu_mem_utilization"
    )

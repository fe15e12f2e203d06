"""Memory for KV pages."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterable, Iterator, Sequence

import torch

from inferloom.errors import OutOfMemory
from inferloom.models.batch import PageTable

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.argtypes, _view.restype = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int), ctypes.py_object
_WRITABLE = 0x200  # PyBUF_WRITE


def zeroed(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros; on a CPU it takes memory page by page, as it is used. Raises OSError, RuntimeError or
    OverflowError where there is no room: see `no_room`."""
    if device.type == "cpu":
        # Anonymous pages of the kernel: zero without being written, resident only once used. Private: shared ones
        # are files to the kernel, whose memory `give_back` would not free.
        block = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(block, dtype=dtype).view(shape)
    return torch.zeros(shape, dtype=dtype, device=device)


def tables_of(pools: Sequence[torch.Tensor]) -> list[PageTable]:
    """Of tensors whose first axis are the pages; none where they are not in this machine's memory."""
    if any(pool.device.type != "cpu" for pool in pools):
        return []
    return [PageTable(pool.data_ptr(), pool.stride(0) * pool.element_size()) for pool in pools]


def no_room(pages: int, page_bytes: int, device: torch.device) -> OutOfMemory:
    """The error that says how large the pool was to be."""
    return OutOfMemory(
        f"{pages} KV pages of {page_bytes:,} bytes ({pages * page_bytes / 2**30:.2f} GiB) could not be allocated "
        f"on {device}; lower max_model_len, max_batch_size or gpu_mem_utilization"
    )


def give_back(tables: Iterable[PageTable], pages: Sequence[int]) -> None:
    """Let the kernel have the memory of these KV pages, which are in order; they read as zeros until they are written.

    What they share with a neighbour, where a KV page does not end with one of the kernel's, stays.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    unit = mmap.PAGESIZE
    for table in tables:
        for first, last in runs(pages):
            begin = -(-(table.address + first * table.size) // unit) * unit
            end = (table.address + last * table.size) // unit * unit
            if begin < end:
                _madvise(begin, end - begin, mmap.MADV_DONTNEED)


def runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers of an ordered list, each as its first and the one after its last."""
    first = last = -1
    for page in pages:
        if page != last:
            if first >= 0:
                yield first, last
            first = page
        last = page + 1
    if first >= 0:
        yield first, last


def page_bytes(tables: Sequence[PageTable], page: int) -> bytes | memoryview:
    """The content of a page, one table after the other. Not copied where there is one table: to be used before the page is
    written to again."""
    views = [_memory(table, page) for table in tables]
    return views[0].toreadonly() if len(views) == 1 else b"".join(views)


def write_page(tables: Sequence[PageTable], page: int, content: bytes | memoryview) -> None:
    """What `page_bytes` gave becomes the content of a page."""
    assert len(content) == sum(table.size for table in tables)
    place = 0
    for table in tables:
        _memory(table, page)[:] = content[place : place + table.size]
        place += table.size


def _memory(table: PageTable, page: int) -> memoryview:
    view: memoryview = _view(table.address + page * table.size, table.size, _WRITABLE)
    return view

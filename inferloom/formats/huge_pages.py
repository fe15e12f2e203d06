"""Weights in huge pages of the page cache.

Two threads read a mapped gigabyte at 37 GB/s where the cache holds it in pages of 4 KiB and at 54 GB/s in pages of 2 MiB
(Zen 4), and a mapping of small pages takes 300,000 entries to build. The kernel chooses the size when it reads a file: a
mapping advised `MADV_HUGEPAGE` brings huge ones (ext4, XFS, btrfs of a recent kernel), while a program that wrote the file in
small pieces left small ones, which stay. So what lies in small pages is dropped from the cache, once, and read again.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import time
from collections.abc import Sequence
from resource import RUSAGE_THREAD, getrusage

_HUGE = 2 << 20
_LEAST = 64 << 20  # bytes of a file that is worth it
_SAMPLES = 5
_PATIENCE = 2.0  # seconds that reading again may take

_log = logging.getLogger(__name__)


def read_into_huge_pages(descriptor: int, size: int, *, least: int = _LEAST) -> bool:
    """Drop the file's pages from the page cache if they are small, the file system can do better, and reading it again
    takes at most two seconds; whoever maps it with `MADV_HUGEPAGE` then reads it into huge ones. Returns whether it did.

    `size` is the file's, in bytes. Pages that are not on the disk yet, or that another process has mapped, stay: the
    kernel keeps them.
    """
    if size < max(least, _HUGE) or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    small = small_extents(descriptor, size)
    if len(small) * 2 <= len(_extents(size)):
        return False
    for extent in small:
        os.posix_fadvise(descriptor, extent, _HUGE, os.POSIX_FADV_DONTNEED)
    began = time.monotonic()
    if small_extents(descriptor, size, small):
        return False  # not on this file system, or held by somebody: nothing is lost but these few
    seconds = (time.monotonic() - began) / (len(small) * _HUGE) * size
    if seconds > _PATIENCE:
        return False
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    _log.info(
        "weights lie in small pages of the page cache: reading %d MiB again, into huge ones", size >> 20
    )
    return True


def small_extents(descriptor: int, size: int, extents: Sequence[int] | None = None) -> list[int]:
    """Offsets of those extents of 2 MiB (None: a few, spread over the file) that are not mapped as one page. Reads them
    from the disk if they are not in the cache."""
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapping:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
        return [offset for offset in extents or _extents(size) if _is_small(mapping, offset)]


def _extents(size: int) -> list[int]:
    count = size // _HUGE
    return sorted({(2 * place + 1) * count // (2 * _SAMPLES) * _HUGE for place in range(_SAMPLES)})


def _is_small(mapping: mmap.mmap, offset: int) -> bool:
    """Whether the extent's second half faults when the first has been touched. (The kernel maps 64 KiB around a fault.)"""
    _ = mapping[offset]
    before = getrusage(RUSAGE_THREAD).ru_minflt
    _ = mapping[offset + _HUGE // 2]
    return getrusage(RUSAGE_THREAD).ru_minflt > before

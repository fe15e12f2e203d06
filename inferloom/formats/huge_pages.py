"""Weights in huge pages of the page cache.

Two threads read a mapped gigabyte at 37 GB/s where the cache holds it in pages of 4 KiB and at 54 GB/s in pages of 2 MiB
(Zen 4), and a mapping of small pages takes 300,000 entries to build. The kernel chooses the size when it reads a file: a
mapping advised `MADV_HUGEPAGE` brings huge ones (ext4, XFS, btrfs of a recent kernel), while a program that wrote the file in
small pieces left small ones, which stay. So what lies in small pages is dropped from the cache and read again: at most two
seconds' worth of it at a load, so that a large file takes some loads, and is never missing as a whole.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import random
import time
from collections.abc import Sequence
from resource import RUSAGE_THREAD, getrusage

_HUGE = 2 << 20
_LEAST = 64 << 20  # bytes of a file that is worth it
_SAMPLES = 32
_GOLDEN = 0.6180339887  # its multiples' fractions are spread evenly, and with no period
_SCATTERED = 0.15  # of the extents: they stay small where the kernel had no huge page for them
# bytes a second that a disk must bring: else reading again takes longer than loads will ever gain
_SLOWEST = 256 << 20
_START = 0.2  # seconds in which it need not have brought anything yet
_PIECE = 16  # extents that are dropped and read again at a time: nobody misses more of the file than that
_TRIES = 2  # its read-ahead sometimes brings the next ones in small pages all the same
_PATIENCE = 2.0  # seconds that one load may take for reading again

_log = logging.getLogger(__name__)


def read_into_huge_pages(
    descriptor: int, size: int, *, least: int = _LEAST, patience: float = _PATIENCE
) -> bool:
    """Where the file's pages in the page cache are small and the file system can do better, drop them and read them again
    into huge ones, piece by piece from the beginning, for `patience` seconds: the next load goes on from there. Returns
    whether any became huge.

    `size` is the file's, in bytes. Pages that are not on the disk yet, or that another process has mapped, stay: the
    kernel keeps them, and a piece that stays small ends it, as a slow disk does.
    """
    if size < max(least, _HUGE) or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    if len(small_extents(descriptor, size)) <= _SCATTERED * len(_extents(size)):
        return False
    began, moved = time.monotonic(), 0
    extents = range(0, size // _HUGE * _HUGE, _HUGE)
    for first in range(0, len(extents), _PIECE):
        small = small_extents(descriptor, size, extents[first : first + _PIECE])
        left = small
        for _ in range(_TRIES):
            for extent in left:
                os.posix_fadvise(descriptor, extent, _HUGE, os.POSIX_FADV_DONTNEED)
            left = small_extents(descriptor, size, left)
        moved += len(small) - len(left)
        spent = time.monotonic() - began
        if len(left) * 2 > _PIECE or spent > min(patience, _START + moved * _HUGE / _SLOWEST):
            break
    if moved:
        _log.info(
            "weights lay in small pages of the page cache: %d of %d MiB were read again, into huge ones",
            moved * _HUGE >> 20,
            size >> 20,
        )
    return moved > 0


def small_extents(descriptor: int, size: int, extents: Sequence[int] | None = None) -> list[int]:
    """Offsets of those extents of 2 MiB (None: a few, spread over the file) that are not mapped as one page. Reads them
    from the disk if they are not in the cache."""
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapping:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
        return [
            offset
            for offset in (_extents(size) if extents is None else extents)
            if _is_small(mapping, offset)
        ]


def _extents(size: int) -> list[int]:
    count, phase = size // _HUGE, random.random()
    # Not at equal distances: read-ahead leaves small ones at equal distances, too. And others each time: looking at one that is not
    # in the cache reads it into a huge page, whatever becomes of those beside it.
    return sorted({int((phase + place * _GOLDEN) % 1 * count) * _HUGE for place in range(_SAMPLES)})


def _is_small(mapping: mmap.mmap, offset: int) -> bool:
    """Whether the extent's second half faults when the first has been touched. (The kernel maps 64 KiB around a fault.)"""
    _ = mapping[offset]
    before = getrusage(RUSAGE_THREAD).ru_minflt
    _ = mapping[offset + _HUGE // 2]
    return getrusage(RUSAGE_THREAD).ru_minflt > before

"""What a process's memory is, as the kernel counts it (Linux)."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import msgspec

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 4 << 20
_TRIMMED = 16 << 20


class Pss(msgspec.Struct, frozen=True):
    """Proportional set size, in bytes: a page that n processes map counts one n-th for each of them.

    `anonymous`: heap, stacks, KV pages; `file`: mapped files, weights above all, and programs' code; `bytes`: all.
    `own`: what this process alone has written, which is free once it is gone. Neither the forkserver's heap, which its
    workers share until they write to it, is in it, nor are mapped files: their pages stay in the page cache.
    """

    bytes: int
    file: int
    anonymous: int
    own: int


def pss(pid: int) -> Pss | None:
    """Of a process; None when it is gone, or not ours to look at. A few milliseconds for each gigabyte in small pages:
    to be called from a thread where an event loop would wait."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    found = {line[0].rstrip(":"): int(line[1]) << 10 for line in map(str.split, text.splitlines()[1:])}
    if "Pss" not in found:  # a process without memory: it is ending
        return None
    total, anonymous = found["Pss"], found.get("Pss_Anon", 0)
    return Pss(
        bytes=total,
        file=total - anonymous,
        anonymous=anonymous,
        own=found.get("Private_Dirty", 0),
    )


def resident(pid: int) -> int:
    """Bytes of a process that are in memory, those it shares with others too, to some hundred kilobytes; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def mapped(pid: int, path: str) -> int:
    """Bytes of the file `path` that the process has in memory, whoever else maps them too; 0 when it is gone."""
    resident, inside = 0, False
    try:
        with open(f"/proc/{pid}/smaps") as smaps:
            for line in smaps:
                words = line.split(maxsplit=5)
                if not words[0].endswith(":"):
                    inside = len(words) == 6 and words[5].rstrip("\n") == path
                elif inside and words[0] == "Rss:":
                    resident += int(words[1]) << 10
    except OSError:
        return 0
    return resident


def give_back_large_blocks() -> None:
    """Let a block of 4 MiB and more that is freed leave this process at once, whatever lies beside it on the heap.

    glibc raises its limit for such blocks with every one that is freed, up to 32 MiB, and the activations of an encoder
    then leave holes in the heap: 226 MiB instead of 164 after a hundred batches of `minilm`, and another figure in each
    process. Other C libraries have no such limit to set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _TRIMMED)

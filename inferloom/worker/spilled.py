"""A file of KV pages that outlive their worker.

Eight bytes of magic, the header's length (u32, little-endian), the header (msgpack), the pages one after the other, and the
CRC-32 of all that: against damage (nobody but its owner may write to the file), and at 4 GB/s, where SHA-256 took as long as
the load itself. A page is its key, the chained hash of `engine.prefix_cache`, and its raw bytes, which mean something to
the same weights, computed the same way, alone: the header says whose they are. What does not fit is discarded, never guessed.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

_MAGIC = b"loomkv\x00\x02"  # the last byte: the version of this form
_LENGTH = struct.Struct("<I")
_SUM = _LENGTH.size
_MOST_HEADER = 64 << 20
_FRAME = 4096  # bytes beside pages and keys, at most
_PER_PAGE = 40  # bytes of the header for each key, at most


class Header(msgspec.Struct, frozen=True):
    owner: str  # checkpoint, quantization and options: what the gateway calls the file by
    executor: str  # what computed the pages: another instruction set rounds otherwise
    page_bytes: int
    keys: list[bytes]  # of each page, the most recently used first


class Foreign(Exception):
    """A file that is damaged, or of another model; the message says which."""


def file_bytes(pages: int, page_bytes: int) -> int:
    """That a file of so many pages takes, at most."""
    return _FRAME + pages * (page_bytes + _PER_PAGE)


def fitting(max_bytes: int, page_bytes: int) -> int:
    """Pages that a file of at most so many bytes holds."""
    return max(0, (max_bytes - _FRAME) // (page_bytes + _PER_PAGE)) if page_bytes else 0


def write(path: Path, header: Header, pages: Iterable[bytes | memoryview]) -> int:
    """Write the file beside its place and rename it; its bytes. Only its owner may read it. Raises `OSError`."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.partial")
    checksum = 0
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            encoded = msgspec.msgpack.encode(header)
            for piece in (_MAGIC, _LENGTH.pack(len(encoded)), encoded):
                checksum = zlib.crc32(piece, checksum)
                file.write(piece)
            for page in pages:
                checksum = zlib.crc32(page, checksum)
                file.write(page)
            file.write(_LENGTH.pack(checksum))
            size = file.tell()
        fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    return size


def read(path: Path, *, owner: str, executor: str, page_bytes: int) -> list[tuple[bytes, memoryview]]:
    """Keys and contents of the pages, views of the mapped file. Raises `Foreign` and `OSError`."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = len(_MAGIC) + _LENGTH.size
        if size < start + _SUM:
            raise Foreign("it is cut short")
        whole = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    if whole[: len(_MAGIC)] != _MAGIC:
        raise Foreign("it is of another kind or version")
    (length,) = _LENGTH.unpack(whole[len(_MAGIC) : start])
    if length > min(size - start - _SUM, _MOST_HEADER):
        raise Foreign("it is cut short")
    if _LENGTH.pack(zlib.crc32(whole[: size - _SUM])) != whole[size - _SUM :]:
        raise Foreign("it is damaged: its checksum does not hold")
    try:
        header = msgspec.msgpack.decode(whole[start : start + length], type=Header)
    except msgspec.MsgspecError as error:
        raise Foreign(f"its header cannot be read: {error}") from None
    if (header.owner, header.executor, header.page_bytes) != (owner, executor, page_bytes):
        raise Foreign("its pages are of another model, or were computed otherwise")
    begin = start + length
    if begin + len(header.keys) * page_bytes + _SUM != size or len(set(header.keys)) != len(header.keys):
        raise Foreign("it holds another number of pages than it says")
    return [
        (key, whole[begin + place * page_bytes : begin + (place + 1) * page_bytes])
        for place, key in enumerate(header.keys)
    ]

"""A file of KV pages that outlive their worker.

Eight bytes of magic, the pages one after the other, the header (msgpack), its length and its CRC-32 (u32, little-endian). A page is
its key, the chained hash of `engine.prefix_cache`, and its raw bytes, which mean something to the same weights, computed the
same way, alone: the header says whose they are, and has a CRC-32 of each page, against damage (nobody but its owner may write to
the file). A load reads the header; a page is read, and checked, when a prompt asks for it. What does not fit is discarded, never guessed.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

_MAGIC = b"loomkv\x00\x03"  # the last byte: the version of this form
_TAIL = struct.Struct("<II")  # the header's length and checksum
_MOST_HEADER = 64 << 20
_FRAME = 4096  # bytes beside pages and keys, at most
_PER_PAGE = 48  # bytes of the header for each page, at most

Content = Callable[[], bytes | memoryview | None]  # a page's bytes; None where they are damaged


class Header(msgspec.Struct, frozen=True):
    owner: str  # checkpoint, quantization and options: what the gateway calls the file by
    executor: str  # what computed the pages: another instruction set rounds otherwise
    page_bytes: int
    keys: list[bytes]  # of each page, the most recently used first
    sums: list[int]  # their checksums


class Foreign(Exception):
    """A file that is damaged, or of another model; the message says which."""


def file_bytes(pages: int, page_bytes: int) -> int:
    """That a file of so many pages takes, at most."""
    return _FRAME + pages * (page_bytes + _PER_PAGE)


def fitting(max_bytes: int, page_bytes: int) -> int:
    """Pages that a file of at most so many bytes holds."""
    return max(0, (max_bytes - _FRAME) // (page_bytes + _PER_PAGE)) if page_bytes else 0


def write(
    path: Path, *, owner: str, executor: str, page_bytes: int, pages: Iterable[tuple[bytes, Content]]
) -> int:
    """Write the file beside its place and rename it; its bytes. Pages without content are left out. Only its owner may read it.
    Raises `OSError`."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.partial")
    header = Header(owner, executor, page_bytes, [], [])
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(_MAGIC)
            for key, content in pages:
                found = content()
                if found is None:
                    continue
                header.keys.append(key)
                header.sums.append(zlib.crc32(found))
                file.write(found)
            encoded = msgspec.msgpack.encode(header)
            file.write(encoded)
            file.write(_TAIL.pack(len(encoded), zlib.crc32(encoded)))
            size = file.tell()
        fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    return size


class KeptPages:
    """A file's pages, read and checked one by one. `damaged`: one of those that were read was."""

    def __init__(self, path: Path, whole: memoryview, header: Header) -> None:
        self.keys = frozenset(header.keys)
        self.damaged = False
        self._path = path
        self._whole = whole
        self._header = header

    def pages(self) -> list[tuple[bytes, Content]]:
        return [(key, partial(self._content, place)) for place, key in enumerate(self._header.keys)]

    def _content(self, place: int) -> memoryview | None:
        begin = len(_MAGIC) + place * self._header.page_bytes
        page = self._whole[begin : begin + self._header.page_bytes]
        if zlib.crc32(page) == self._header.sums[place]:
            return page
        self.damaged = True
        log.warning("a page of the kept prefixes in %s is discarded: it is damaged", self._path)
        return None


def read(path: Path, *, owner: str, executor: str, page_bytes: int) -> KeptPages:
    """The pages of a file, which is mapped. Raises `Foreign` and `OSError`."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < len(_MAGIC) + _TAIL.size:
            raise Foreign("it is cut short")
        whole = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    if whole[: len(_MAGIC)] != _MAGIC:
        raise Foreign("it is of another kind or version")
    length, checksum = _TAIL.unpack(whole[size - _TAIL.size :])
    begin = size - _TAIL.size - length
    if begin < len(_MAGIC) or length > _MOST_HEADER:
        raise Foreign("it is cut short")
    encoded = whole[begin : begin + length]
    if zlib.crc32(encoded) != checksum:
        raise Foreign("it is damaged: its checksum does not hold")
    try:
        header = msgspec.msgpack.decode(encoded, type=Header)
    except msgspec.MsgspecError as error:
        raise Foreign(f"its header cannot be read: {error}") from None
    if (header.owner, header.executor, header.page_bytes) != (owner, executor, page_bytes):
        raise Foreign("its pages are of another model, or were computed otherwise")
    count = len(header.keys)
    whole_pages = len(_MAGIC) + count * page_bytes == begin
    if not whole_pages or len(set(header.keys)) != count or len(header.sums) != count:
        raise Foreign("it holds another number of pages than it says")
    return KeptPages(path, whole, header)

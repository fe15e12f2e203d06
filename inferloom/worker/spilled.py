"""A file of KV pages that outlive their worker.

Eight bytes of magic, slots for pages one after the other, the header (msgpack), its length and its CRC-32 (u32, little-endian). A page is
its key, the chained hash of `engine.prefix_cache`, and its raw bytes, which mean something to the same weights, computed the
same way, alone: the header says whose they are, and has slot and CRC-32 of each page, against damage (nobody but its owner may write to
the file). A load reads the header; a page is read, and checked, when a prompt asks for it. What does not fit is discarded, never guessed.

An unload writes the pages that the file lacks, and a header: to slots that nobody wants any more, then behind the others. A worker that is
killed meanwhile leaves a file without a header, which the next load discards; one that reads the old pages meanwhile finds those it wants
unchanged, or damaged by their checksums.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path

import msgspec

from inferloom.engine.prefix_cache import Content

log = logging.getLogger(__name__)

_MAGIC = b"loomkv\x00\x04"  # the last byte: the version of this form
_TAIL = struct.Struct("<II")  # the header's length and checksum
_MOST_HEADER = 64 << 20
_FRAME = 4096  # bytes beside pages and keys, at most
_PER_PAGE = 48  # bytes of the header for each page, at most


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A page of the file."""

    key: bytes
    checksum: int
    slot: int


class Header(msgspec.Struct, frozen=True):
    owner: str  # checkpoint, quantization and options: what the gateway calls the file by
    executor: str  # what computed the pages: another instruction set rounds otherwise
    page_bytes: int
    pages: list[Entry]  # the most recently used first


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
    header = Header(owner, executor, page_bytes, [])
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(_MAGIC)
            for key, content in pages:
                found = content()
                if found is None:
                    continue
                header.pages.append(Entry(key, zlib.crc32(found), len(header.pages)))
                file.write(found)
            file.write(_ending(header))
            size = file.tell()
        fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    return size


def _ending(header: Header) -> bytes:
    encoded = msgspec.msgpack.encode(header)
    return encoded + _TAIL.pack(len(encoded), zlib.crc32(encoded))


def _write_at(file: int, place: int, content: bytes | memoryview) -> int:
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, place)
        left, place = left[written:], place + written
    return len(content)


class KeptPages:
    """A file's pages, read and checked one by one. `damaged`: one of those that were read was."""

    def __init__(
        self, path: Path, whole: memoryview, header: Header, *, end: int, identity: tuple[int, int]
    ) -> None:
        """`end`: of the slots, where the header begins. `identity`: device and inode of the file."""
        self.keys = frozenset(entry.key for entry in header.pages)
        self.damaged = False
        self._path = path
        self._whole = whole
        self._header = header
        self._end = end
        self._identity = identity

    def pages(self) -> list[tuple[bytes, Content]]:
        return [(entry.key, partial(self._content, entry)) for entry in self._header.pages]

    def _content(self, entry: Entry) -> memoryview | None:
        begin = self._place(entry.slot)
        page = self._whole[begin : begin + self._header.page_bytes]
        if zlib.crc32(page) == entry.checksum:
            return page
        self.damaged = True
        log.warning("a page of the kept prefixes in %s is discarded: it is damaged", self._path)
        return None

    def _place(self, slot: int) -> int:
        return len(_MAGIC) + slot * self._header.page_bytes

    def update(self, pages: Sequence[tuple[bytes, Content]], *, max_bytes: int) -> int | None:
        """Have the file hold `pages` and no others: what it lacks is written, and the header. Its bytes, or None, and nothing is
        changed, where it is another file by now, has a damaged page, or more than a quarter of it would be of no use. Raises
        `OSError`; the file is what it was then, but for pages whose slots were not wanted."""
        mine = {entry.key: entry for entry in self._header.pages}
        taken = {mine[key].slot for key, _ in pages if key in mine}
        slots_now = (self._end - len(_MAGIC)) // self._header.page_bytes
        free = chain((slot for slot in range(slots_now) if slot not in taken), count(slots_now))
        most = max(len(pages), slots_now)
        if self.damaged or 3 * most > 4 * len(pages) or file_bytes(most, self._header.page_bytes) > max_bytes:
            return None
        with self._opened() as file:
            if file is None:
                return None
            header = msgspec.structs.replace(self._header, pages=[])
            before = bytes(self._whole[self._end :])
            try:
                for key, content in pages:
                    if key in mine:
                        header.pages.append(mine[key])
                    elif (found := content()) is not None:
                        slot = next(free)
                        _write_at(file, self._place(slot), found)
                        header.pages.append(Entry(key, zlib.crc32(found), slot))
                end = self._place(max(slots_now, 1 + max((entry.slot for entry in header.pages), default=-1)))
                size = end + _write_at(file, end, _ending(header))
                os.ftruncate(file, size)
            except BaseException:
                with contextlib.suppress(OSError):
                    _write_at(file, self._end, before)
                    os.ftruncate(file, len(self._whole))
                raise
            return size

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        """The file to write to, nobody else meanwhile; None where it is not what was read."""
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another worker of the same content unloads as well
                yield None
                return
            status = os.fstat(file)
            same = (status.st_dev, status.st_ino, status.st_size) == (*self._identity, len(self._whole))
            yield file if same else None
        finally:
            os.close(file)


def read(path: Path, *, owner: str, executor: str, page_bytes: int) -> KeptPages:
    """The pages of a file, which is mapped. Raises `Foreign` and `OSError`."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        size = status.st_size
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
    keys, used = {entry.key for entry in header.pages}, {entry.slot for entry in header.pages}
    distinct, slots = len(keys) == len(used) == len(header.pages), (begin - len(_MAGIC)) // page_bytes
    within = all(0 <= slot < slots for slot in used)
    if not distinct or not within or len(_MAGIC) + slots * page_bytes != begin:
        raise Foreign("it holds other pages than it says")
    return KeptPages(path, whole, header, end=begin, identity=(status.st_dev, status.st_ino))

"""The safetensors layout: reading a header without believing it, and writing a file tensor by tensor.

Source of the layout: the safetensors README. Eight bytes of header length, a JSON header, then the data.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from inferloom.errors import InvalidFormat

ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_ALIGNMENT = 64
# What one write call brings, at a multiple of it: the kernel then keeps the file in huge pages, where the file system can,
# and maps it with one fault for each 2 MiB instead of one for each 64 KiB.
_BLOCK = 8 << 20


class TensorHeader(msgspec.Struct, frozen=True):
    """`offset` is absolute, in bytes; `size` in bytes; `dtype` in safetensors' words (`BF16`, `F32` …)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Header(msgspec.Struct, frozen=True):
    tensors: dict[str, TensorHeader]
    metadata: dict[str, str]


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_header(path: Path, *, descriptor: int | None = None) -> Header:
    """The header of `path` (or of the open file `descriptor`), bounds-checked.

    Raises `InvalidFormat` for anything that is not a whole safetensors file.
    """
    if descriptor is None:
        with open(path, "rb") as file:
            return _header(file.fileno(), path.name)
    return _header(descriptor, path.name)


def _header(descriptor: int, name: str) -> Header:
    size = os.fstat(descriptor).st_size
    start = os.pread(descriptor, 8, 0)
    if len(start) < 8:
        raise InvalidFormat(f"{name} is {size} bytes long, too short for a safetensors file.")
    (length,) = struct.unpack("<Q", start)
    if length > size - 8 or length > _MAX_HEADER:
        raise InvalidFormat(
            f"{name} is damaged or cut short: its header claims {length:,} bytes of {size:,}."
        )
    raw = os.pread(descriptor, length, 8)
    try:
        entries: dict[str, msgspec.Raw] = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(entries.pop("__metadata__", b"{}"), type=dict[str, str])
        parsed = {key: msgspec.json.decode(value, type=_Entry) for key, value in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidFormat(f"the header of {name} cannot be read: {error}.") from error
    return Header(
        {key: _check(key, entry, 8 + length, size, name) for key, entry in parsed.items()}, metadata
    )


def _check(key: str, entry: _Entry, start: int, size: int, name: str) -> TensorHeader:
    begin, end = entry.data_offsets
    item = ITEM_SIZES.get(entry.dtype)
    if item is None:
        raise InvalidFormat(f"the tensor {key!r} of {name} has the unknown dtype {entry.dtype!r}.")
    wanted = item
    for extent in entry.shape:
        wanted *= extent
    if any(extent < 0 for extent in entry.shape) or begin < 0 or end - begin != wanted:
        raise InvalidFormat(
            f"{name} is damaged: the tensor {key!r} has {end - begin} bytes for shape {entry.shape}."
        )
    if end > size - start:
        raise InvalidFormat(
            f"{name} is damaged or cut short: the tensor {key!r} ends at byte {start + end:,} of {size:,}."
        )
    return TensorHeader(key, entry.dtype, tuple(entry.shape), start + begin, wanted)


class SafetensorsWriter:
    """Writes a file whose tensors come one after the other, in the order announced, each in any number of pieces."""

    def __init__(
        self, file: BinaryIO, tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: dict[str, str]
    ) -> None:
        """`tensors`: (name, dtype, shape) in the order in which they will be written."""
        header: dict[str, Any] = {"__metadata__": metadata}
        offset = 0
        for name, dtype, shape in tensors:
            size = ITEM_SIZES[dtype]
            for extent in shape:
                size *= extent
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-(len(raw) + 8) % _ALIGNMENT)  # the data begin on a cache line
        self._file = file
        self._block = bytearray(_BLOCK)
        self._filled = 0
        self._left = offset
        self._put(struct.pack("<Q", len(raw)))
        self._put(raw)

    def write(self, pieces: Iterable[bytes | memoryview]) -> None:
        for piece in pieces:
            self._left -= len(piece)
            assert self._left >= 0, "more bytes than were announced"
            self._put(piece)

    def finish(self) -> None:
        assert self._left == 0, f"{self._left} bytes that were announced are missing"
        self._flush()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _put(self, piece: bytes | memoryview) -> None:
        rest = memoryview(piece)
        while rest:
            some = rest[: _BLOCK - self._filled]
            self._block[self._filled : self._filled + len(some)] = some
            self._filled += len(some)
            rest = rest[len(some) :]
            if self._filled == _BLOCK:
                self._flush()

    def _flush(self) -> None:
        self._file.write(memoryview(self._block)[: self._filled])
        self._filled = 0

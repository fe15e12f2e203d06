"""Reading a GGUF file's header: metadata and where the tensors lie. Nothing in it is believed before it is checked.

The layout is ggml's (docs/gguf.md of ggml): magic, version, counts, key-value pairs, tensor descriptions, then the
data, aligned. The parser of the `gguf` package trusts its counts and takes a Python object per array element; this
one reads a 150,000-token vocabulary in a tenth of a second and refuses every count that the file is too short for.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from inferloom.errors import InvalidFormat

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_NAME = 1 << 16
_MAX_DIMENSIONS = 4

Value = bool | int | float | str | list[Any]


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor. `shape` is row-major as in PyTorch (GGUF writes it the other way round); `offset` is absolute."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes

    @property
    def elements(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count


class GgufFile:
    """A mapped GGUF file; close it, or use it in a `with`. Raises `InvalidFormat` for whatever is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise InvalidFormat(f"{path.name} is {size} bytes long, too short for a GGUF file.")
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        try:
            cursor = _Cursor(self._map, path.name)
            self.metadata, self.tensors = _read(cursor)
        except InvalidFormat:
            self._map.close()
            raise

    def bytes_of(self, tensor: TensorInfo) -> memoryview:
        """The tensor's bytes as they are in the file, without a copy."""
        return memoryview(self._map)[tensor.offset : tensor.offset + tensor.size]

    def close(self) -> None:
        with contextlib.suppress(
            BufferError
        ):  # views of the map are still alive: it goes with the last of them
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Cursor:
    """A position in a buffer that refuses to leave it."""

    def __init__(self, buffer: mmap.mmap, name: str) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.name = name
        self.at = 0

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            raise InvalidFormat(
                f"{self.name} is damaged or cut short: {what} needs {count:,} bytes at {self.at:,} of {self.size:,}."
            )

    def take(self, code: str, what: str) -> Any:
        length = struct.calcsize(f"<{code}")
        self.need(length, what)
        (value,) = struct.unpack_from(f"<{code}", self.buffer, self.at)
        self.at += length
        return value

    def string(self, what: str, *, limit: int | None = None) -> str:
        length = self.take("Q", what)
        if limit is not None and length > limit:
            raise InvalidFormat(f"{self.name} is damaged: {what} claims to be {length:,} bytes long.")
        self.need(length, what)
        raw = self.buffer[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", errors="replace")


def _read(cursor: _Cursor) -> tuple[dict[str, Value], dict[str, TensorInfo]]:
    if cursor.buffer[:4] != _MAGIC:
        raise InvalidFormat(f"{cursor.name} is not a GGUF file: it does not start with the letters GGUF.")
    cursor.at = 4
    version = cursor.take("I", "the version")
    if version & 0xFFFF == 0:
        raise InvalidFormat(f"{cursor.name} is a big-endian GGUF file; only little-endian ones are read.")
    if version not in (2, 3):
        raise InvalidFormat(f"{cursor.name} is a GGUF file of version {version}; versions 2 and 3 are read.")
    tensor_count = cursor.take("Q", "the number of tensors")
    pair_count = cursor.take("Q", "the number of metadata entries")
    # The shortest entry: an empty name and one byte; the shortest tensor: an empty name, no dimensions.
    cursor.need(
        pair_count * 13 + tensor_count * 24, f"{pair_count:,} metadata entries and {tensor_count:,} tensors"
    )
    metadata: dict[str, Value] = {}
    for _ in range(pair_count):
        key = cursor.string("a metadata key", limit=_MAX_NAME)
        if key in metadata:
            raise InvalidFormat(f"{cursor.name} is damaged: the metadata key {key!r} is there twice.")
        metadata[key] = _value(cursor, cursor.take("I", f"the type of {key!r}"), key)
    described = [_describe(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise InvalidFormat(
            f"{cursor.name} is damaged: general.alignment is {alignment!r}, not a power of two."
        )
    start = -(-cursor.at // alignment) * alignment
    return metadata, _place(described, start, cursor)


def _value(cursor: _Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return cursor.string(f"the text of {key!r}")
    if kind == _ARRAY:
        return _array(cursor, key)
    code = _SCALARS.get(kind)
    if code is None:
        raise InvalidFormat(f"{cursor.name} is damaged: {key!r} has the unknown type {kind}.")
    value: bool | int | float = cursor.take(code, f"the value of {key!r}")
    return value


def _array(cursor: _Cursor, key: str) -> list[Any]:
    kind = cursor.take("I", f"the type of {key!r}")
    count = cursor.take("Q", f"the length of {key!r}")
    what = f"{count:,} entries of {key!r}"
    if kind == _STRING:
        cursor.need(count * 8, what)
        return [cursor.string(what) for _ in range(count)]
    code = _SCALARS.get(kind)
    if code is None:
        raise InvalidFormat(f"{cursor.name} is damaged: {key!r} is an array of the unknown type {kind}.")
    length = count * struct.calcsize(f"<{code}")
    cursor.need(length, what)
    values = list(struct.unpack_from(f"<{count}{code}", cursor.buffer, cursor.at))
    cursor.at += length
    return values


def _describe(cursor: _Cursor) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    name = cursor.string("a tensor's name", limit=_MAX_NAME)
    rank = cursor.take("I", f"the shape of {name!r}")
    if rank > _MAX_DIMENSIONS:
        raise InvalidFormat(f"{cursor.name} is damaged: the tensor {name!r} claims {rank:,} dimensions.")
    shape = tuple(cursor.take("Q", f"the shape of {name!r}") for _ in range(rank))[::-1]
    number = cursor.take("I", f"the type of {name!r}")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise InvalidFormat(f"{cursor.name}: the tensor {name!r} has the unknown type {number}.") from None
    return name, kind, shape, cursor.take("Q", f"the place of {name!r}")


def _place(
    described: list[tuple[str, GGMLQuantizationType, tuple[int, ...], int]], start: int, cursor: _Cursor
) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for name, kind, shape, relative in described:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        row = shape[-1] if shape else 1
        elements = 1
        for length in shape:
            elements *= length
        if row % block:
            raise InvalidFormat(
                f"{cursor.name}: rows of {row} in {name!r} are no whole blocks of {kind.name}."
            )
        size = elements // block * block_bytes
        if relative > cursor.size or size > cursor.size - start - relative:
            raise InvalidFormat(
                f"{cursor.name} is damaged or cut short: the tensor {name!r} needs {size:,} bytes at "
                f"{start + relative:,}, the file has {cursor.size:,}."
            )
        if name in tensors:
            raise InvalidFormat(f"{cursor.name} is damaged: the tensor {name!r} is there twice.")
        tensors[name] = TensorInfo(name, kind, shape, start + relative, size)
    return tensors


def text(metadata: Mapping[str, Value], key: str) -> str | None:
    """The text at `key`, None if it is missing. Raises `InvalidFormat` if it is something else."""
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidFormat(f"{key} is {value!r:.40}, not a text.")
    return value


def number(metadata: Mapping[str, Value], key: str) -> int | None:
    """The whole number at `key`, None if it is missing. Raises `InvalidFormat` if it is something else."""
    value = metadata.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidFormat(f"{key} is {value!r:.40}, not a whole number.")
    return value


def real(metadata: Mapping[str, Value], key: str) -> float | None:
    """The number at `key`, None if it is missing. Raises `InvalidFormat` if it is something else."""
    value = metadata.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InvalidFormat(f"{key} is {value!r:.40}, not a number.")
    return value


def flag(metadata: Mapping[str, Value], key: str) -> bool | None:
    """The truth value at `key`, None if it is missing. Raises `InvalidFormat` if it is something else."""
    value = metadata.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidFormat(f"{key} is {value!r:.40}, not true or false.")
    return value


def texts(metadata: Mapping[str, Value], key: str) -> list[str] | None:
    """The list of texts at `key`, None if it is missing. Raises `InvalidFormat` if it is something else."""
    value = metadata.get(key)
    if value is not None and (
        not isinstance(value, list) or not all(isinstance(item, str) for item in value)
    ):
        raise InvalidFormat(f"{key} is not a list of texts.")
    return value

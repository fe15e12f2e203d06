"""Packed weights in a safetensors file: quantised matrices are U8 tensors, and the metadata say what they mean.

`__metadata__["inferloom.layouts"]` is JSON: name → {"layout": "Q4_32", "shape": [out_features, in_features]}. The data and
every quantised matrix begin at multiples of 64 bytes. Whoever does not know of it sees a table of bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import msgspec

from inferloom.errors import InvalidFormat
from inferloom.formats.layout import Layout, packed_bytes
from inferloom.formats.safetensors_file import ITEM_SIZES, Header, SafetensorsWriter

LAYOUTS = "inferloom.layouts"
_ALIGNMENT = 64


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    layout: str
    shape: tuple[int, int]


def packed_entries(header: Header, file: str) -> dict[str, tuple[Layout, tuple[int, int]]]:
    """The quantised matrices of a file, checked against its tensors. Raises `InvalidFormat`."""
    text = header.metadata.get(LAYOUTS)
    if text is None:
        return {}
    try:
        entries = msgspec.json.decode(text, type=dict[str, _Entry])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidFormat(f"{file} is damaged: its {LAYOUTS} cannot be read: {error}.") from error
    return {name: _checked(name, entry, header, file) for name, entry in entries.items()}


class Stored(msgspec.Struct, frozen=True):
    """A tensor as it is written: a quantised matrix where `layout` is set, otherwise `dtype` in safetensors' words."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "U8"
    layout: Layout | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        if self.layout is not None:
            rows, columns = self.shape
            return packed_bytes((rows, columns), self.layout)
        size = ITEM_SIZES[self.dtype]
        for extent in self.shape:
            size *= extent
        return size


def in_order(tensors: Iterable[Stored]) -> list[Stored]:
    """The order to write them in: the format knows no gaps, so what must begin at a multiple of 64 bytes goes first (the
    size of every quantised matrix is one), and wide types go before narrow ones."""

    def key(tensor: Stored) -> tuple[bool, int, str]:
        return bool(tensor.size % _ALIGNMENT), -ITEM_SIZES[tensor.dtype], tensor.name

    return sorted(tensors, key=key)


def open_writer(file: BinaryIO, tensors: Sequence[Stored], metadata: dict[str, str]) -> SafetensorsWriter:
    """A writer for `tensors`, which are `in_order`."""
    described: dict[str, Any] = {
        tensor.name: {"layout": tensor.layout.name, "shape": list(tensor.shape)}
        for tensor in tensors
        if tensor.layout is not None
    }
    if described:
        metadata = {**metadata, LAYOUTS: msgspec.json.encode(described).decode()}
    plain = [
        (tensor.name, tensor.dtype, tensor.shape if tensor.layout is None else (tensor.size,))
        for tensor in tensors
    ]
    return SafetensorsWriter(file, plain, metadata)


def _checked(name: str, entry: _Entry, header: Header, file: str) -> tuple[Layout, tuple[int, int]]:
    layout = Layout.__members__.get(entry.layout)
    if layout is None or not layout.quantised:
        raise InvalidFormat(f"{file}: the tensor {name!r} has the unknown layout {entry.layout!r}.")
    tensor = header.tensors.get(name)
    if tensor is None:
        raise InvalidFormat(f"{file} is damaged: it describes a tensor {name!r} that it does not hold.")
    fits = min(entry.shape) > 0 and tensor.size == packed_bytes(entry.shape, layout)
    if tensor.dtype != "U8" or len(tensor.shape) != 1 or not fits:
        raise InvalidFormat(
            f"{file} is damaged: the tensor {name!r} has {tensor.size:,} bytes of {tensor.dtype} for a {layout.name} "
            f"matrix of shape {list(entry.shape)}."
        )
    if tensor.offset % _ALIGNMENT:
        raise InvalidFormat(
            f"{file}: the tensor {name!r} does not begin at a multiple of {_ALIGNMENT} bytes."
        )
    return layout, entry.shape

"""A checkpoint's tensors for packing: rows of values in float32, or their bytes as they are. numpy; torch for `.bin` files.

Unlike `weights`, which gives a worker the mapped tensors, nothing here needs torch where the files are safetensors.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from inferloom.errors import InvalidFormat
from inferloom.formats.bfloat16 import from_bf16
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.interleaving import Blocks, values_of
from inferloom.formats.layout import ROWS, Layout
from inferloom.formats.packed_file import packed_entries
from inferloom.formats.safetensors_file import read_header

Bytes = NDArray[np.uint8]
_FLOATS = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


class TensorSource(Protocol):
    """`dtype` is safetensors' word for it; `layout` is set for quantised matrices. Rows are those of the first axis; of
    quantised matrices they are asked for in multiples of 16, up to the end."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def layout(self) -> Layout | None: ...

    def values(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` … `stop` of a matrix."""

    def content(self, start: int, stop: int) -> Bytes:
        """The bytes of those rows as they are stored: row-major, or whole blocks of sixteen rows."""


class FloatSource(msgspec.Struct, frozen=True):
    """A tensor of numbers; `data` are its bytes. Only floats have `values`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Bytes
    layout: None = None

    @property
    def is_float(self) -> bool:
        return self.dtype == "BF16" or self.dtype in _FLOATS

    def values(self, start: int, stop: int) -> NDArray[np.float32]:
        rows = np.ascontiguousarray(self.content(start, stop))
        if self.dtype == "BF16":
            return from_bf16(rows.view(np.uint16))
        return rows.view(_FLOATS[self.dtype]).astype(np.float32)

    def content(self, start: int, stop: int) -> Bytes:
        return self.data.reshape(self.shape[0] if self.shape else 1, -1)[start:stop]

    def numbers(self, dtype: type[np.generic]) -> NDArray[np.generic]:
        """The whole tensor in numpy's own `dtype`, which its size must be that of."""
        return np.ascontiguousarray(self.data).view(dtype).reshape(self.shape)


class PackedSource(msgspec.Struct, frozen=True):
    """A matrix that is quantised already."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    data: Bytes
    dtype: str = "U8"

    def values(self, start: int, stop: int) -> NDArray[np.float32]:
        values = values_of(np.ascontiguousarray(self.content(start, stop)), self.layout)
        return np.ascontiguousarray(values[: min(stop, self.shape[0]) - start, : self.shape[1]])

    def content(self, start: int, stop: int) -> Bytes:
        """The blocks that hold these rows."""
        return Blocks(self.data, self.shape[1], self.layout)[start // ROWS : -(-stop // ROWS)]


def read(checkpoint: Checkpoint) -> dict[str, FloatSource | PackedSource]:
    """The tensors of all files by name, mapped. Raises `InvalidFormat`."""
    tensors: dict[str, FloatSource | PackedSource] = {}
    for name in checkpoint.weights:
        found = _pickled(name) if checkpoint.format == "pytorch" else _mapped(Path(name))
        for tensor in found:
            if tensor.name in tensors:
                raise InvalidFormat(f"the tensor {tensor.name!r} is in two files of {checkpoint.folder}.")
            tensors[tensor.name] = tensor
    return tensors


def _mapped(path: Path) -> Sequence[FloatSource | PackedSource]:
    header = read_header(path)
    with open(path, "rb") as file:
        mapping = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), dtype=np.uint8)
    packed = packed_entries(header, path.name)
    found: list[FloatSource | PackedSource] = []
    for name, tensor in header.tensors.items():
        data = mapping[tensor.offset : tensor.offset + tensor.size]
        if name in packed:
            layout, shape = packed[name]
            found.append(PackedSource(name, shape, layout, data))
        else:
            found.append(FloatSource(name, tensor.shape, tensor.dtype, data))
    return found


def _pickled(path: str) -> Sequence[FloatSource]:
    import torch

    from inferloom.formats.weights import read_pickled

    words = {
        torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
        torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
    }  # fmt: skip
    found = []
    for name, tensor in read_pickled(path).items():
        word = words.get(tensor.dtype)
        if word is None:
            raise InvalidFormat(f"the tensor {name!r} has the dtype {tensor.dtype}, which cannot be packed.")
        data = (
            tensor.contiguous().view(-1).view(torch.uint8).numpy()
            if tensor.numel()
            else np.empty(0, np.uint8)
        )
        found.append(FloatSource(name, tuple(tensor.shape), word, data))
    return found

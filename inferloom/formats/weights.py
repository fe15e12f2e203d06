"""A checkpoint's tensors as views of the mapped files: nothing is copied, and reloading is mapping. Workers only."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import torch

from inferloom.errors import InvalidFormat, LoadFailed
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.entries import hold
from inferloom.formats.huge_pages import read_into_huge_pages
from inferloom.formats.layouts import PackedTensor
from inferloom.formats.packed_file import packed_entries
from inferloom.formats.safetensors_file import TensorHeader, read_header

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip

_PIECE = 64 << 20  # bytes that are mapped or unmapped at a time
_POPULATE_READ = 22  # linux/mman.h, Linux 5.14
_SLOW = 0.1  # seconds for a piece: it came from the disk, where what is needed first should come first
_UNMAPPERS = 3  # threads that help; more would wait for each other
_mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # of this process
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class OpenFile(msgspec.Struct, frozen=True):
    """A weights file that is held open: whoever watches it compares `size` (bytes) and `mtime_ns` with its state."""

    path: str
    fd: int
    size: int
    mtime_ns: int

    @property
    def unchanged(self) -> bool:
        """Whether the file at `path` is still the one that was opened, as it was then."""
        try:
            held, there = os.fstat(self.fd), os.stat(self.path)  # noqa: PTH116
        except OSError:
            return False
        same = (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)
        return same and (held.st_size, held.st_mtime_ns) == (self.size, self.mtime_ns)


class Weights(Mapping[str, torch.Tensor | PackedTensor]):
    """Tensors by name, quantised matrices as `PackedTensor`. They are read-only views of file mappings: writing to one
    ends the process."""

    def __init__(self, tensors: dict[str, torch.Tensor | PackedTensor], files: list[OpenFile]) -> None:
        self._tensors = tensors
        self.files = files

    def __getitem__(self, name: str) -> torch.Tensor | PackedTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def close(self) -> None:
        """Let go of the tensors and the descriptors; a mapping goes with the last tensor that uses it."""
        self._tensors.clear()
        for file in self.files:
            os.close(file.fd)
        self.files.clear()


def open_weights(checkpoint: Checkpoint) -> Weights:
    """Map the weights of `checkpoint`. dtypes are the files'; nothing is read before it is used.

    Raises `InvalidFormat` for a damaged file or one that holds more than tensors, `LoadFailed` for one that cannot be
    opened.
    """
    tensors: dict[str, torch.Tensor | PackedTensor] = {}
    files: list[OpenFile] = []
    try:
        for name in checkpoint.weights:
            file = _open(name)
            files.append(file)
            found: Mapping[str, torch.Tensor | PackedTensor]
            found = _mapped(file) if _is_safetensors(checkpoint, name) else read_pickled(name)
            for key, tensor in found.items():
                if key in tensors:
                    raise InvalidFormat(f"the tensor {key!r} is in two files of {checkpoint.folder}.")
                tensors[key] = tensor
    except BaseException:
        for file in files:
            os.close(file.fd)
        raise
    return Weights(tensors, files)


def _enter_pages(mapping: mmap.mmap) -> None:
    """Have the page tables filled while the model is built, for what is in memory already: else its first pass does it, page
    by page. Runs in a thread; kernels that do not know how leave it to the first pass."""
    start = np.frombuffer(mapping, np.uint8).ctypes.data
    for offset in range(0, len(mapping), _PIECE):
        began = time.monotonic()
        failed = _madvise(start + offset, min(_PIECE, len(mapping) - offset), _POPULATE_READ)
        if failed or time.monotonic() - began > _SLOW:
            return


def unmap_pages() -> None:
    """Take the pages of all weights out of this process's memory, on several processors, for one that is about to end.

    The kernel does it with one at the end: 50 ms for a gigabyte of small pages. What is still read is mapped again.
    """
    pieces = SimpleQueue[tuple[int, int]]()
    for mapping in _mappings:
        start = np.frombuffer(mapping, np.uint8).ctypes.data
        for offset in range(0, len(mapping), _PIECE):
            pieces.put((start + offset, min(_PIECE, len(mapping) - offset)))

    def work() -> None:
        with contextlib.suppress(Empty):
            while True:
                _madvise(*pieces.get_nowait(), mmap.MADV_DONTNEED)  # lets the other thread run meanwhile

    others = [threading.Thread(target=work) for _ in range(len(os.sched_getaffinity(0)) - 1)][:_UNMAPPERS]
    for other in others:
        other.start()
    work()
    for other in others:
        other.join()


def _is_safetensors(checkpoint: Checkpoint, name: str) -> bool:
    """What a `.bin` checkpoint was packed into is a safetensors file all the same."""
    return checkpoint.format != "pytorch" or name.endswith(".safetensors")


def _open(path: str) -> OpenFile:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LoadFailed(f"the weights file {path} cannot be opened: {error.strerror}.") from error
    hold(Path(path), descriptor)
    status = os.fstat(descriptor)
    return OpenFile(path, descriptor, status.st_size, status.st_mtime_ns)


def _mapped(file: OpenFile) -> dict[str, torch.Tensor | PackedTensor]:
    header = read_header(Path(file.path), descriptor=file.fd)
    read_into_huge_pages(file.fd, file.size)
    mapping = mmap.mmap(file.fd, file.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    _mappings.add(mapping)
    if hasattr(
        mmap, "MADV_HUGEPAGE"
    ):  # what is read from the disk then comes in huge pages, where they are to be had
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    if file.size >= _PIECE:
        threading.Thread(target=_enter_pages, args=(mapping,), daemon=True).start()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*not writable.*"
        )  # that nobody can write to them is the point
        tensors: dict[str, torch.Tensor | PackedTensor] = {
            name: _view(mapping, tensor) for name, tensor in header.tensors.items()
        }
    for name, (layout, shape) in packed_entries(header, Path(file.path).name).items():
        data = tensors[name]
        assert isinstance(data, torch.Tensor)
        tensors[name] = PackedTensor(layout, shape, data)
    return tensors


def _view(mapping: mmap.mmap, header: TensorHeader) -> torch.Tensor:
    dtype = _DTYPES.get(header.dtype)
    if dtype is None:
        raise InvalidFormat(
            f"the tensor {header.name!r} has the dtype {header.dtype}, which is not run by this version."
        )
    if header.size == 0:
        return torch.empty(header.shape, dtype=dtype)
    count = header.size // dtype.itemsize
    if header.offset % dtype.itemsize:  # old writers did not align; an unaligned view is undefined behaviour
        start = header.offset
        return torch.frombuffer(bytearray(mapping[start : start + header.size]), dtype=dtype).view(
            header.shape
        )
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=header.offset).view(header.shape)


def read_pickled(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a `.bin` file. Raises `InvalidFormat` for one that is damaged or holds more than tensors."""
    name = Path(path).name
    loaded: object = None
    try:
        with contextlib.suppress(RuntimeError):  # the format before zip files cannot be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if loaded is None:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidFormat(
            f"{name} holds more than tensors, which could be code; it is not loaded."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InvalidFormat(f"{name} cannot be read: {error}.") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise InvalidFormat(f"{name} is not a table of tensors.")
    return loaded

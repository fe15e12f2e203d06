"""GGUF's blocks in the layouts that the kernels read, rows by rows, in numpy.

| GGUF | becomes | |
|---|---|---|
| F32, F16, BF16 | the same | row-major |
| Q4_0 | Q4S_32 | exact |
| Q4_1 | Q4_32 | exact |
| Q8_0, Q5_0 | Q8_32 | exact |
| Q4_K | Q4_32 | the same nibbles; scale and minimum of each 32 values are products, rounded to float16: each is off by at most 2^-11 of itself, a value by about a hundredth of a step |
| all others | Q8_32 | dequantised, then the nearest of 8 bits in groups of 32 |

The blocks are ggml's (`ggml-common.h`); little-endian throughout.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from numpy.typing import NDArray

from inferloom.errors import InvalidFormat, LoadFailed
from inferloom.formats.interleaving import interleave_q4_32, interleave_q4_pairs, interleave_q8_32
from inferloom.formats.layout import GROUP, Layout
from inferloom.formats.quantiser import pack_q8_32

Bytes = NDArray[np.uint8]
Half = NDArray[np.float16]

FLOATS = {Kind.F32: "F32", Kind.F16: "F16", Kind.BF16: "BF16"}
_WITH_MINIMUM = (Kind.Q4_1, Kind.Q4_K)
_NEAREST = (Kind.Q5_1, Kind.Q5_K, Kind.Q6_K)


def layout_of(kind: Kind) -> Layout:
    """The layout that a matrix of GGUF's type `kind` is kept in."""
    if kind in FLOATS:
        return Layout[FLOATS[kind]]
    if kind is Kind.Q4_0:
        return Layout.Q4S_32
    return Layout.Q4_32 if kind in _WITH_MINIMUM else Layout.Q8_32


def is_foreign(kind: Kind) -> bool:
    """Whether `kind` is none of those that have a way of their own here: it is dequantised, and somebody should know."""
    return kind not in FLOATS and kind not in _PACKERS and kind not in _NEAREST


def pack(table: Bytes, kind: Kind, *, name: str) -> Bytes:
    """Rows of blocks [rows, bytes], rows a multiple of 16, as `layout_of(kind)`: [rows / 16, bytes].

    `name` is the tensor's, for errors: `InvalidFormat` for scales out of float16's range.
    """
    packer = _PACKERS.get(kind)
    if packer is None:
        return pack_q8_32(dequantised(table, kind, name=name))
    with np.errstate(over="ignore"):
        packed = packer(table.reshape(len(table), -1, GGML_QUANT_SIZES[kind][1]))
    if packed is None:
        raise InvalidFormat(f"the tensor {name!r} has scales beyond the range of float16.")
    return packed


def dequantised(table: Bytes, kind: Kind, *, name: str) -> NDArray[np.float32]:
    """Rows of blocks as float32. Raises `LoadFailed` for a type that the `gguf` package cannot read."""
    table = np.ascontiguousarray(table)
    if kind is Kind.F32:
        return table.view(np.float32)
    if kind is Kind.F16:
        return table.view(np.float16).astype(np.float32)
    try:
        return np.ascontiguousarray(dequantize(table, kind), dtype=np.float32)
    except NotImplementedError:
        raise LoadFailed(f"the tensor {name!r} is quantised as {kind.name}, which cannot be read.") from None


def _half(blocks: Bytes, at: int) -> Half:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0]


def _q4_0(blocks: Bytes) -> Bytes | None:
    scales, nibbles = _half(blocks, 0), blocks[..., 2:]
    if not np.isfinite(scales).all():
        return None
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1), (0, 0)))
        scales = np.pad(scales, ((0, 0), (0, 1)))
    return interleave_q4_pairs(nibbles, scales)


def _q4_1(blocks: Bytes) -> Bytes:
    return interleave_q4_32(blocks[..., 4:], _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Bytes) -> Bytes:
    return _even(blocks[..., 2:] ^ np.uint8(0x80), _half(blocks, 0))


def _q5_0(blocks: Bytes) -> Bytes:
    fifth = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")  # of value 0 … 31
    values = np.concatenate((blocks[..., 6:] & 15, blocks[..., 6:] >> 4), axis=-1)
    return _even(values + (fifth << 4) + np.uint8(128 - 16), _half(blocks, 0))


def _even(values: Bytes, scales: Half) -> Bytes:
    """Q8_32 from biased bytes [rows, groups, 32] and scales [rows, groups], a group of zeros added to an odd number."""
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1), (0, 0)), constant_values=128)
        scales = np.pad(scales, ((0, 0), (0, 1)))
    return interleave_q8_32(values, scales)


def _q4_k(blocks: Bytes) -> Bytes | None:
    """256 values a block: two float16, eight 6-bit scales and minima in 12 bytes, then the low and the high nibbles of 32
    bytes for 64 values at a time."""
    rows, count, _ = blocks.shape
    low, high, rest = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate((low & 63, (rest & 15) | (low >> 6) << 4), axis=-1)
    minima = np.concatenate((high & 63, (rest >> 4) | (high >> 6) << 4), axis=-1)
    scale = (_half(blocks, 0)[..., None].astype(np.float32) * scales).astype(np.float16)
    minimum = (_half(blocks, 2)[..., None].astype(np.float32) * -minima.astype(np.float32)).astype(np.float16)
    if not (np.isfinite(scale).all() and np.isfinite(minimum).all()):
        return None
    pairs = blocks[..., 16:].reshape(rows, count, 4, 2, GROUP // 2)  # of 64 values: columns 0 … 15, 16 … 31
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    nibbles = np.stack(((first & 15) | (second << 4), (first >> 4) | (second & 0xF0)), axis=3)
    flat = rows, count * 8
    return interleave_q4_32(nibbles.reshape(*flat, GROUP // 2), scale.reshape(flat), minimum.reshape(flat))


_PACKERS: dict[Kind, Callable[[Bytes], Bytes | None]] = {
    Kind.Q4_0: _q4_0,
    Kind.Q4_1: _q4_1,
    Kind.Q4_K: _q4_k,
    Kind.Q5_0: _q5_0,
    Kind.Q8_0: _q8_0,
}

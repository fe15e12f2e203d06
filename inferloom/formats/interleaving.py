"""The quantised weight layouts as bytes: the order in which sixteen rows are interleaved (`csrc/layouts.md`). numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inferloom.formats import dither
from inferloom.formats.layout import (
    GROUP,
    HALVES_GROUP,
    HALVES_LOWER,
    HALVES_UPPER,
    ROWS,
    Layout,
    block_bytes,
    planes,
)

# Q4Z_32: value = scale * (nibble + (zero - LEVEL_BIAS) / LEVELS_OF_STEP), zero being the scale's low six bits.
LEVELS_OF_STEP = 4
LEVEL_BIAS = 62
ZERO_MASK = 63

_QUAD = 4  # consecutive columns of a row that lie together


def interleave_q4_32(
    nibbles: NDArray[np.uint8], scales: NDArray[np.float16], minima: NDArray[np.float16]
) -> NDArray[np.uint8]:
    """`nibbles` [rows, groups, 16]: byte j of a group holds column j low and column 16 + j high, as GGUF has them;
    `scales` and `minima` [rows, groups]. Rows are a multiple of 16. → [rows / 16, groups * 320]."""
    rows, groups, _ = nibbles.shape
    blocks = rows // ROWS
    out = np.empty((blocks, groups, 320), np.uint8)
    quads = np.ascontiguousarray(nibbles).view(np.uint32).reshape(blocks, ROWS, groups, _QUAD)
    out[..., :256] = (
        np.ascontiguousarray(quads.transpose(0, 2, 3, 1)).view(np.uint8).reshape(blocks, groups, 256)
    )
    out[..., 256:288] = _of_sixteen(scales, groups)
    out[..., 288:] = _of_sixteen(minima, groups)
    return out.reshape(blocks, groups * 320)


def interleave_q4_pairs(nibbles: NDArray[np.uint8], halves: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Q4S_32, Q4Z_32 and Q4_DITHERED. `nibbles` as for Q4_32; `halves` [rows, groups]: the scales, with Q4Z_32's zero points in
    their low six bits. Rows are a multiple of 16, groups of 2. → [rows / 16, groups / 2 * 576]."""
    rows, groups, _ = nibbles.shape
    blocks, pairs = rows // ROWS, groups // 2
    out = np.empty((blocks, pairs, 576), np.uint8)
    quads = np.ascontiguousarray(nibbles).view(np.uint32).reshape(blocks, ROWS, pairs, 2 * _QUAD)
    out[..., :512] = (
        np.ascontiguousarray(quads.transpose(0, 2, 3, 1)).view(np.uint8).reshape(blocks, pairs, 512)
    )
    out[..., 512:] = _of_sixteen(halves, groups).reshape(blocks, pairs, 64)
    return out.reshape(blocks, pairs * 576)


def interleave_q8_32(values: NDArray[np.uint8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """`values` [rows, groups, 32], biased by 128; `scales` [rows, groups]. Rows are a multiple of 16, groups of 2.
    → [rows / 16, groups / 2 * 1088]."""
    rows, groups, _ = values.shape
    blocks, pairs = rows // ROWS, groups // 2
    out = np.empty((blocks, pairs, 1088), np.uint8)
    quads = np.ascontiguousarray(values).view(np.uint32).reshape(blocks, ROWS, pairs, 2 * GROUP // _QUAD)
    out[..., :1024] = (
        np.ascontiguousarray(quads.transpose(0, 2, 3, 1)).view(np.uint8).reshape(blocks, pairs, 1024)
    )
    out[..., 1024:] = _of_sixteen(scales, groups).reshape(blocks, pairs, 64)
    return out.reshape(blocks, pairs * 1088)


def interleave_q8_row(values: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`values` [rows, columns], biased by 128; `scales` [rows]. Rows are a multiple of 16, columns of 128.
    → [rows / 16, 16 * columns + 64]."""
    rows, columns = values.shape
    blocks = rows // ROWS
    out = np.empty((blocks, ROWS * columns + 64), np.uint8)
    quads = np.ascontiguousarray(values).view(np.uint32).reshape(blocks, ROWS, columns // _QUAD)
    out[:, : ROWS * columns] = (
        np.ascontiguousarray(quads.transpose(0, 2, 1)).view(np.uint8).reshape(blocks, -1)
    )
    out[:, ROWS * columns :] = np.ascontiguousarray(scales).view(np.uint8).reshape(blocks, 64)
    return out


def interleave_q8_halves(values: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`values` [rows, columns], biased and dithered; `scales` [rows, columns / 128]. Rows are a multiple of 16, columns of 128.
    → [rows / 16, bytes], the upper halves with the scales, then the lower halves."""
    rows, columns = values.shape
    blocks, groups = rows // ROWS, columns // HALVES_GROUP
    upper = np.empty((blocks, groups, HALVES_UPPER), np.uint8)
    upper[..., :HALVES_LOWER] = _paired(values >> np.uint8(4)).reshape(blocks, groups, HALVES_LOWER)
    turned = np.ascontiguousarray(scales.reshape(blocks, ROWS, groups).transpose(0, 2, 1))
    upper[..., HALVES_LOWER:] = turned.view(np.uint8).reshape(blocks, groups, -1)
    return np.concatenate((upper.reshape(blocks, -1), _paired(values & np.uint8(15))), axis=1)


def in_planes(blocks: NDArray[np.uint8], columns: int, layout: Layout) -> NDArray[np.uint8]:
    """All blocks [n, bytes] of a matrix with so many columns as its bytes [n * bytes], as `csrc/layouts.md` has them."""
    return np.concatenate([blocks[:, plane].reshape(-1) for plane in planes(columns, layout)])


class Blocks:
    """A matrix with so many columns, as the bytes in memory: its blocks of sixteen rows by their numbers."""

    def __init__(self, data: NDArray[np.uint8], columns: int, layout: Layout) -> None:
        self._count = len(data) // block_bytes(columns, layout)
        self._planes = [
            data[self._count * plane.start : self._count * plane.stop].reshape(self._count, -1)
            for plane in planes(columns, layout)
        ]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, numbers: slice | NDArray[np.integer]) -> NDArray[np.uint8]:
        """[n, bytes]: a view where the layout keeps a block in one piece and `numbers` is a slice."""
        if len(self._planes) == 1:
            return self._planes[0][numbers]
        return np.concatenate([plane[numbers] for plane in self._planes], axis=1)


def values_of(blocks: NDArray[np.uint8], layout: Layout) -> NDArray[np.float32]:
    """Blocks of sixteen rows [n, bytes] → their values [16 n, padded columns], exactly."""
    count = len(blocks)
    if layout is Layout.Q8_ROW:
        width = blocks.shape[1] - 64
        values = _columns(blocks[:, None, :width], count)
        values *= np.ascontiguousarray(blocks[:, width:]).view(np.float32).reshape(-1, 1)
        return values
    if layout is Layout.Q8_HALVES:
        groups = blocks.shape[1] // (HALVES_UPPER + HALVES_LOWER)
        upper = blocks[:, : groups * HALVES_UPPER].reshape(count, groups, HALVES_UPPER)
        values = _nibbles(upper[..., :HALVES_LOWER], count).reshape(count * ROWS, -1)
        values *= 16
        values += _nibbles(blocks[:, groups * HALVES_UPPER :], count).reshape(count * ROWS, -1)
        values -= dither.whole(values.shape[1]).astype(np.float32) + dither.BIAS
        steps = np.ascontiguousarray(upper[..., HALVES_LOWER:]).view(np.float32).transpose(0, 2, 1)
        grouped = values.reshape(count, ROWS, groups, -1)
        grouped *= steps[..., None]
        return values
    if layout is Layout.Q8_32:
        pairs = blocks.reshape(count, -1, 1088)
        values = _columns(pairs[..., :1024], count)
        scales = pairs[..., 1024:].reshape(count, -1, 32)  # of one group after the other
        grouped = values.reshape(count, ROWS, -1, GROUP)
        grouped *= _to_sixteen(scales)
        return values
    if layout is Layout.Q4_32:
        groups = blocks.reshape(count, -1, 320)
        grouped = _nibbles(groups[..., :256], count)
        grouped *= _to_sixteen(groups[..., 256:288])
        grouped += _to_sixteen(groups[..., 288:])
        return grouped.reshape(count * ROWS, -1)
    pairs = blocks.reshape(count, -1, 576)
    grouped = _nibbles(pairs[..., :512], count)
    halves = np.ascontiguousarray(pairs[..., 512:].reshape(count, -1, 32))
    if layout is Layout.Q4S_32:
        grouped -= 8
    elif layout is Layout.Q4_DITHERED:  # in the middle of where they may be
        grouped *= 16
        columns = grouped.shape[2] * GROUP
        grouped -= (dither.sixteenths(columns).astype(np.float32) / 16 + (dither.BIAS - 8)).reshape(-1, GROUP)
    else:
        zeros = (halves.view(np.uint16) & ZERO_MASK).astype(np.float32)
        zeros -= LEVEL_BIAS
        zeros /= LEVELS_OF_STEP
        grouped += zeros.transpose(0, 2, 1)[..., None]
    grouped *= _to_sixteen(halves)
    return grouped.reshape(count * ROWS, -1)


def _paired(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Numbers below 16 [rows, columns] as vectors of nibbles [rows / 16, 8 * columns]."""
    rows, columns = numbers.shape
    groups = numbers.reshape(rows, -1, 2, GROUP // 2)
    quads = np.ascontiguousarray(groups[:, :, 0] | groups[:, :, 1] << 4).view(np.uint32)
    turned = np.ascontiguousarray(
        quads.reshape(rows // ROWS, ROWS, columns // GROUP, _QUAD).transpose(0, 2, 3, 1)
    )
    return turned.view(np.uint8).reshape(rows // ROWS, -1)


def _nibbles(bytes_: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """The nibbles of `count` blocks, vector by vector, as numbers [count, 16, groups, 32]."""
    quads = np.ascontiguousarray(bytes_).view(np.uint32).reshape(count, -1, _QUAD, ROWS)
    nibbles = np.ascontiguousarray(quads.transpose(0, 3, 1, 2)).view(np.uint8).reshape(count, ROWS, -1, 16)
    grouped = np.empty((*nibbles.shape[:3], GROUP), np.float32)
    grouped[..., :16] = nibbles & 15
    grouped[..., 16:] = nibbles >> 4
    return grouped


def _columns(bytes_: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """The biased bytes of `count` blocks, quad by quad, as numbers [16 count, columns]."""
    quads = np.ascontiguousarray(bytes_).view(np.uint32).reshape(count, -1, ROWS)
    values = np.ascontiguousarray(quads.transpose(0, 2, 1)).view(np.uint8).astype(np.float32)
    values -= 128
    return values.reshape(count * ROWS, -1)


def _to_sixteen(numbers: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The float16 of each group's sixteen rows [n, groups, 32 bytes] as [n, 16, groups, 1]."""
    halves = np.ascontiguousarray(numbers).view(np.float16).astype(np.float32)
    return halves.transpose(0, 2, 1)[..., None]


def _of_sixteen(numbers: NDArray[np.float16], groups: int) -> NDArray[np.uint8]:
    """[rows, groups] of float16 as the bytes [rows / 16, groups, 32]."""
    turned = np.ascontiguousarray(numbers.reshape(-1, ROWS, groups).transpose(0, 2, 1))
    return turned.view(np.uint8).reshape(-1, groups, 32)

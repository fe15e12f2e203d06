"""The layouts of weight matrices: names, numbers and sizes. `csrc/layouts.md` says what each is; `csrc/linear.h` has the same
numbers. Nothing is imported: looking a checkpoint up must stay cheap."""

from __future__ import annotations

from enum import IntEnum

ROWS = 16  # that a quantised layout interleaves
GROUP = 32  # columns that share a scale in all but Q8_ROW (a row) and Q8_HALVES

DITHERED = 8192  # columns of a matrix in Q8_HALVES or Q4_DITHERED, at most
# Q8_HALVES: columns that share a scale; bytes of sixteen rows of those, upper and lower halves
HALVES_GROUP = 128
HALVES_UPPER = ROWS * HALVES_GROUP // 2 + ROWS * 4
HALVES_LOWER = ROWS * HALVES_GROUP // 2


class Layout(IntEnum):
    """How a matrix lies in memory; the numbers are those of `csrc/linear.h`."""

    F32 = 0
    F16 = 1
    BF16 = 2
    Q8_32 = 3
    Q8_ROW = 4
    Q4_32 = 5
    Q4S_32 = 6
    Q4Z_32 = 7
    Q8_HALVES = 8
    Q4_DITHERED = 9  # a screen of a matrix: bounds of its products, and no matrix itself

    @property
    def quantised(self) -> bool:
        return self >= Layout.Q8_32

    @property
    def bits(self) -> int:
        """Of a value, without its share of a scale."""
        return _BITS[self]


_BITS = {
    Layout.F32: 32,
    Layout.F16: 16,
    Layout.BF16: 16,
    Layout.Q8_32: 8,
    Layout.Q8_ROW: 8,
    Layout.Q8_HALVES: 8,
    Layout.Q4_32: 4,
    Layout.Q4S_32: 4,
    Layout.Q4Z_32: 4,
    Layout.Q4_DITHERED: 4,
}

# Columns are padded to a multiple of this.
COLUMNS = {
    Layout.Q8_32: 2 * GROUP,
    Layout.Q8_ROW: 128,
    Layout.Q8_HALVES: HALVES_GROUP,
    Layout.Q4_DITHERED: 2 * GROUP,
    Layout.Q4_32: GROUP,
    Layout.Q4S_32: 2 * GROUP,
    Layout.Q4Z_32: 2 * GROUP,
}


def padded(shape: tuple[int, int], layout: Layout) -> tuple[int, int]:
    """(rows, columns) with what a quantised layout adds to them."""
    rows, columns = shape
    step = COLUMNS[layout]
    return -(-rows // ROWS) * ROWS, -(-columns // step) * step


def block_bytes(columns: int, layout: Layout) -> int:
    """Bytes of sixteen rows of `columns` values in a quantised layout."""
    if layout is Layout.Q4_32:
        return -(-columns // 32) * 320
    if layout in (Layout.Q4S_32, Layout.Q4Z_32, Layout.Q4_DITHERED):
        return -(-columns // 64) * 576
    if layout is Layout.Q8_32:
        return -(-columns // 64) * 1088
    if layout is Layout.Q8_HALVES:
        return -(-columns // HALVES_GROUP) * (HALVES_UPPER + HALVES_LOWER)
    return -(-columns // 128) * 128 * ROWS + 64


def planes(columns: int, layout: Layout) -> list[slice]:
    """The parts of a block that lie apart: those of all blocks follow each other, part by part."""
    whole = block_bytes(columns, layout)
    if layout is not Layout.Q8_HALVES:
        return [slice(0, whole)]
    upper = whole // (HALVES_UPPER + HALVES_LOWER) * HALVES_UPPER
    return [slice(0, upper), slice(upper, whole)]


def packed_bytes(shape: tuple[int, int], layout: Layout) -> int:
    """Bytes of a whole matrix in a quantised layout."""
    return -(-shape[0] // ROWS) * block_bytes(shape[1], layout)

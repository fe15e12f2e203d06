"""Float matrices in any quantised layout, also those that only files come in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inferloom.formats import quantiser
from inferloom.formats.interleaving import in_planes, interleave_q4_32, interleave_q4_pairs
from inferloom.formats.layout import COLUMNS, Layout

QUANTISED = (Layout.Q8_32, Layout.Q8_ROW, Layout.Q8_HALVES, Layout.Q4_32, Layout.Q4S_32, Layout.Q4Z_32)


def pack(values: NDArray[np.float32], layout: Layout) -> NDArray[np.uint8]:
    """Rows [rows, columns], rows a multiple of 16, as the layout's bytes, one axis; 4 bits as the files' own
    quantisers choose them, from the smallest and the largest value of a group."""
    if layout not in (Layout.Q4_32, Layout.Q4S_32):
        return in_planes(quantiser.pack(values, layout), values.shape[1], layout)
    groups = np.pad(values, ((0, 0), (0, -values.shape[1] % COLUMNS[layout]))).reshape(len(values), -1, 32)
    least, most = groups.min(axis=2), groups.max(axis=2)
    if layout is Layout.Q4_32:
        scales, offset = ((most - least) / 15).astype(np.float16), least.astype(np.float16)
    else:
        scales = (np.where(-least >= most, least, most) / -8).astype(np.float16)
        offset = scales * np.float16(-8)
    steps = np.where(scales == 0, 1, scales).astype(np.float32)[..., None]
    numbers = np.rint((groups - offset[..., None]) / steps).clip(0, 15).astype(np.uint8)
    nibbles = numbers[..., :16] | numbers[..., 16:] << 4
    if layout is Layout.Q4_32:
        return interleave_q4_32(nibbles, scales, offset).reshape(-1)
    return interleave_q4_pairs(nibbles, scales).reshape(-1)

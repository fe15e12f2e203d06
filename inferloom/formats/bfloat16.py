"""bfloat16 in numpy, which has no such type: the upper halves of float32, as uint16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 → the bits of bfloat16, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    lowest = bits >> np.uint32(16)
    lowest &= np.uint32(1)
    lowest += np.uint32(0x7FFF)
    lowest += bits
    lowest >>= np.uint32(16)
    rounded = lowest.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The bits of bfloat16 → float32, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)

"""What Q8_HALVES adds to the columns of a matrix before it cuts their bytes into halves (`csrc/dither.h` has the same)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BIAS = 120  # a byte is value / scale + BIAS + dither; the largest magnitude is BIAS steps


@lru_cache(maxsize=4)
def dither(columns: int) -> NDArray[np.uint8]:
    """0 … 15 for each column: the upper bits of splitmix64 at the column's number."""
    z = (np.arange(columns, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return ((z ^ z >> np.uint64(31)) >> np.uint64(60)).astype(np.uint8)

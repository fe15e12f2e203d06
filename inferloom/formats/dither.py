"""What is added to the columns of a matrix before its numbers are cut to four bits (`csrc/dither.h` has the same)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BIAS = 120  # steps that are added to value / scale; the largest magnitude is as many


@lru_cache(maxsize=4)
def sixteenths(columns: int) -> NDArray[np.uint8]:
    """0 … 255 sixteenths of a step for each column: the upper bits of splitmix64 at the column's number."""
    z = (np.arange(columns, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return ((z ^ z >> np.uint64(31)) >> np.uint64(56)).astype(np.uint8)


def whole(columns: int) -> NDArray[np.uint8]:
    """0 … 15, its whole steps, which is what Q8_HALVES adds."""
    return sixteenths(columns) >> np.uint8(4)

"""Sampling on a CPU in one call for all rows of a step (csrc/sampling.h); the same tokens as `RowSampler` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inferloom.engine.draws import Draw
from inferloom.engine.randomness import uniform
from inferloom.kernels.native import library


class NativeSampler:
    """Columns of draws, kept from step to step; what is greedy leaves them at 0."""

    def __init__(self) -> None:
        """Raises `ConfigError` where the native operators are not available."""
        self._sample = library.load().sample
        library.isa()
        self._reserve(16)

    def draw(self, logits: torch.Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> list[int]:
        """A token for each draw from its row of `logits` (float32 [n, vocab], on the CPU); −1: no distribution."""
        count = len(draws)
        if count > self._room:
            self._reserve(2 * count)
        self._rows[:count] = rows
        columns = self._greedy
        for draw in draws:
            if draw.sampling.temperature > 0:
                self._fill(draws, count)
                columns = self._columns
                break
        self._sample(
            logits.data_ptr(), logits.stride(0), logits.shape[1], *columns, count, self._tokens_address
        )
        tokens: list[int] = self._tokens[:count].tolist()
        return tokens

    def _fill(self, draws: Sequence[Draw], count: int) -> None:
        specs = [draw.sampling for draw in draws]
        self._temperatures[:count] = [spec.temperature for spec in specs]
        self._top_ks[:count] = [spec.top_k for spec in specs]
        self._top_ps[:count] = [spec.top_p for spec in specs]
        self._min_ps[:count] = [spec.min_p for spec in specs]
        self._dice[:count] = [
            uniform(draw.sampling.seed, choice=draw.choice, position=draw.position) for draw in draws
        ]

    def _reserve(self, count: int) -> None:
        self._room = count
        self._rows = np.zeros(count, dtype=np.int64)
        self._temperatures = np.zeros(count, dtype=np.float32)
        self._top_ks = np.zeros(count, dtype=np.int32)
        self._top_ps = np.ones(count, dtype=np.float64)
        self._min_ps = np.zeros(count, dtype=np.float32)
        self._dice = np.zeros(count, dtype=np.float64)
        self._tokens = np.zeros(count, dtype=np.int32)
        self._zeros = np.zeros(count, dtype=np.float32)
        # what an array's address costs to ask for is more than what a row costs to sample
        others = [_address(column) for column in (self._top_ks, self._top_ps, self._min_ps, self._dice)]
        self._columns = (_address(self._rows), _address(self._temperatures), *others)
        self._greedy = (_address(self._rows), _address(self._zeros), *others)
        self._tokens_address = _address(self._tokens)


def _address(column: NDArray[Any]) -> int:
    return column.ctypes.data

"""Weight matrices in the layouts that the kernels read (`csrc/layouts.md`), and back to floats.

Nothing here needs a compiler: an executor without the native kernels dequantises while it loads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from inferloom.errors import InvalidFormat
from inferloom.formats.bfloat16 import to_bf16
from inferloom.formats.interleaving import Blocks, values_of
from inferloom.formats.layout import ROWS, Layout, packed_bytes, padded
from inferloom.formats.threads import each

__all__ = ["Layout", "PackedTensor", "dequantise"]

_PIECE = 1 << 17  # elements dequantised at a time: intermediate results stay in the cache


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A quantised matrix: `shape` [out_features, in_features] as the checkpoint has it, `data` the packed bytes
    (uint8, one axis, usually a view of a mapped file, at a multiple of 64 bytes)."""

    layout: Layout
    shape: tuple[int, int]
    data: torch.Tensor

    def __post_init__(self) -> None:
        wanted = packed_bytes(self.shape, self.layout)
        if self.data.dtype != torch.uint8 or self.data.numel() != wanted:
            raise InvalidFormat(
                f"a {self.layout.name} matrix of shape {list(self.shape)} has {wanted:,} bytes, not {self.data.nbytes:,}."
            )

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def numel(self) -> int:
        """Values of the matrix, without padding."""
        return self.shape[0] * self.shape[1]

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The rows `indices` [n] dequantised: float32 [n, in_features]. What an embedding is asked for."""
        wanted = indices.cpu().numpy()
        if not len(wanted):
            return torch.empty(0, self.shape[1])
        blocks = self._blocks()[wanted // ROWS]
        values = values_of(blocks, self.layout).reshape(len(wanted), ROWS, -1)
        return torch.from_numpy(values[np.arange(len(wanted)), wanted % ROWS, : self.shape[1]])

    def _blocks(self) -> Blocks:
        return Blocks(self.data.numpy(), self.shape[1], self.layout)


def dequantise(packed: PackedTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values [out_features, in_features], exact in float32, rounded once to another `dtype`. On the CPU."""
    rows, columns = packed.shape
    out = torch.empty(rows, columns, dtype=dtype)
    target = out.view(torch.int16).numpy().view(np.uint16) if dtype == torch.bfloat16 else out.numpy()
    blocks = packed._blocks()
    step = max(1, _PIECE // (padded(packed.shape, packed.layout)[1] * ROWS))

    def piece(start: int) -> None:
        part = target[start * ROWS : (start + step) * ROWS]
        values = values_of(blocks[start : start + step], packed.layout)[: len(part), :columns]
        part[:] = to_bf16(values) if dtype == torch.bfloat16 else values

    for _ in each(piece, range(0, len(blocks), step)):
        pass
    return out
